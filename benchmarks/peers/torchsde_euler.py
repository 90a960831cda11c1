"""torchsde's Euler solver, with the drift written as well as torch allows.

- It works in place, in buffers that are reused.
- A row of the state is a neuron, ``(w_j, v_j)``, and the rows of all paths are torchsde's batch. So the
  products read the state and write the drift in place, without copies.
- Two sources of noise: torchsde's own, and plain fresh increments, which are cheaper.
- The allocator keeps freed memory, see `keep_freed_memory`.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.harness.contestants import CLIP, DT, SIGMA, Case


class TorchDrift:
    """Clipped drift of ``paths`` ReLU networks under the square loss, flat clipping over all parameters."""

    def __init__(self, X: np.ndarray, y: np.ndarray, width: int, clip: float, paths: int, dtype: type):
        samples, self.inputs = X.shape
        self.width, self.clip, self.paths = width, clip, paths
        self.dtype = torch.float64 if dtype is np.float64 else torch.float32
        self.X = torch.tensor(X, dtype=self.dtype)
        self.y = torch.tensor(y, dtype=self.dtype)
        self.squared_norms = (self.X**2).sum(1)
        self.z = torch.empty((paths * width, samples), dtype=self.dtype)
        self.slope = torch.empty_like(self.z)
        self.squares = torch.empty_like(self.z)
        self.out = torch.empty((paths * width, self.inputs + 1), dtype=self.dtype)

    def pack(self, W: np.ndarray, v: np.ndarray) -> torch.Tensor:
        """Return the initial state, the same for all paths; shape (paths h, k + 1)."""
        return torch.tensor(np.column_stack([W, v]), dtype=self.dtype).repeat(self.paths, 1)

    def unpack(self, state: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """``W`` and ``v`` of the first path, in double precision."""
        rows = state[: self.width].numpy().astype(np.float64)
        return rows[:, :-1], rows[:, -1]

    @torch.no_grad()
    def __call__(self, state: torch.Tensor) -> torch.Tensor:
        """Drift at ``state``, in a buffer that the next call overwrites."""
        W, v = state[:, :-1], state[:, -1].contiguous()
        batch = (self.paths, self.width, -1)
        head = v.view(self.paths, 1, self.width)
        torch.mm(W, self.X.T, out=self.z)
        torch.gt(self.z, 0, out=self.slope)
        a, slope = self.z.relu_().view(batch), self.slope.view(batch)
        torch.mul(self.z, self.z, out=self.squares)
        norms = self.squares.view(batch).sum(1) + self.squared_norms * torch.bmm(head * head, slope).squeeze(
            1
        )
        residuals = torch.bmm(head, a).squeeze(1) - self.y
        residuals *= (self.clip / (residuals.abs() * norms.sqrt_())).clamp_(max=1)
        slope *= residuals.unsqueeze(1)
        drift_W = self.out[:, :-1]
        torch.mm(self.slope, self.X, out=drift_W)
        drift_W *= v.neg_().unsqueeze(1)
        self.out[:, -1:] = torch.bmm(a, residuals.neg_().unsqueeze(2)).view(-1, 1)
        return self.out


class TorchSDE:
    """``sdeint(method="euler")`` on a batch of paths.

    With ``fresh`` the increments are drawn on request and not stored, which is the cheapest way. Otherwise
    they come from torchsde's own `BrownianInterval`, which gets ``dt`` as its manual advises.
    """

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, fresh: bool) -> None:
        self.paths, self.fresh = paths, fresh
        self.span = case.span(reduce)
        X = self.span.coordinates(case.problem.X)
        self.model = TorchDrift(X, case.problem.y, case.width, CLIP, paths, dtype)
        self.state: Any = self.model.pack(self.span.coordinates(case.weights.W), case.weights.v)

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.state)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.model(self.state))

    def advance(self, steps: int) -> float:
        """Count neither torchsde's checks before the first step nor the construction of its noise tree."""
        import torchsde

        like, end = self.state, steps * DT
        # otherwise the seed comes from NumPy, which torch's seed does not control
        entropy = int(torch.randint(2**31, ()))
        source: Any = (
            (lambda ta, tb: torch.randn_like(like).mul_(float(tb - ta) ** 0.5))
            if self.fresh
            else torchsde.BrownianInterval(
                0.0, end, like.shape, dtype=like.dtype, device=like.device, dt=DT, entropy=entropy
            )
        )
        noise = _timed(source, like)
        times = torch.tensor([0.0, end], dtype=torch.float64)
        with torch.no_grad():
            ys = torchsde.sdeint(sde(self.model), like, times, bm=noise, method="euler", dt=DT)
        elapsed = time.process_time() - noise.first
        self.state = ys[-1]
        assert noise.count == steps
        assert bool(torch.isfinite(self.state).all())
        return elapsed


def sde(model: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    class SDE:
        noise_type, sde_type = "diagonal", "ito"

        def f_and_g_prod(
            self, t: torch.Tensor, y: torch.Tensor, v: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return model(y), v.mul_(2**0.5 * SIGMA)

    return SDE()


def _timed(source: Callable[[Any, Any], torch.Tensor], like: torch.Tensor) -> Any:
    """The same Brownian motion, which records when it is first called and how often."""

    class Timed:
        dtype, device, shape = like.dtype, like.device, like.shape
        levy_area_approximation = "none"
        first, count = 0.0, 0

        def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
            if self.count == 0:
                self.first = time.process_time()
            self.count += 1
            return source(ta, tb)

    return Timed()


def keep_freed_memory() -> None:
    """Make glibc keep memory that torch frees; otherwise each step may map and zero temporaries."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 1 << 30)
        mallopt(mmap_threshold, 1 << 30)
