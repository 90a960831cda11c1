"""Distance between the diffusion and its zeroth-order approximation (section 1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.distance.flow import Flow, State
from bounds.support.covers import ALL, ANY, CLIPPED, Covers, declares
from bounds.support.growth import pull
from bounds.support.phases import probing_first, until
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

Kind = Literal["paper", "monotone", "lambert", "ode"]

SOURCES = {
    "paper": "Theorem 2.2 of [1]",
    "monotone": "new (1a): Theorem 2.2 of [1] with the LP drift's monotonicity",
    "lambert": "new (1b), data-free",
    "ode": "new (1b)",
}
CONVEX = ("logistic", "square", "huber")
_MONOTONE = Covers(CONVEX, ANY, lp=ALL, fft=CLIPPED, late_lp=CLIPPED)
COVERS = {
    "paper": Covers(ANY, ANY, lp=CLIPPED, fft=CLIPPED),
    "monotone": _MONOTONE,
    # of the drift, both use its bound alone: |b| <= n C
    "lambert": _MONOTONE,
    "ode": Covers(CONVEX, ("relu", "linear"), lp=ALL, fft=("flat",), late_lp=("flat",)),
}
LIPSCHITZ = Covers(ANY, ANY)
KINDS = ("paper", "monotone", "lambert", "ode")


@declares(COVERS)
def approximation_error(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    kind: Kind = "paper",
) -> Band:
    r"""Bound ``E ||theta_t - theta~_t||^2`` between diffusion and zeroth-order approximation.

    Statement
        - ``"paper"``, Theorem 2.2 of [1]_: ``(sigma sqrt(2 p t) + 2 n C t)^2``; over phases
          ``(sqrt(2 sum_k sigma_k^2 p_k t_k) + 2 n sum_k C_k t_k)^2``.
        - ``"monotone"``, new (1a): as above, but a linear-probing phase before any full fine-tuning
          adds nothing to the second term, since its clipped drift is minus the gradient of a convex
          function. With LP alone ``2 h sigma^2 t``, clipped or not.
        - ``"lambert"``, new (1b) without data: ``e' <= 2 sigma^2 p + 4 n C sqrt(e)``, solved by
          Lambert's W; never above ``"monotone"``.
        - ``"ode"``, new (1b): in coordinates of the data's span
          ``e' <= 2 sigma^2 p_s + 2 min{(n C + beta) sqrt(e), k_0 + n C ||theta~|| + beta sqrt(e)}``,
          ``p_s = h (k + 1)``, ``beta`` the norm of the drift at ``theta~_t``, ``k_0`` twice the sum of
          the largest ``-f r_i``: ``2 n Omega`` (logistic) or ``||y||^2 / 2`` (square), plus ``2 sigma^2 h
          (d - k) t`` for the rest. Needs the zeroth-order path, which it integrates.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how. ``theta`` holds all of ``(W, v)``; LP leaves ``W``.
    times : array_like, shape (m,), optional
        Times of the diffusion, within the schedule.
    kind : {"paper", "monotone", "lambert", "ode"}
        The bound, from the loosest to the tightest.

    Returns
    -------
    Band
        ``upper`` is the bound, ``lower`` 0. Not valid from the first phase that is not covered.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem, weights = Problem([[1.0], [-1.0]], [1, -1]), Weights([[1.0], [-1.0]], [0.1, 0.1])
    >>> schedule = Schedule.fft(time=2.0, sigma=0.5, clip=1.0)
    >>> approximation_error(problem, weights, schedule, [0.0, 2.0]).upper
    array([  0., 100.])
    >>> tight = approximation_error(problem, weights, schedule, [0.0, 2.0], kind="ode")
    >>> bool(tight.upper[1] < 30)
    True
    """
    require_moderate(problem, weights, schedule)
    validate.choice("kind", kind, KINDS)
    t = record_times(schedule, times)
    covers = COVERS[kind]
    reason = covers.refuses(problem)
    if reason:
        return nowhere(t, reason, SOURCES[kind])
    valid = until(schedule, t, covers.phases(schedule), start=True)
    if kind != "ode":
        upper = _closed_form(problem, weights, schedule, t, kind)
    elif valid.any():
        _, e, rest = path(problem, weights, schedule, t)
        upper = e + rest
    else:
        upper = np.nan
    return Band(t, 0.0, upper, valid, covers.refuses_phases(schedule), SOURCES[kind])


def _closed_form(
    problem: Problem, weights: Weights, schedule: Schedule, t: FloatArray, kind: Kind
) -> FloatArray:
    n = problem.samples
    monotone = probing_first(schedule) if kind != "paper" else [False] * len(schedule)
    spent = schedule.time_in(t)
    variance, root = np.zeros(len(t)), np.zeros(len(t))
    for phase, free, time in zip(schedule, monotone, spent, strict=True):
        rate = 2 * phase.sigma**2 * weights.trained_parameters(phase.method)
        reach = 0.0 if free else 2 * n * (phase.clip or 0.0)
        if kind == "lambert":
            root = _lambert(root, rate, reach, time)
        else:
            variance += rate * time
            root += reach * time
    return (root if kind == "lambert" else np.sqrt(variance) + root) ** 2


def _lambert(start: FloatArray, rate: float, reach: float, time: FloatArray) -> FloatArray:
    """Square root of the solution of ``e' = rate + 2 reach sqrt(e)`` from ``start**2``."""
    if reach == 0.0:
        return np.sqrt(start**2 + rate * time)
    if rate == 0.0:
        return start + reach * time
    unit = rate / (2 * reach)
    # x = sqrt(e)/unit solves x - log(1 + x) = const + reach t / unit
    x0 = start / unit
    goal = x0 - np.log1p(x0) + reach * time / unit
    # Newton from above on a convex function: every iterate is an upper bound
    x = goal + np.sqrt(2 * goal) + np.log1p(goal)
    for _ in range(60):
        positive = x > 0
        step = np.where(positive, (x - np.log1p(x) - goal) * (1 + x) / np.where(positive, x, 1.0), 0.0)
        x = np.maximum(x - step, 0.0)
        if (np.abs(step) <= 1e-14 * (1 + x)).all():
            break
    return unit * x


