"""A loop in plain JAX: one compiled ``lax.scan`` over the steps.

- The state of all paths is two flat arrays, because draws over short rows would not be vectorised.
- The generator is threefry, the fastest of JAX's on a processor.
- With ``draws`` in single precision, a double-precision state gets draws of 23 bits at half the cost.
"""

from __future__ import annotations

import time
from functools import cache
from typing import Any

import jax  # pyright: ignore[reportMissingImports]
import jax.numpy as jnp  # pyright: ignore[reportMissingImports]
import numpy as np

from benchmarks.harness.contestants import CLIP, DT, SIGMA, Case


class JaxDrift:
    """Clipped drift of ``paths`` ReLU networks under the square loss, flat clipping over all parameters."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int) -> None:
        self.paths, self.clip, self.dtype, self.span = paths, CLIP, dtype, case.span(reduce)
        X = self.span.coordinates(case.problem.X)
        self.shape = (paths, case.width, X.shape[1])
        with self.precision():
            self.X, self.y = jnp.asarray(X, dtype), jnp.asarray(case.problem.y, dtype)
            self.squared_norms = jnp.asarray((X**2).sum(1), dtype)
            W = self.span.coordinates(case.weights.W)
            self.start = tuple(
                jnp.tile(jnp.asarray(part, dtype).ravel(), paths) for part in (W, case.weights.v)
            )

    def precision(self) -> Any:
        """Enable double precision, which JAX disables by default."""
        return jax.enable_x64(self.dtype is np.float64)

    def unpack(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """``W`` and ``v`` of the first path, in double precision."""
        W, v = (np.asarray(part, np.float64) for part in state)
        return W.reshape(self.shape)[0], v.reshape(self.shape[:2])[0]

    def __call__(self, state: Any) -> Any:
        """Drift at a state, both as pairs of flat arrays."""
        W, v = state[0].reshape(self.shape), state[1].reshape(self.shape[:2])
        z = jnp.einsum("phk,nk->phn", W, self.X)
        a, slope = jnp.maximum(z, 0), (z > 0).astype(z.dtype)
        residuals = jnp.einsum("ph,phn->pn", v, a) - self.y
        norms = (a * a).sum(1) + self.squared_norms * jnp.einsum("ph,phn->pn", v * v, slope)
        residuals *= jnp.minimum(1, self.clip / (jnp.abs(residuals) * jnp.sqrt(norms)))
        drift_W = -jnp.einsum("phn,nk->phk", slope * residuals[:, None, :], self.X) * v[:, :, None]
        return drift_W.ravel(), -jnp.einsum("phn,pn->ph", a, residuals).ravel()


class JaxScan:
    """See the module."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, draws: type | None = None) -> None:
        self.paths, self.draws = paths, draws or dtype
        self.model = JaxDrift(case, dtype, reduce, paths)
        self.span, self.state, self.calls = self.model.span, self.model.start, 0
        self.program = cache(self._program)

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.state)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        with self.model.precision():
            return self.model.unpack(jax.jit(lambda state: self.model(state))(self.state))

    def advance(self, steps: int) -> float:
        self.calls += 1
        with self.model.precision():
            program, key = self.program(steps), jax.random.key(self.calls)
            start = time.process_time()
            self.state = jax.block_until_ready(program(self.state, key))
            elapsed = time.process_time() - start
        assert all(np.isfinite(part).all() for part in self.state)
        return elapsed

    def _program(self, steps: int) -> Any:
        """The compiled loop."""
        number = self.model.dtype
        dt, scale = number(DT), number(SIGMA * (2 * DT) ** 0.5)

        def step(carry: Any, index: Any) -> Any:
            state, key = carry
            keys = jax.random.split(jax.random.fold_in(key, index))
            state = tuple(
                part + dt * drift + scale * jax.random.normal(own, part.shape, self.draws).astype(number)
                for part, drift, own in zip(state, self.model(state), keys, strict=True)
            )
            return (state, key), None

        def run(state: Any, key: Any) -> Any:
            return jax.lax.scan(step, (state, key), jnp.arange(steps))[0][0]

        return jax.jit(run).lower(self.state, jax.random.key(0)).compile()
