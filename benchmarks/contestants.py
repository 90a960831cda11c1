"""Who takes part in a benchmark: this package's chain and torchsde, on the same problem.

Each contestant has ``paths``, ``drift()`` in the problem's coordinates at the starting point, and
``advance(steps)``, which returns the processor's seconds that so many steps of all its paths took: on a
quiet machine wall time, on a busy one without the time that others had.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from benchmarks.peers import TorchDrift, run_torchsde
from langevin import Phase, Problem, Schedule, Weights
from langevin import _kernels as kernels
from langevin._engine import Chain, Results
from langevin._layout import aligned_zeros
from langevin._span import Span
from langevin.reduced import Reduction, Request, reduction
from langevin.schedule import grid

CLIP, SIGMA = 1.0, 0.1
DT = 2.0**-13  # exact in single precision, too
HORIZON = 2**30 * DT  # never reached


@dataclass(frozen=True, eq=False)
class Case:
    """A problem of the regression kind: normal inputs of norm about 1, pre-activations about 1."""

    inputs: int
    width: int
    samples: int

    @cached_property
    def problem(self) -> Problem:
        """Square loss, ReLU."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.samples, self.inputs)) / self.inputs**0.5
        return Problem(X, rng.standard_normal(self.samples), "relu", "square")

    @cached_property
    def weights(self) -> Weights:
        """Where all contestants start."""
        rng = np.random.default_rng(1)
        W = rng.standard_normal((self.width, self.inputs))
        return Weights(W, rng.standard_normal(self.width) / self.width**0.5)

    @property
    def phase(self) -> Phase:
        """Full fine-tuning with flat clipping and noise."""
        return Phase("fft", HORIZON, SIGMA, CLIP)

    @cached_property
    def request(self) -> Request:
        """What `langevin.euler_maruyama` would be asked for."""
        schedule = Schedule([self.phase])
        return Request(self.problem, self.weights, schedule, grid(schedule, DT, [HORIZON]))

    def reduction(self, reduce: str) -> Reduction:
        """What is simulated."""
        return reduction(reduce, self.request)

    def span(self, reduce: str) -> Span:
        """Coordinates that the data are given in."""
        return self.reduction(reduce).span

    @cached_property
    def reducible(self) -> bool:
        """Whether the span is smaller than the input space."""
        return not self.span("auto").trivial

    @cached_property
    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """The clipped drift, one sample's gradient after the other."""
        X, y, W, v = self.problem.X, self.problem.y, self.weights.W, self.weights.v
        drift_W, drift_v = np.zeros_like(W), np.zeros_like(v)
        for x, target in zip(X, y, strict=True):
            z = W @ x
            a = np.maximum(z, 0.0)
            residual = v @ a - target
            gradient_W, gradient_v = residual * np.outer(v * (z > 0), x), residual * a
            norm = np.sqrt((gradient_W**2).sum() + (gradient_v**2).sum())
            factor = min(1.0, CLIP / norm) if norm > 0 else 1.0
            drift_W -= factor * gradient_W
            drift_v -= factor * gradient_v
        return drift_W, drift_v

    def error(self, contestant: Contestant) -> float:
        """Distance of a contestant's drift to `drift`, relative to its norm."""
        drift_W, drift_v = contestant.drift()
        squared = ((drift_W - self.drift[0]) ** 2).sum() + ((drift_v - self.drift[1]) ** 2).sum()
        return float(np.sqrt(squared / ((self.drift[0] ** 2).sum() + (self.drift[1] ** 2).sum())))


class Contestant(Protocol):
    """See the module."""

    paths: int

    def drift(self) -> tuple[np.ndarray, np.ndarray]: ...

    def advance(self, steps: int) -> float: ...


class Ours:
    """The compiled step loop, as a run calls it; ``reduce`` as in `langevin.euler_maruyama`."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int) -> None:
        self.paths = paths
        request = case.request
        self.chain = Chain.build(
            case.problem,
            case.weights,
            request.schedule,
            request.grid,
            case.reduction(reduce),
            dtype,
            key=(1, 2),
        )
        self.scratch = self.chain.scratch()
        self.results = Results.empty(paths, len(request.grid.times), case.width, False, ())
        self.chunk = self.chain.start(0, paths)

    @property
    def span_inputs(self) -> np.ndarray:
        """Inputs as the compiled code gets them, without padding."""
        data = self.chain.data
        return data.X[: data.y.size, : data.inputs]

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        chain = self.chain
        theta = chain.records.origin
        out = aligned_zeros(theta.shape, chain.layout.dtype)
        kernels.drift(theta, out, chain.data, chain.rule(chain.schedule.phases[0]), self.scratch)
        drift_W, drift_v = (array.astype(np.float64) for array in chain.layout.unpack(out))
        span = chain.reduction.span
        return (drift_W if span.trivial else drift_W @ span.basis.T), drift_v

    def advance(self, steps: int) -> float:
        start = time.process_time()
        self.chain.advance(self.chunk, self.results, self.scratch, self.chunk.step + steps)
        elapsed = time.process_time() - start
        assert (self.results.diverged < 0).all()
        return elapsed


class TorchSDE:
    """torchsde's Euler solver on a batch of paths; ``reduce="auto"`` gives it the reduced data, too."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, fresh: bool) -> None:
        self.paths, self.fresh = paths, fresh
        self.span = case.span(reduce)
        self.model = TorchDrift(
            self.span.coordinates(case.problem.X), case.problem.y, case.width, CLIP, paths, dtype
        )
        self.state: Any = self.model.pack(self.span.coordinates(case.weights.W), case.weights.v)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        drift_W, drift_v = self.model.unpack(self.model(self.state))
        return (drift_W if self.span.trivial else drift_W @ self.span.basis.T), drift_v

    def advance(self, steps: int) -> float:
        self.state, elapsed = run_torchsde(self.model, self.state, SIGMA, DT, steps, self.fresh)
        return elapsed