def _rate(
    problem: Problem, weights: Weights, phase: Phase, k: int, monotone: bool
) -> Callable[[float, float, float], float]:
    noise = 2 * phase.sigma**2 * weights.width * (k + 1 if phase.method == "fft" else 1)
    if monotone or phase.clip is None:
        return lambda e, theta, speed: noise
    reach = problem.samples * phase.clip
    # largest theta . b: half of what it adds to ||theta||^2
    energy = pull(problem, phase.method) / 2

    def rate(e: float, theta: float, speed: float) -> float:
        root, beta = math.sqrt(max(e, 0.0)), math.sqrt(speed)
        return noise + 2 * (min(reach * root, energy + reach * math.sqrt(theta)) + beta * root)

    return rate


def path(
    problem: Problem, weights: Weights, schedule: Schedule, t: FloatArray
) -> tuple[list[State], FloatArray, FloatArray]:
    """Zeroth-order states, the span part of ``e`` by (1b), and the part orthogonal to the span."""
    flow = Flow(problem, weights)
    k = flow.X.shape[1]
    states: list[State] = []
    span_part, rest = np.zeros(len(t)), np.zeros(len(t))
    e, beyond = 0.0, 0.0
    phases = list(zip(schedule, probing_first(schedule), schedule.starts, strict=True))
    for phase, monotone, start in phases:
        end = start + phase.time
        last = phase is phases[-1][0]
        here = (t >= start) & ((t < end) | last)
        local = np.minimum(t[here] - start, phase.time)
        found, square = flow.run(phase, local, e, _rate(problem, weights, phase, k, monotone))
        # where it is below the integrator's absolute tolerance, the bound may come out negative
        square = np.maximum(square, 0.0)
        states += found
        span_part[here] = square[:-1]
        e = square[-1]
        speed = 2 * phase.sigma**2 * weights.width * (problem.dim - k) if phase.method == "fft" else 0.0
        rest[here] = beyond + speed * local
        beyond += speed * phase.time
    return states, span_part, rest


@declares(LIPSCHITZ)
def lipschitz_error(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    *,
    constant: float,
) -> Band:
    r"""Bound ``E ||theta_t - theta~_t||^2`` from a one-sided Lipschitz constant of the drift.

    New (1c): if ``(b(x) - b(y)) . (x - y) <= Lambda ||x - y||^2`` for *all* ``x, y``, then ``e' <= 2 sigma^2
    p + 2 Lambda e``; with one phase ``p sigma^2 (exp(2 Lambda t) - 1) / Lambda``. The constant is for
    the caller to prove: one estimated along runs, or that holds near a path only, gives no bound. Linear
    probing has 0; full fine-tuning has no global constant without further knowledge of the problem.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional
    constant : float
        ``Lambda``, in every phase; of either sign.

    Returns
    -------
    Band
        ``upper`` is the bound, ``lower`` 0; not valid where it overflows, and from the first phase that is
        not covered.

    Examples
    --------
    >>> problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [0.0])
    >>> lipschitz_error(problem, weights, Schedule.lp(time=1.0, sigma=0.5), [1.0], constant=0.0).upper
    array([0.5])
    """
    require_moderate(problem, weights, schedule)
    rate = 2 * validate.number("constant", constant)
    t = record_times(schedule, times)
    reason = LIPSCHITZ.refuses(problem)
    if reason:
        return nowhere(t, reason, "new (1c)")
    e = np.zeros(len(t))
    with np.errstate(over="ignore"):
        for phase, time in zip(schedule, schedule.time_in(t), strict=True):
            noise = 2 * phase.sigma**2 * weights.trained_parameters(phase.method)
            grown = time if rate == 0 else np.expm1(rate * time) / rate
            e = e * np.exp(rate * time) + noise * grown
    valid = until(schedule, t, LIPSCHITZ.phases(schedule), start=True)
    reason = LIPSCHITZ.refuses_phases(schedule) or "the bound overflows"
    return Band(t, 0.0, e, valid & np.isfinite(e), reason, "new (1c)")
