"""The zeroth-order flow by an adaptive method: SciPy's DOP853, with limits to its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.integrate import DOP853

from langevin import _kernels
from langevin._engine import Chain
from langevin.problem import Problem, Weights
from langevin.schedule import Schedule

# steps a phase; and those after which a flow that may take shorter ones is too stiff
FEWEST_STEPS, MOST_STEPS, STIFF_STEPS = 50, 20_000, 20_000


class _Flow(DOP853):
    """Takes no shorter steps than ``shortest``, whatever their error."""

    shortest = 0.0
    forced = 0

    def _estimate_error_norm(self, K: np.ndarray, h: float, scale: np.ndarray) -> float:
        error = super()._estimate_error_norm(K, h, scale)
        if error < 1 or not abs(h) <= self.shortest:
            return error
        self.forced += 1
        # with this error the controller keeps the step as it is
        return 0.43


def follow(chain: Chain, rtol: float, atol: float) -> Iterator[np.ndarray]:
    """Yield the states at the chain's record times, in order, and end early where the method cannot go on.

    A state is overwritten by the next. BLAS should be kept on one thread.
    """
    times, scratch = chain.grid.times, chain.scratch()
    theta = chain.records.origin.copy()
    done = 0
    # before the first step nothing has to be integrated
    while done < len(times) and times[done] <= 0.0:
        yield theta
        done += 1
    for phase, start in zip(chain.schedule, chain.schedule.starts, strict=True):
        rule = chain.rule(phase)
        trained = chain.layout.head if phase.method == "lp" else chain.layout.size
        if phase.method == "lp":
            _kernels.freeze(theta, chain.data, scratch)

        def drift(t: float, y: np.ndarray, rule: _kernels.Rule = rule) -> np.ndarray:
            out = np.empty_like(y)
            _kernels.drift(y, out, chain.data, rule, scratch)
            return out

        with np.errstate(all="ignore"):
            if not np.isfinite(drift(start, theta[:trained])).all():
                return
            flow = _Flow(
                drift,
                start,
                theta[:trained].copy(),
                start + phase.time,
                max_step=phase.time / FEWEST_STEPS,
                rtol=rtol,
                atol=atol,
            )
            # only a ReLU's features make the drift jump; elsewhere a short step is a stiff flow's
            slides = phase.method == "fft" and chain.data.relu
            flow.shortest = phase.time / MOST_STEPS if slides else 0.0
            checked, steps = 1, 0
            while flow.status == "running":
                flow.step()
                steps += 1
                stiff = steps > STIFF_STEPS
                if slides and flow.forced >= checked:
                    # forced steps are right where the flow slides, wrong where it is stiff
                    checked = 2 * flow.forced
                    here = Weights(*chain.layout.unpack(flow.y))
                    stiff = flow.shortest > stability_limit(chain.reduction.problem, here, chain.schedule)
                if flow.status == "failed" or stiff or not np.isfinite(flow.y).all():
                    return
                dense = flow.dense_output()
                while done < len(times) and times[done] <= flow.t:
                    theta[:trained] = dense(times[done])
                    yield theta
                    done += 1
        theta[:trained] = flow.y
    for _ in times[done:]:
        yield theta


def stability_limit(problem: Problem, weights: Weights, schedule: Schedule) -> float:
    """``2 / lambda`` of the unclipped gradient flow at ``weights``, its curvature by Gauss-Newton."""
    X = problem.X
    z = X @ weights.W.T
    a, slopes = problem.activate(z), problem.slope(z)
    fine_tunes = any(phase.method == "fft" for phase in schedule)

    def kernel(u: np.ndarray) -> np.ndarray:
        """The tangent kernel times a vector, without the products of all pairs of samples."""
        out = a @ (a.T @ u)
        if fine_tunes:
            pull = (slopes.T @ (X * u[:, None])) * weights.v[:, None] ** 2
            out += np.einsum("ij,ij->i", X, slopes @ pull)
        return out

    largest = _largest_eigenvalue(kernel, problem.samples)
    if not np.isfinite(largest):
        return 0.0
    curvature = largest * (0.25 if problem.loss == "logistic" else 1.0)
    return 2 / curvature if curvature > 0 else np.inf


def _largest_eigenvalue(product: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """Of a positive semidefinite matrix, to a hundredth, by power iteration; NaN out of range."""
    u, found = 1 + np.arange(size) / size, 0.0
    for _ in range(100):
        u = product(u / np.linalg.norm(u))
        before, found = found, float(np.linalg.norm(u))
        if not np.isfinite(found):
            return np.nan
        if found - before <= 1e-3 * found:
            break
    return found
