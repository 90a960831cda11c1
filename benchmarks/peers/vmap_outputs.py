"""Per-sample gradients with ``torch.func``, the usual form of DP-SGD, for example in Opacus.

- Samples are processed in groups whose gradients fit into the second-level cache.
- The batches of several paths are padded to the largest, with weights that are 0 in the rest.
- The noise is the cheapest available: fresh draws, added in place.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from benchmarks.harness.contestants import CLIP, DT, SIGMA
from benchmarks.harness.outputs import OutputsCase
from benchmarks.peers.torch_vmap import FEWEST_SAMPLES, GROUP_BYTES


def _tuned(parts: Sequence[torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    W, V = parts
    return cross_entropy(torch.relu(W @ x) @ V, y)


def _probed(parts: Sequence[torch.Tensor], a: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return cross_entropy(a @ parts[0], y)


class TorchVmapOutputs:
    """An Euler step in plain torch on a batch of paths."""

    def __init__(self, case: OutputsCase, dtype: type, reduce: str, paths: int) -> None:
        self.case, self.paths, self.clip, self.span = case, paths, CLIP, case.span(reduce)
        number = torch.float64 if dtype is np.float64 else torch.float32
        W, X = (self.span.coordinates(part) for part in (case.weights.W, case.problem.X))
        self.W = W
        parts = (case.weights.v,) if case.probing else (W, case.weights.v)
        self.parts = [torch.tensor(part, dtype=number).repeat(paths, 1, 1) for part in parts]
        self.rows = torch.tensor(case.features if case.probing else X, dtype=number)
        self.labels = torch.tensor(case.problem.y)
        size = sum(part.numel() * part.element_size() for part in self.parts)
        self.group = max(FEWEST_SAMPLES, GROUP_BYTES // size)
        # over paths, then samples; full batches are the same for all paths
        samples = 0 if case.rate < 1 else None
        loss: Any = _probed if case.probing else _tuned
        one = grad(loss)
        self.gradients = vmap(vmap(one, (None, 0, 0)), (0, samples, samples))

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self._unpack(self.parts, self.W)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        batch = torch.as_tensor(self.case.batch(0))
        return self._unpack(self._drift([batch] * self.paths), 0 * self.W)

    def advance(self, steps: int) -> float:
        start = time.process_time()
        for _ in range(steps):
            for part, drift in zip(self.parts, self._drift(self.batches()), strict=True):
                part.add_(drift, alpha=DT)
                part.add_(torch.randn_like(part), alpha=SIGMA * (2 * DT) ** 0.5)
        elapsed = time.process_time() - start
        assert all(bool(torch.isfinite(part).all()) for part in self.parts)
        return elapsed

    def batches(self) -> list[torch.Tensor]:
        """Draw the rows of each path's batch; none for full batches."""
        if self.case.rate == 1:
            return []
        return [torch.nonzero(torch.rand(len(self.rows)) < self.case.rate)[:, 0] for _ in range(self.paths)]

    def _unpack(self, parts: Sequence[torch.Tensor], frozen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``W`` and ``V`` of the first path, in double precision; ``W`` is ``frozen`` in linear probing."""
        first = [part[0].numpy().astype(np.float64) for part in parts]
        return (frozen, first[0]) if self.case.probing else (first[0], first[1])

    def _drift(self, batches: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        drifts = [torch.zeros_like(part) for part in self.parts]
        samples, weights = slice(None), None
        if self.case.rate < 1:
            samples = pad_sequence(list(batches), batch_first=True)
            lengths = torch.tensor([len(batch) for batch in batches])
            weights = (torch.arange(samples.shape[1]) < lengths[:, None]) / self.case.rate
        rows, labels = self.rows[samples], self.labels[samples]
        for first in range(0, labels.shape[-1], self.group):
            group = ..., slice(first, first + self.group)
            gradients = [
                g.flatten(2) for g in self.gradients(self.parts, rows[(*group, slice(None))], labels[group])
            ]
            norms = torch.stack([torch.linalg.vector_norm(g, dim=2) for g in gradients]).norm(dim=0)
            factors = (self.clip / norms).clamp_(max=1)
            if weights is not None:
                factors *= weights[group]
            for drift, g in zip(drifts, gradients, strict=True):
                # for one path, a transposed product is faster
                total = torch.mv(g[0].T, factors[0]) if self.paths == 1 else g.mT @ factors.unsqueeze(2)
                drift -= total.view_as(drift)
        return drifts
