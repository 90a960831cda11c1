"""The drift of a network with K outputs, written as well as torch allows, for torchsde's Euler solver.

Like `benchmarks.peers.torchsde_euler`: in place, a row of the state is a neuron ``(w_j, V_j)``, and the rows
of all paths are torchsde's batch. On all samples: torchsde has no batches.
"""

from __future__ import annotations

import numpy as np
import torch


class TorchOutputsDrift:
    """Clipped drift of ``paths`` ReLU networks under softmax, flat clipping over all parameters."""

    def __init__(self, X: np.ndarray, Y: np.ndarray, width: int, clip: float, paths: int, dtype: type):
        samples, self.inputs = X.shape
        self.outputs, self.width, self.clip, self.paths = Y.shape[1], width, clip, paths
        self.dtype = torch.float64 if dtype is np.float64 else torch.float32
        self.X = torch.tensor(X, dtype=self.dtype)
        self.targets = torch.tensor(Y.T.copy(), dtype=self.dtype)
        self.squared_norms = (self.X**2).sum(1)
        self.z = torch.empty((paths * width, samples), dtype=self.dtype)
        self.slope, self.pulled, self.squares = (torch.empty_like(self.z) for _ in range(3))
        self.out = torch.empty((paths * width, self.inputs + self.outputs), dtype=self.dtype)

    def pack(self, W: np.ndarray, V: np.ndarray) -> torch.Tensor:
        """Return the initial state, the same for all paths; shape (paths h, k + K)."""
        return torch.tensor(np.hstack([W, V]), dtype=self.dtype).repeat(self.paths, 1)

    def unpack(self, state: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """``W`` and ``V`` of the first path, in double precision."""
        rows = state[: self.width].numpy().astype(np.float64)
        return rows[:, : self.inputs], rows[:, self.inputs :]

    @torch.no_grad()
    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """Drift at ``state``, in a buffer that the next call overwrites."""
        batch = (self.paths, self.width, -1)
        W, V = state[:, : self.inputs], state[:, self.inputs :].reshape(batch)
        torch.mm(W, self.X.T, out=self.z)
        torch.gt(self.z, 0, out=self.slope)
        a, pulled, squares = self.z.relu_().view(batch), self.pulled.view(batch), self.squares.view(batch)
        residuals = torch.softmax(torch.bmm(V.mT, a), 1).sub_(self.targets)
        torch.mul(a, a, out=squares)
        norms = squares.sum(1).mul_(residuals.square().sum(1))
        torch.bmm(V, residuals, out=pulled)
        self.pulled *= self.slope
        torch.mul(pulled, pulled, out=squares)
        norms += self.squared_norms * squares.sum(1)
        factors = (self.clip / norms.sqrt_()).clamp_(max=1).neg_().unsqueeze(1)
        residuals *= factors
        pulled *= factors
        torch.mm(self.pulled, self.X, out=self.out[:, : self.inputs])
        self.out[:, self.inputs :] = torch.bmm(a, residuals.mT).view(-1, self.outputs)
        return self.out
