"""Define the problem that all contestants solve, their interface, and our contestant."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from langevin import Phase, Problem, Schedule, Weights
from langevin.engine.chain import Chain
from langevin.engine.kernels import descend
from langevin.engine.layout import aligned_zeros
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Reduction, Request
from langevin.engine.reductions.span import Span
from langevin.model.steps import grid

CLIP, SIGMA = 1.0, 0.1
DT = 2.0**-13  # also exact in single precision
HORIZON = 2**30 * DT  # never reached


@dataclass(frozen=True, eq=False)
class Case:
    """A regression problem: normal inputs of norm about 1, pre-activations about 1."""

    inputs: int
    width: int
    samples: int

    @cached_property
    def problem(self) -> Problem:
        """Return the problem: square loss, ReLU."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.samples, self.inputs)) / self.inputs**0.5
        return Problem(X, rng.standard_normal(self.samples), "relu", "square")

    @cached_property
    def weights(self) -> Weights:
        """Return the initial weights of all contestants."""
        rng = np.random.default_rng(1)
        W = rng.standard_normal((self.width, self.inputs))
        return Weights(W, rng.standard_normal(self.width) / self.width**0.5)

    @property
    def phase(self) -> Phase:
        """Return the schedule: full fine-tuning with flat clipping and noise."""
        return Phase("fft", HORIZON, SIGMA, CLIP)

    @property
    def shared(self) -> bool:
        """Tell whether what a step reads most of is the same for all paths."""
        return False

    def path_numbers(self, reduce: str) -> int:
        """Return how many numbers a path keeps in its largest array."""
        return self.width * max(self.span(reduce).dim, self.samples)

    @cached_property
    def request(self) -> Request:
        """Return the request that `langevin.euler_maruyama` would make."""
        schedule = Schedule([self.phase])
        return Request(self.problem, self.weights, schedule, grid(schedule, DT, [HORIZON]))

    def reduction(self, reduce: str) -> Reduction:
        """Return the reduction that is simulated."""
        return reduction(reduce, self.request)

    def span(self, reduce: str) -> Span:
        """Return the coordinates of the data."""
        return self.reduction(reduce).span

    @cached_property
    def reducible(self) -> bool:
        """Tell whether the span is smaller than the input space."""
        return not self.span("auto").trivial

    @cached_property
    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the clipped drift, one sample at a time."""
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
        """Return the distance of a contestant's drift from `drift`, relative to its norm."""
        drift_W, drift_v = contestant.drift()
        return relative_error((contestant.span.embed(drift_W), drift_v), self.drift)


def relative_error(found: tuple[np.ndarray, np.ndarray], expected: tuple[np.ndarray, np.ndarray]) -> float:
    """Return the distance of a drift of ``W`` and ``v`` from another, relative to the norm of that."""
    squared = sum(((a - b) ** 2).sum() for a, b in zip(found, expected, strict=True))
    return float(np.sqrt(squared / sum((b**2).sum() for b in expected)))


class Contestant(Protocol):
    """A batch of ``paths`` Euler-Maruyama chains, in coordinates of ``span``."""

    paths: int
    span: Span

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``W`` and ``v`` of the first path."""
        ...

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the drift of the first path at its current state."""
        ...

    def advance(self, steps: int) -> float:
        """Take steps and return the processor time that they took, in seconds.

        On a quiet machine this equals wall time; on a busy one it excludes the time of other processes.
        """
        ...


class Ours:
    """Our compiled step loop, as a run calls it; ``reduce`` as in `langevin.euler_maruyama`."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int) -> None:
        reduced = case.reduction(reduce)
        self.paths, self.span = paths, reduced.span
        self.chain = Chain.build(case.request, reduced, dtype, key=(1, 2))
        self.scratch = self.chain.scratch()
        self.results = self.chain.observer.empty(paths, per_neuron=False)
        self.chunk = self.chain.start(0, paths)

    @property
    def span_inputs(self) -> np.ndarray:
        """Return the inputs as the compiled code gets them, without padding."""
        data = self.chain.data
        return data.X[: self.chain.problem.samples, : data.inputs]

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self._unpack(self.chunk.thetas[0])

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        chain = self.chain
        theta = self.chunk.thetas[0]
        out = aligned_zeros(theta.shape, chain.layout.dtype)
        descend.drift(theta, out, chain.data, chain.rule(chain.schedule.phases[0]), self.scratch)
        return self._unpack(out)

    def _unpack(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        W, v = self.chain.layout.unpack(theta)
        return W.astype(np.float64), v.astype(np.float64)

    def advance(self, steps: int) -> float:
        start = time.process_time()
        self.chain.advance(self.chunk, self.results, self.scratch, self.chunk.step + steps)
        elapsed = time.process_time() - start
        assert (self.results.diverged < 0).all()
        return elapsed
