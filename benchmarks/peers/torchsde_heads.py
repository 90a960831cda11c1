"""torchsde's Euler solver on networks with K outputs, on full batches.

Full fine-tuning is `TorchOutputsDrift`. In linear probing a row of the state is a neuron with its rows of all
heads, so that one product serves all paths. Noise and buffers are those of `benchmarks.peers.torchsde_euler`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.harness.contestants import CLIP
from benchmarks.harness.outputs import OutputsCase
from benchmarks.peers.torchsde_euler import TorchSDE
from benchmarks.peers.torchsde_outputs import TorchOutputsDrift


class ProbingDrift:
    """Clipped drift of ``paths`` heads under softmax, on features ``A (n, h)``; state ``(h, paths K)``."""

    def __init__(
        self, A: np.ndarray, Y: np.ndarray, width: int, clip: float, paths: int, dtype: type
    ) -> None:
        self.outputs, self.width, self.clip, self.paths = Y.shape[1], width, clip, paths
        self.dtype = torch.float64 if dtype is np.float64 else torch.float32
        self.A = torch.tensor(A, dtype=self.dtype)
        self.targets = torch.tensor(Y, dtype=self.dtype).unsqueeze(1)
        self.squared_norms = (self.A**2).sum(1, keepdim=True)

    def pack(self, W: np.ndarray, V: np.ndarray) -> torch.Tensor:
        """Return the initial state, the same for all paths."""
        return torch.tensor(V, dtype=self.dtype).repeat(1, self.paths)

    def unpack(self, state: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """``W``, which is not in the state, and ``V`` of the first path, in double precision."""
        return np.zeros((self.width, 0)), state[:, : self.outputs].numpy().astype(np.float64)

    @torch.no_grad()
    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        outputs = torch.mm(self.A, state).view(-1, self.paths, self.outputs)
        residuals = torch.softmax(outputs, 2).sub_(self.targets)
        norms = residuals.square().sum(2).mul_(self.squared_norms)
        residuals *= (self.clip / norms.sqrt_()).clamp_(max=1).neg_().unsqueeze(2)
        return torch.mm(self.A.T, residuals.flatten(1))


class TorchSDEOutputs(TorchSDE):
    """``sdeint(method="euler")`` on a batch of paths, see `TorchSDE`."""

    def __init__(self, case: OutputsCase, dtype: type, reduce: str, paths: int, fresh: bool) -> None:
        if case.rate < 1:
            raise ValueError(f"rate must be 1, got {case.rate}: torchsde has no batches")
        self.paths, self.fresh, self.span, self.probing = paths, fresh, case.span(reduce), case.probing
        self.W, X = (self.span.coordinates(part) for part in (case.weights.W, case.problem.X))
        kind, rows = (ProbingDrift, case.features) if case.probing else (TorchOutputsDrift, X)
        self.model: Any = kind(rows, case.problem.targets, case.width, CLIP, paths, dtype)
        self.state = self.model.pack(self.W, case.weights.v)

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        W, V = super().position()
        return (self.W if self.probing else W), V

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        W, V = super().drift()
        return (0 * self.W if self.probing else W), V
