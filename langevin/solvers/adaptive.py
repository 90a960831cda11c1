"""Solve the zeroth-order flow adaptively: DOP853, or other methods if it is stiff or jumps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.integrate import DOP853, LSODA, OdeSolver

from langevin.engine.kernels import types
from langevin.engine.system import System
from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from langevin.solvers.report import FEWEST_STEPS, Report
from langevin.support.validate import FloatArray

# steps after which a method for stiff flows takes over, and those that end in a refusal
STIFF_STEPS, MOST_STEPS = 20_000, 1_000_000
# the share of a phase from which on a rejected step is blamed on the hyperplane that it meets
JUMP_STEP = 1e-3
# unknowns of which the dense Jacobian is factorised
MOST_IMPLICIT = 2000


class Jump(Exception):
    """A step was rejected while a neuron was changing sides."""


class _Watched:
    """A drift that records whether the activity of neurons has changed since the last check."""

    def __init__(self, system: System, rule: Any, scratch: Any, watch: bool) -> None:
        self._system, self._rule, self._scratch, self._watch = system, rule, scratch, watch
        n, width = len(system.reduction.problem.X), system.layout.width
        # where compiled code of scalar heads leaves the ReLU's derivatives
        self._slopes = scratch.Z[:n, :width] if isinstance(scratch, types.Scratch) else np.empty((n, width))
        self._kept = np.empty_like(self._slopes)
        self.changed = False

    def __call__(self, t: float, y: np.ndarray) -> np.ndarray:
        out = np.empty_like(y)
        self._system.drift(y, out, self._rule, self._scratch)
        if self._watch and not self._system.reduction.scalar:
            W, _ = self._system.layout.unpack(y)
            np.greater(self._system.reduction.problem.X @ W.T, 0, out=self._slopes)
        if self._watch and not self.changed:
            self.changed = not np.array_equal(self._slopes, self._kept)
        return out

    def keep(self) -> None:
        """Compare with the last evaluation from now on."""
        if self._watch:
            np.copyto(self._kept, self._slopes)
        self.changed = False


class _Flow(DOP853):
    """Raise `Jump` if a step not longer than ``longest`` fails across a hyperplane."""

    longest = 0.0

    def __init__(self, drift: _Watched, *arguments: Any, **options: Any) -> None:
        super().__init__(drift, *arguments, **options)
        self._drift = drift

    def _estimate_error_norm(self, K: np.ndarray, h: float, scale: np.ndarray) -> float:
        error = super()._estimate_error_norm(K, h, scale)
        if error < 1:
            self._drift.keep()
        elif self._drift.changed and abs(h) <= self.longest:
            raise Jump
        else:
            # the next attempt starts where this one did
            self._drift.changed = False
        return error


def follow(
    system: System, times: FloatArray, rtol: float, atol: float, report: Report
) -> Iterator[np.ndarray]:
    """Yield the states at ``times``, in order, and end early where no method can go on.

    A state is overwritten by the next. BLAS should be kept on one thread.
    """
    name = system.problem.activation
    kinked = name != "relu" and not ACTIVATIONS[name].smooth
    if kinked and any(phase.method == "fft" for phase in system.schedule):
        raise ValueError(
            f"dt must be given with activation {name!r}, got None: of activations with kinks, the adaptive "
            "method follows 'relu' alone"
        )
    theta = system.origin.copy()
    done = int(np.searchsorted(times, 0.0, side="right"))
    # before the first step nothing has to be integrated
    for _ in range(done):
        yield theta
    for phase, start in zip(system.schedule, system.schedule.starts, strict=True):
        end = done + int(np.searchsorted(times[done:], start + phase.time, side="right"))
        wanted = times[done:end]
        for _ in _follow_phase(system, phase, start, wanted, theta, rtol, atol, report):
            done += 1
            yield theta
        if done < end or not np.isfinite(theta).all():
            return
    for _ in times[done:]:
        yield theta


def _follow_phase(
    system: System,
    phase: Phase,
    start: float,
    wanted: np.ndarray,
    theta: np.ndarray,
    rtol: float,
    atol: float,
    report: Report,
) -> Iterator[None]:
    """Advance ``theta`` to the ``wanted`` times and to the end of the phase; not finite on failure."""
    from langevin.solvers import sliding

    rule, scratch, stop = system.rule(phase), system.scratch(), start + phase.time
    probing = phase.method == "lp"
    jumps = not (probing or ACTIVATIONS[system.problem.activation].smooth)
    trained = system.layout.head if probing else system.layout.size
    if probing:
        system.freeze(theta, scratch)
    drift = _Watched(system, rule, scratch, watch=jumps)
    options: dict[str, Any] = dict(max_step=phase.time / FEWEST_STEPS, rtol=rtol, atol=atol)
    with np.errstate(all="ignore"):
        if not np.isfinite(drift(start, theta[:trained])).all():
            theta[:] = np.nan
            return
        drift.keep()
        flow: OdeSolver = _Flow(drift, start, theta[:trained].copy(), stop, **options)
        flow.longest = JUMP_STEP * phase.time
        report.used("DOP853")
        steps, done = 0, 0
        while flow.status == "running":
            try:
                drift.changed = False
                flow.step()
            except Jump:
                break
            steps += 1
            if flow.status == "failed" or not np.isfinite(flow.y).all() or steps > MOST_STEPS:
                theta[:] = np.nan
                return
            if done < len(wanted) and wanted[done] <= flow.t:
                dense = flow.dense_output()
                while done < len(wanted) and wanted[done] <= flow.t:
                    theta[:trained] = dense(wanted[done])
                    yield
                    done += 1
            if steps == STIFF_STEPS and flow.status == "running":
                if jumps:
                    break
                if trained <= MOST_IMPLICIT:
                    flow = LSODA(drift, flow.t, flow.y, stop, **options)
                    report.used("LSODA")
        theta[:trained] = flow.y
        report.error += rtol * steps
        if flow.status == "running":
            yield from sliding.follow(system, rule, flow.t, stop, wanted[done:], theta, rtol, report)


def stability_limit(problem: Problem, weights: Weights, schedule: Schedule) -> float:
    """``2 / lambda`` of the unclipped gradient flow at ``weights``, its curvature by Gauss-Newton."""
    X, V = problem.X, weights.v.reshape(len(weights.v), -1)
    z = X @ weights.W.T
    a, slopes = problem.activate(z), problem.slope(z)
    fine_tunes = any(phase.method == "fft" for phase in schedule)

    def kernel(u: np.ndarray) -> np.ndarray:
        """The tangent kernel times a vector, without the products of all pairs of samples."""
        u = u.reshape(problem.targets.shape)
        out = a @ (a.T @ u)
        if fine_tunes:
            layer = (slopes * (u @ V.T)).T @ X
            out += (slopes * (X @ layer.T)) @ V
        return out.ravel()

    largest = _largest_eigenvalue(kernel, problem.targets.size)
    if not np.isfinite(largest):
        return 0.0
    curvature = largest * LOSSES[problem.loss].smoothness
    return 2 / curvature if curvature > 0 else np.inf


def _largest_eigenvalue(product: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    """Return the largest eigenvalue of a positive semidefinite matrix to 1 %; NaN out of range."""
    u, found = 1 + np.arange(size) / size, 0.0
    for _ in range(100):
        u = product(u / np.linalg.norm(u))
        before, found = found, float(np.linalg.norm(u))
        if not np.isfinite(found):
            return np.nan
        if found - before <= 1e-3 * found:
            break
    return found
