"""Per-sample gradients with ``torch.func``, the usual form of DP-SGD, for example in Opacus.

- Samples are processed in groups whose gradients fit into the second-level cache.
- The noise is the cheapest available: fresh draws, added in place.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from torch.func import grad, vmap

from benchmarks.harness.contestants import CLIP, DT, SIGMA, Case

GROUP_BYTES = 2**21
FEWEST_SAMPLES = 16


def _loss(W: torch.Tensor, v: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (v @ torch.relu(W @ x) - y) ** 2


# (paths, samples, ...)
_gradients = vmap(vmap(grad(_loss, argnums=(0, 1)), (None, None, 0, 0)), (0, 0, None, None))


class TorchVmap:
    """An Euler step in plain torch on a batch of paths."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int) -> None:
        self.paths, self.clip, self.span = paths, CLIP, case.span(reduce)
        number = torch.float64 if dtype is np.float64 else torch.float32
        X = torch.tensor(self.span.coordinates(case.problem.X), dtype=number)
        y = torch.tensor(case.problem.y, dtype=number)
        W = torch.tensor(self.span.coordinates(case.weights.W), dtype=number)
        v = torch.tensor(case.weights.v, dtype=number)
        self.W, self.v = W.repeat(paths, 1, 1), v.repeat(paths, 1)
        group = max(FEWEST_SAMPLES, GROUP_BYTES // (self.W.numel() * self.W.element_size()))
        self.groups = list(zip(X.split(group), y.split(group), strict=True))

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self.W[0].numpy().astype(np.float64), self.v[0].numpy().astype(np.float64)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        drift_W, drift_v = self._drift()
        return drift_W[0].numpy().astype(np.float64), drift_v[0].numpy().astype(np.float64)

    def advance(self, steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            for parameter, drift in zip((self.W, self.v), self._drift(), strict=True):
                parameter.add_(drift, alpha=DT)
                parameter.add_(torch.randn_like(parameter), alpha=SIGMA * (2 * DT) ** 0.5)
        elapsed = time.process_time() - start
        assert bool(torch.isfinite(self.W).all())
        return elapsed

    def _drift(self) -> tuple[torch.Tensor, torch.Tensor]:
        drift_W, drift_v = torch.zeros_like(self.W), torch.zeros_like(self.v)
        for X, y in self.groups:
            of_W, of_v = _gradients(self.W, self.v, X, y)
            of_W = of_W.flatten(2)
            norms = torch.hypot(torch.linalg.vector_norm(of_W, dim=2), torch.linalg.vector_norm(of_v, dim=2))
            factors = (self.clip / norms).clamp_(max=1).unsqueeze(2)
            # for one path, a transposed product is faster
            total = torch.mv(of_W[0].T, factors[0, :, 0]) if self.paths == 1 else of_W.mT @ factors
            drift_W -= total.view_as(self.W)
            drift_v -= (of_v.mT @ factors).squeeze(2)
        return drift_W, drift_v
