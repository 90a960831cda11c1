"""diffrax's Euler solver under ``jit``, with constant steps; only the end is saved.

- The state is that of `jax_scan`. The diffusion is a multiple of the identity, which costs one product.
- Without derivatives `ForwardMode` is the cheapest loop: neither checkpoints nor a bound on steps.
- Two sources of noise: `UnsafeBrownianPath`, which draws fresh increments, and `VirtualBrownianTree`.
"""

from __future__ import annotations

import time
from typing import Any

import diffrax  # pyright: ignore[reportMissingImports]
import jax  # pyright: ignore[reportMissingImports]
import lineax  # pyright: ignore[reportMissingImports]
import numpy as np

from benchmarks.harness.contestants import DT, SIGMA, Case
from benchmarks.peers.jax_scan import JaxDrift

# the tree is as deep as a run of this many steps requires, even if fewer are timed
TREE_STEPS = 1024


class Diffrax:
    """``diffeqsolve`` on a batch of paths; with ``tree`` the increments belong to one Brownian path."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, tree: bool) -> None:
        self.paths, self.tree, self.calls = paths, tree, 0
        self.model = JaxDrift(case, dtype, reduce, paths)
        self.span, self.state = self.model.span, self.model.start
        self.program = jax.jit(self._solve)

    def position(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.state)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        with self.model.precision():
            return self.model.unpack(jax.jit(lambda state: self.model(state))(self.state))

    def advance(self, steps: int) -> float:
        """Compile on the first call, which counts the compilation."""
        self.calls += 1
        with self.model.precision():
            end, horizon = (self.model.dtype(count * DT) for count in (steps, max(steps, TREE_STEPS)))
            key = jax.random.key(self.calls)
            start = time.process_time()
            self.state, done = jax.block_until_ready(self.program(self.state, end, horizon, key))
            elapsed = time.process_time() - start
        assert int(done) == steps
        assert all(np.isfinite(part).all() for part in self.state)
        return elapsed

    def _solve(self, state: Any, end: Any, horizon: Any, key: Any) -> Any:
        number = self.model.dtype
        like = jax.eval_shape(lambda: state)
        scale = lineax.IdentityLinearOperator(like) * number(2**0.5 * SIGMA)
        noise = (
            diffrax.VirtualBrownianTree(number(0), horizon, number(DT / 2), like, key)
            if self.tree
            else diffrax.UnsafeBrownianPath(like, key)
        )
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(lambda t, y, args: self.model(y)),
            diffrax.ControlTerm(lambda t, y, args: scale, noise),
        )
        solution = diffrax.diffeqsolve(
            terms,
            diffrax.Euler(),
            t0=number(0),
            t1=end,
            dt0=number(DT),
            y0=state,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.ConstantStepSize(),
            adjoint=diffrax.ForwardMode(),
            max_steps=None,
        )
        ys: Any = solution.ys
        return jax.tree.map(lambda part: part[0], ys), solution.stats["num_steps"]
