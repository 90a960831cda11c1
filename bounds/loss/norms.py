"""How far the norm of the parameters may grow (sections 0 and 5c)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.support.covers import Covers, declares
from bounds.support.growth import pull
from bounds.support.phases import until
from bounds.support.ranges import SMALLEST, require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

NORM = "new (sections 0 and 5b)"
NORMS = Covers(("logistic", "square", "huber"), ("relu", "linear"), lp=("none", "flat"), fft=("none", "flat"))
NORM_TAIL = Covers(NORMS.losses, NORMS.activations, lp=(), fft=("none", "flat"))


@declares(NORMS)
def expected_norm(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None
) -> Band:
    """Bound ``E ||(W, v)_t||^2`` of the diffusion.

    New (sections 0 and 5b): it grows by at most ``c + 2 sigma^2 p`` per unit time, ``c`` four times the sum
    of the largest ``-f r_i``, ``4 n Omega`` (logistic, ``Omega = W_0(1/e)``) or ``||y||^2`` (square), in full
    fine-tuning and half that in linear probing.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional

    Returns
    -------
    Band
        ``upper`` is the bound, ``lower`` 0; not valid from the first phase that is not covered.

    Examples
    --------
    >>> problem, weights = Problem([[1.0]], [1.0], loss="square"), Weights([[1.0]], [0.0])
    >>> expected_norm(problem, weights, Schedule.fft(time=1.0, sigma=0.5), [1.0]).upper
    array([3.])
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    reason = NORMS.refuses(problem)
    if reason:
        return nowhere(t, reason, NORM)
    upper = np.full(len(t), float((weights.W**2).sum() + weights.v @ weights.v))
    for phase, time in zip(schedule, schedule.time_in(t), strict=True):
        noise = 2 * phase.sigma**2 * weights.trained_parameters(phase.method)
        upper += (pull(problem, phase.method) + noise) * time
    valid = until(schedule, t, NORMS.phases(schedule))
    return Band(t, 0.0, upper, valid, NORMS.refuses_phases(schedule), NORM)


@declares(NORM_TAIL)
def norm_tail(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    time: float,
    level: ArrayLike,
    *,
    over: Literal["time", "path"] = "time",
) -> FloatArray:
    r"""Bound ``P(||(W, v)_t||^2 >= level)`` of full fine-tuning, at a time or ever until then.

    New (5c i): ``||theta_t||^2`` is dominated by ``2 sigma^2 t`` times a non-central chi-square with
    ``delta = p + c / (2 sigma^2)`` degrees of freedom and non-centrality ``||theta_0||^2 / (2 sigma^2
    t)``, ``c`` as in `expected_norm`. By Doob's inequality its largest value
    until ``t`` reaches ``x`` with probability at most ``exp(-a x / (4 sigma^2 t) + a ||theta_0||^2 /
    ((1 - a) 4 sigma^2 t)) (1 - a)^(-delta / 2)`` for each ``0 < a < 1``; the least of these is returned,
    in closed form.

    Parameters
    ----------
    problem, weights, schedule
        One sigma > 0 and flat clipping (or none) in full fine-tuning throughout.
    time : float
        ``0 < t``, within the schedule.
    level : array_like
        Levels of the squared norm.
    over : {"time", "path"}
        Whether the norm reaches the level at ``t``, or at any time until ``t``.

    Returns
    -------
    ndarray
        Probabilities, in the shape of ``level``.

    Raises
    ------
    ValueError
        If the schedule is not as above: there is then no bound.

    Examples
    --------
    >>> problem, weights = Problem([[1.0]], [1.0], loss="square"), Weights([[1.0]], [0.0])
    >>> schedule = Schedule.fft(time=1.0, sigma=0.5)
    >>> norm_tail(problem, weights, schedule, 1.0, [4.0, 9.0]).round(4)
    array([0.2549, 0.0126])
    >>> norm_tail(problem, weights, schedule, 1.0, [4.0, 9.0], over="path").round(4)
    array([0.9012, 0.1185])
    """
    from scipy.stats import ncx2

    validate.original("schedule", schedule, Schedule)
    require_moderate(problem, weights, schedule)
    NORM_TAIL.require(problem)
    validate.choice("over", over, ("time", "path"))
    time = validate.positive("time", time)
    if time > schedule.duration:
        raise ValueError(f"time must be at most the schedule's {schedule.duration:g}, got {time:g}")
    phase = schedule.phases[0]
    same = all(NORM_TAIL.phases(schedule)) and {p.sigma for p in schedule} == {phase.sigma}
    if not same or phase.sigma < SMALLEST:
        reason = NORM_TAIL.refuses_phases(schedule)
        reason = f": {reason}" if reason else ""
        raise ValueError(f"schedule must be full fine-tuning with one sigma > 0, got '{schedule}'{reason}")
    variance = 2 * phase.sigma**2 * time
    freedom = weights.trained_parameters("fft") + pull(problem, "fft") / (2 * phase.sigma**2)
    size = float((weights.W**2).sum() + weights.v @ weights.v)
    if not (variance > 0 and np.isfinite(size / variance)):
        raise ValueError(f"time must leave noise next to the weights, got {time:g}: take a longer one")
    start = size / variance
    given: Any = [level] if np.isscalar(level) else level
    levels = validate.array("level", given, 1)
    x = (levels[0] if np.isscalar(level) else levels) / variance
    if over == "time":
        return np.asarray(ncx2.sf(x, freedom, start))
    # the exponent is convex in a; its slope vanishes at 1 / (1 - a) = b, a root of start b^2 + freedom b = x
    x = np.maximum(x, 0.0)
    b = np.maximum(2 * x / (freedom + np.sqrt(freedom**2 + 4 * start * x)), 1.0)
    a = 1 - 1 / b
    return np.exp(0.5 * (a * (b * start - x) + freedom * np.log(b)))
