"""The problem with K outputs and Poisson batches that contestants on a GPU solve, and the contestants."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import softmax

from benchmarks.harness.contestants import CLIP, DT, HORIZON, SIGMA
from benchmarks.harness.gpu import euler_steps
from benchmarks.peers.torchsde_outputs import TorchOutputsDrift
from langevin import Phase, Problem, Schedule, Weights
from langevin.engine.chain import Chain
from langevin.engine.gpu.chain import DeviceChain
from langevin.engine.gpu.outputs import OutputsEnsemble
from langevin.engine.kernels.normals import LANES
from langevin.engine.kernels.outputs.batches import draw_batch
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.model.steps import grid

KEY = (1, 2)


@dataclass(frozen=True, eq=False)
class OutputsCase:
    """K classes: normal inputs of norm about 1, pre-activations and outputs about 1; softmax, ReLU."""

    inputs: int
    width: int
    samples: int
    outputs: int
    rate: float = 1.0

    @cached_property
    def problem(self) -> Problem:
        """Return the problem."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.samples, self.inputs)) / self.inputs**0.5
        classes = rng.permutation(np.arange(self.samples) % self.outputs)
        return Problem(X, classes, "relu", "softmax")

    @cached_property
    def weights(self) -> Weights:
        """Return the initial weights of all contestants."""
        rng = np.random.default_rng(1)
        W = rng.standard_normal((self.width, self.inputs))
        return Weights(W, rng.standard_normal((self.width, self.outputs)) / self.width**0.5)

    def chain(self, dtype: type, sigma: float = SIGMA) -> Chain:
        """Return the chain of full fine-tuning with flat clipping, on the processor."""
        schedule = Schedule([Phase("fft", HORIZON, sigma, CLIP, sample_rate=self.rate)])
        request = Request(self.problem, self.weights, schedule, grid(schedule, DT, [HORIZON]))
        return Chain.build(request, reduction("none", request), dtype, key=KEY)

    def batch(self, path: int) -> np.ndarray:
        """Return the samples of a path's first batch, as the processor draws it."""
        n = self.samples
        rows, words = np.empty(n + 1, np.int64), np.empty((4, LANES), np.uint32)
        threshold = int(np.ceil(self.rate * 2**32))
        key = (np.uint64(word) for word in KEY)
        return rows[: draw_batch(rows, np.arange(n), threshold, 0, path, *key, words)]

    def drift(self, path: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute the clipped drift of a path's first step, one sample at a time."""
        X, Y, W, V = self.problem.X, self.problem.targets, self.weights.W, self.weights.v
        drift_W, drift_V = np.zeros_like(W), np.zeros_like(V)
        for i in range(self.samples) if self.rate == 1 else self.batch(path):
            z = W @ X[i]
            a = np.maximum(z, 0.0)
            residual = softmax(V.T @ a) - Y[i]
            gradient_W, gradient_V = np.outer((V @ residual) * (z > 0), X[i]), np.outer(a, residual)
            factor = min(1.0, CLIP / np.sqrt((gradient_W**2).sum() + (gradient_V**2).sum())) / self.rate
            drift_W -= factor * gradient_W
            drift_V -= factor * gradient_V
        return drift_W, drift_V

    def error(self, contestant: Any) -> float:
        """Return the distance of a contestant's drift from `drift`, relative to its norm."""
        expected = self.drift(contestant.path)
        squared = [((a - b) ** 2).sum() for a, b in zip(contestant.drift(), expected, strict=True)]
        return float(np.sqrt(sum(squared) / sum((b**2).sum() for b in expected)))


class OurOutputs:
    """Our contestant: the ensemble that a run on a device advances. It is checked by its last path."""

    def __init__(self, case: OutputsCase, dtype: type, paths: int, device: torch.device) -> None:
        self.case, self.dtype, self.paths, self.device = case, dtype, paths, device
        self.path = paths - 1
        self.ensemble = self._start(DeviceChain.of(case.chain(dtype), device, 1))

    def _start(self, chain: DeviceChain) -> OutputsEnsemble:
        ensemble = chain.ensemble(chain.start(0, self.paths), np.full(self.paths, -1))
        assert isinstance(ensemble, OutputsEnsemble)
        ensemble.enter(0)
        return ensemble

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        chain = DeviceChain.of(self.case.chain(self.dtype, sigma=0.0), self.device, 1)
        still: Any = replace(chain, grid=replace(chain.grid, dt=1.0))
        ensemble = self._start(still)
        ensemble.advance(1)
        moved = ensemble.theta[-1].cpu().numpy() - chain.origin
        drift_W, drift_V = chain.layout.unpack(moved)
        return drift_W.astype(np.float64), drift_V.astype(np.float64)

    def advance(self, steps: int) -> None:
        self.ensemble.advance(steps)

    def finite(self) -> bool:
        return bool((self.ensemble.diverged < 0).all())


class _Drift(TorchOutputsDrift):
    """The peer's drift on a device."""

    def __init__(self, device: torch.device, *arguments: Any) -> None:
        super().__init__(*arguments)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))


class TorchSDEOutputs:
    """torchsde's Euler solver on the same number of paths and on all samples."""

    path = 0

    def __init__(self, case: OutputsCase, dtype: type, paths: int, device: torch.device, fresh: bool) -> None:
        self.fresh, X, Y = fresh, case.problem.X, case.problem.targets
        self.model = _Drift(device, X, Y, case.width, CLIP, paths, dtype)
        self.state = self.model.pack(case.weights.W, case.weights.v).to(device)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.model(self.state).cpu())

    def advance(self, steps: int) -> None:
        self.state = euler_steps(self.model, self.state, steps, self.fresh)

    def finite(self) -> bool:
        return bool(torch.isfinite(self.state).all())
