"""Define the softmax problem on Poisson batches that all contestants solve, and our contestant."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.harness.contestants import CLIP, HORIZON, SIGMA, Case
from langevin import Phase, Problem, Weights
from langevin.engine.chain import Chain
from langevin.engine.kernels.normals import LANES
from langevin.engine.kernels.outputs.batches import draw_batch
from langevin.engine.kernels.outputs.drift import drift_outputs
from langevin.engine.layout import aligned_zeros
from langevin.model.weights import Method


@dataclass(frozen=True, eq=False)
class OutputsCase(Case):
    """A classification problem: normal inputs of norm about 1, pre-activations about 1, labels at random.

    In linear probing the features are those of the initial first layer.
    """

    outputs: int
    method: Method = "fft"
    rate: float = 1.0

    @cached_property
    def problem(self) -> Problem:
        """Return the problem: softmax loss, ReLU."""
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.samples, self.inputs)) / self.inputs**0.5
        return Problem(X, np.arange(self.samples) % self.outputs, "relu", "softmax")

    @cached_property
    def weights(self) -> Weights:
        """Return the initial weights of all contestants."""
        rng = np.random.default_rng(1)
        W = rng.standard_normal((self.width, self.inputs))
        return Weights(W, rng.standard_normal((self.width, self.outputs)) / self.width**0.5)

    @property
    def phase(self) -> Phase:
        """Return the schedule: flat clipping and noise."""
        return Phase(self.method, HORIZON, SIGMA, CLIP, sample_rate=self.rate)

    @cached_property
    def reducible(self) -> bool:
        """Tell whether the span is smaller than the input space and matters: probing does not read inputs."""
        return not self.probing and super().reducible

    @property
    def probing(self) -> bool:
        """Tell whether the head alone is trained."""
        return self.method == "lp"

    @property
    def shared(self) -> bool:
        """Tell whether all paths read the same features, and little else."""
        return self.probing and self.rate == 1

    def path_numbers(self, reduce: str) -> int:
        """Return how many numbers a path keeps in its largest array."""
        if self.shared:
            return self.samples * self.outputs
        return self.width * max(0 if self.probing else self.span(reduce).dim, round(self.rate * self.samples))

    @cached_property
    def features(self) -> np.ndarray:
        """Return the features at the start, shape (n, h)."""
        return self.problem.features(self.weights.W)

    @cached_property
    def batch(self) -> np.ndarray:
        """Return the samples of the batch on which drifts are compared: that of step 0 and key 0."""
        if self.rate == 1:
            return np.arange(self.samples)
        batch, words = np.zeros(self.samples + 1, np.int64), np.zeros((4, LANES), np.uint32)
        none, threshold = np.uint64(0), math.ceil(self.rate * 2**32)
        count = draw_batch(batch, np.arange(self.samples), threshold, 0, 0, none, none, words)
        return batch[:count]

    @cached_property
    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the clipped drift on `batch`, one sample at a time."""
        X, y, W, V = self.problem.X, self.problem.y, self.weights.W, self.weights.v
        drift_W, drift_V = np.zeros_like(W), np.zeros_like(V)
        for i in self.batch:
            z = W @ X[i]
            a = np.maximum(z, 0.0)
            f = V.T @ a
            residual = np.exp(f - f.max())
            residual /= residual.sum()
            residual[y[i]] -= 1
            gradient_V = np.outer(a, residual)
            gradient_W = np.outer((V @ residual) * (z > 0), X[i]) * (not self.probing)
            norm = np.sqrt((gradient_W**2).sum() + (gradient_V**2).sum())
            factor = min(1.0, CLIP / norm) / self.rate
            drift_V -= factor * gradient_V
            drift_W -= factor * gradient_W
        return drift_W, drift_V


class OursOutputs:
    """Our compiled step loop, as a run calls it; ``reduce`` as in `langevin.euler_maruyama`."""

    def __init__(self, case: OutputsCase, dtype: type, reduce: str, paths: int) -> None:
        reduced = case.reduction(reduce)
        self.paths, self.span = paths, reduced.span
        self.chain = Chain.build(case.request, reduced, dtype, key=(1, 2))
        self.scratch: Any = self.chain.scratch()
        self.results = self.chain.observer.empty(paths, per_neuron=False)
        self.chunk = self.chain.start(0, paths)

    @property
    def span_inputs(self) -> np.ndarray:
        """Return the inputs as the compiled code gets them, without padding."""
        return self.chain.data.X[:, : self.chain.data.inputs]

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self._unpack(self.chunk.thetas[0])

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        chain, theta = self.chain, self.chunk.thetas[0]
        number = chain.layout.dtype
        rule: Any = chain.rule(chain.schedule.phases[0])
        data, out = chain.probed or chain.data, aligned_zeros(theta.shape, number)
        drift_outputs(theta, out, data, rule._replace(noise=number(0), dt=number(1)), self.scratch)
        return self._unpack(out)

    def _unpack(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        W, V = self.chain.layout.unpack(theta)
        return W.astype(np.float64), V.astype(np.float64)

    def advance(self, steps: int) -> float:
        start = time.process_time()
        self.chain.advance(self.chunk, self.results, self.scratch, self.chunk.step + steps)
        elapsed = time.process_time() - start
        assert (self.results.diverged < 0).all()
        return elapsed
