"""How far the norm of the parameters may grow (sections 0 and 5c)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.distance.parts import parts
from bounds.support.clock import clock
from bounds.support.covers import PROBING, Covers, declares
from bounds.support.growth import pull
from bounds.support.ranges import SMALLEST, require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

NORM = "new (sections 0 and 5b)"
NORMS = Covers(
    ("logistic", "square", "huber", "softmax", "ovr"),
    ("relu", "linear"),
    lp=("none", "flat", *PROBING),
    fft=("none", "flat"),
    outputs=True,
    chain=True,
)
NORM_TAIL = Covers(NORMS.losses, NORMS.activations, lp=(), fft=("none", "flat"), outputs=True)

UNBOUNDED = (
    "without clipping, the drift of a step has no bound for this loss or method: give a clip, or leave out dt"
)


@declares(NORMS)
def expected_norm(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    dt: float | None = None,
) -> Band:
    """Bound ``E ||(W, v)_t||^2`` of the diffusion, or of its chain in steps of ``dt``.

    New (sections 0 and 5b): it grows by at most ``c + 2 sigma^2 p`` per unit time, ``c`` four times the sum
    of the largest ``-f r_i``, ``4 n Omega`` (logistic, ``Omega = W_0(1/e)``) or ``||y||^2`` (square), in full
    fine-tuning and half that in linear probing. With K outputs ``Omega_K = W_0((K - 1) / e)`` (softmax), ``K
    Omega`` (one-vs-rest), ``||Y||^2`` (square), all new (0').

    The chain, new (8'd), at any sampling rate ``q``: to ``c + 2 sigma^2 p`` a step adds ``dt (sum_i G_i)^2 +
    dt (1 - q) / q sum_i G_i^2`` per unit time, where ``G_i`` bounds the gradients: the clip, in LP before any
    full fine-tuning also ``||r_i|| ||A_i||``.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional
        With ``dt`` each moves to the nearest step.
    dt : float, optional
        Step of the chain; None for the diffusion, which has full batches.

    Returns
    -------
    Band
        ``upper`` is the bound, ``lower`` 0; not valid from the first phase that is not covered.

    Examples
    --------
    >>> problem, weights = Problem([[1.0]], [1.0], loss="square"), Weights([[1.0]], [0.0])
    >>> expected_norm(problem, weights, Schedule.fft(time=1.0, sigma=0.5), [1.0]).upper
    array([3.])
    >>> schedule = Schedule.fft(time=1.0, sigma=0.5, clip=1.0, sample_rate=0.5)
    >>> problem = Problem([[1.0], [2.0]], [1.0, 1.0], loss="square")
    >>> expected_norm(problem, weights, schedule, [1.0], dt=0.1).upper
    array([4.6])
    """
    require_moderate(problem, weights, schedule)
    at, covers = clock(schedule, times, dt), NORMS.at(dt)
    source = NORM if dt is None else f"new (8'd), of the chain with dt={dt:g}"
    reason = covers.refuses(problem)
    if reason:
        return nowhere(at.times, reason, source)
    upper = np.full(len(at.times), float((weights.W**2).sum() + (weights.v**2).sum()))
    reasons = covers.reasons(schedule)
    for k, part in enumerate(parts(problem, weights, schedule, dt)):
        rate = pull(problem, part.phase.method) + part.noise_rate + part.free_rate
        if dt is not None:
            rate += dt * part.reach**2
        reasons[k] = reasons[k] or ("" if np.isfinite(rate) else UNBOUNDED)
        if reasons[k]:
            break
        upper += rate * at.spent[k]
    _, valid, reason = at.lead(reasons)
    return Band(at.times, 0.0, upper, valid, reason, source)


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
    t)``, ``c`` as in `expected_norm`, also with K outputs. By Doob's inequality its largest value
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
    size = float((weights.W**2).sum() + (weights.v**2).sum())
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
