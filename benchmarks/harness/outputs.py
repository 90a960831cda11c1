"""Define the softmax problem on Poisson batches that all contestants solve, and our contestant."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import softmax

from benchmarks.harness.contestants import CLIP, HORIZON, SIGMA, Case
from langevin import Phase, Problem, Schedule, Weights
from langevin.engine.chain import Chain
from langevin.engine.kernels.normals import LANES
from langevin.engine.kernels.outputs.batches import draw_batch
from langevin.model.weights import Method

KEY = (1, 2)


@dataclass(frozen=True, eq=False)
class OutputsCase(Case):
    """A classification problem: normal inputs of norm about 1, pre-activations about 1, labels at random.

    In linear probing the features are those of the initial first layer.
    """

    outputs: int
    rate: float = 1.0
    method: Method = "fft"

    @cached_property
    def problem(self) -> Problem:
        """Return the problem: softmax loss, ReLU."""
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

    def chain(self, dtype: type, reduce: str = "none", sigma: float = SIGMA) -> Chain:
        """Return the chain of a run, on the processor."""
        schedule = Schedule([replace(self.phase, sigma=sigma)])
        request = replace(self.request, schedule=schedule)
        return Chain.build(request, self.reduction(reduce), dtype, key=KEY)

    def batch(self, path: int) -> np.ndarray:
        """Return the samples of a path's first batch, as a run draws it."""
        if self.rate == 1:
            return np.arange(self.samples)
        rows, words = np.empty(self.samples + 1, np.int64), np.empty((4, LANES), np.uint32)
        key, threshold = (np.uint64(word) for word in KEY), math.ceil(self.rate * 2**32)
        return rows[: draw_batch(rows, np.arange(self.samples), threshold, 0, path, *key, words)]

    @cached_property
    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        """Compute the clipped drift of the first path's first step."""
        return self.drift_of(0)

    def drift_of(self, path: int) -> tuple[np.ndarray, np.ndarray]:
        """Compute the clipped drift of a path's first step, one sample at a time."""
        X, Y, W, V = self.problem.X, self.problem.targets, self.weights.W, self.weights.v
        drift_W, drift_V = np.zeros_like(W), np.zeros_like(V)
        for i in self.batch(path):
            z = W @ X[i]
            a = np.maximum(z, 0.0)
            residual = softmax(V.T @ a) - Y[i]
            gradients = [(drift_V, np.outer(a, residual))]
            if not self.probing:
                gradients.append((drift_W, np.outer((V @ residual) * (z > 0), X[i])))
            norm = np.sqrt(sum((gradient**2).sum() for _, gradient in gradients))
            for drift, gradient in gradients:
                drift -= min(1.0, CLIP / norm) / self.rate * gradient
        return drift_W, drift_V


class OursOutputs:
    """Our compiled step loop, as a run calls it; ``reduce`` as in `langevin.euler_maruyama`."""

    def __init__(self, case: OutputsCase, dtype: type, reduce: str, paths: int) -> None:
        self.case, self.reduce, self.paths, self.span = case, reduce, paths, case.span(reduce)
        self.chain = case.chain(dtype, reduce)
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
        still = self.case.chain(self.chain.layout.dtype, self.reduce, sigma=0.0)
        still = replace(still, grid=replace(still.grid, dt=1.0))
        chunk, results = still.start(0, 1), still.observer.empty(1, per_neuron=False)
        still.advance(chunk, results, self.scratch, 1)
        return self._unpack(chunk.thetas[0] - still.origin)

    def _unpack(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        W, V = self.chain.layout.unpack(theta)
        return W.astype(np.float64), V.astype(np.float64)

    def advance(self, steps: int) -> float:
        start = time.process_time()
        self.chain.advance(self.chunk, self.results, self.scratch, self.chunk.step + steps)
        elapsed = time.process_time() - start
        assert (self.results.diverged < 0).all()
        return elapsed
