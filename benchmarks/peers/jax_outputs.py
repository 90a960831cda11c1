"""A loop in plain JAX, compiled once.

- XLA turns ``fori_loop`` into the same loop as a ``lax.scan`` that collects nothing, but compiles it once for
  any number of steps.
- The drift is written for one path and mapped over the paths by ``vmap``.
- The sizes of arrays are static, so a batch is gathered into rows enough for all but one step in 10^9, with
  weights that are 0 in the rest. Its rows come from geometric gaps, a draw per row and none per sample.
- The states of all paths are flat arrays, because draws over short rows would not be vectorised.
- With ``draws`` in single precision, a double-precision state gets draws of 23 bits at half the cost.
"""

from __future__ import annotations

import time
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np
from scipy.stats import binom

from benchmarks.harness.contestants import CLIP, DT, SIGMA
from benchmarks.harness.outputs import OutputsCase

_BEYOND = 1e-9  # probability that a batch does not fit


class JaxOutputs:
    """Clipped drift of ``paths`` ReLU networks under the softmax loss, flat clipping, and its loop."""

    def __init__(
        self, case: OutputsCase, dtype: type, reduce: str, paths: int, draws: type | None = None
    ) -> None:
        self.case, self.paths, self.clip, self.dtype, self.draws = case, paths, CLIP, dtype, draws or dtype
        self.span = case.span(reduce)
        self.room = case.samples
        if case.rate < 1:
            self.room = min(case.samples, int(binom.isf(_BEYOND, case.samples, case.rate)) + 1)
        W, X = (self.span.coordinates(part) for part in (case.weights.W, case.problem.X))
        parts = (case.weights.v,) if case.probing else (W, case.weights.v)
        rows = case.features if case.probing else X
        self.shapes = [part.shape for part in parts]
        with self.precision():
            # of each sample: its features or inputs, its one-hot label, and their squared norm
            self.data = tuple(
                jnp.asarray(part, dtype) for part in (rows, case.problem.targets, (rows**2).sum(1))
            )
            self.state = tuple(jnp.tile(jnp.asarray(part, dtype).ravel(), paths) for part in parts)
            self.program = jax.jit(self._run).lower(self.state, jax.random.key(0), 0).compile()
        self.calls = 0

    def precision(self) -> Any:
        """Enable double precision, which JAX disables by default."""
        return jax.enable_x64(self.dtype is np.float64)

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self._unpack(self.state)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        rows, first = np.zeros(self.room, np.int32), self.case.batch(0)
        rows[: len(first)] = first
        with self.precision():
            weights = (np.arange(self.room) < len(first)) / self.dtype(self.case.rate)
            batch = jnp.tile(rows, (self.paths, 1)), jnp.tile(weights.astype(self.dtype), (self.paths, 1))
            return self._unpack(jax.jit(self._drift)(self.state, batch), moved=True)

    def advance(self, steps: int) -> float:
        self.calls += 1
        with self.precision():
            key = jax.random.key(self.calls)
            start = time.process_time()
            self.state = jax.block_until_ready(self.program(self.state, key, steps))
            elapsed = time.process_time() - start
        assert all(np.isfinite(part).all() for part in self.state)
        return elapsed

    def batches(self, key: Any) -> Any:
        """Rows of the paths' batches and their weights, shape (paths, room)."""
        gaps = jax.random.geometric(key, self.case.rate, (self.paths, self.room), dtype=np.int32)
        # a uniform draw of 0 gives an endless gap
        rows = jnp.cumsum(jnp.minimum(gaps, self.case.samples + 1), axis=1) - 1
        there = rows < self.case.samples
        return jnp.where(there, rows, 0), there / self.dtype(self.case.rate)

    def _unpack(self, state: Any, moved: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``W`` and ``V`` of the first path, in double precision; of a drift if ``moved``."""
        parts = [
            np.asarray(part, np.float64).reshape(-1, *shape)[0]
            for part, shape in zip(state, self.shapes, strict=True)
        ]
        if len(parts) == 1:
            W = self.span.coordinates(self.case.weights.W)
            return (0 * W if moved else W), parts[0]
        return parts[0], parts[1]

    def _drift(self, state: Any, batch: Any) -> Any:
        """Drift at a state, both as flat arrays; ``batch`` is not used for full batches."""
        parts = [part.reshape(self.paths, *shape) for part, shape in zip(state, self.shapes, strict=True)]
        one = self._probe if self.case.probing else self._tune
        if self.case.rate < 1:
            rows, weights = batch
            data = (*(part[rows] for part in self.data), weights)
            drifts = jax.vmap(one)(parts, data)
        else:
            drifts = jax.vmap(lambda path: one(path, (*self.data, None)))(parts)
        return tuple(drift.ravel() for drift in drifts)

    def _tune(self, parts: Any, data: Any) -> Any:
        (W, V), (X, Y, lengths, weights) = parts, data
        A = jnp.maximum(X @ W.T, 0)
        R = jax.nn.softmax(A @ V) - Y
        D = jnp.where(A > 0, R @ V.T, 0)
        norms = (A * A).sum(1) * (R * R).sum(1) + lengths * (D * D).sum(1)
        factors = self._factors(norms, weights)
        return -(D.T @ (factors[:, None] * X)), -(A.T @ (factors[:, None] * R))

    def _probe(self, parts: Any, data: Any) -> Any:
        (V,), (A, Y, lengths, weights) = parts, data
        R = jax.nn.softmax(A @ V) - Y
        factors = self._factors(lengths * (R * R).sum(1), weights)
        return (-(A.T @ (factors[:, None] * R)),)

    def _factors(self, norms: Any, weights: Any) -> Any:
        factors = jnp.minimum(1, self.clip / jnp.sqrt(norms))
        return factors if weights is None else factors * weights

    def _run(self, state: Any, key: Any, steps: Any) -> Any:
        number = self.dtype
        dt, scale = number(DT), number(SIGMA * (2 * DT) ** 0.5)

        def step(index: Any, state: Any) -> Any:
            own, *keys = jax.random.split(jax.random.fold_in(key, index), 1 + len(state))
            drifts = self._drift(state, self.batches(own) if self.case.rate < 1 else None)
            return tuple(
                part + dt * drift + scale * jax.random.normal(key, part.shape, self.draws).astype(number)
                for part, drift, key in zip(state, drifts, keys, strict=True)
            )

        return jax.lax.fori_loop(0, steps, step, state)
