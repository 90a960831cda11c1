"""Intervals for the expected loss of the diffusion itself, through the zeroth-order loss (section 1d)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.distance.approximation import COVERS as ERROR
from bounds.distance.approximation import approximation_error, path
from bounds.distance.flow import span
from bounds.loss.enclosure import enclose
from bounds.loss.norms import expected_norm
from bounds.support.covers import declares
from bounds.support.phases import probing_first, until
from bounds.support.ranges import require_moderate
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

Base = Literal["flow", "sandwich"]

BASES = ("flow", "sandwich")
COVERS = ERROR["ode"]
SOURCE = "new (1d)"


@declares(COVERS)
def certified_loss(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    *,
    base: Base = "flow",
) -> Band:
    r"""Enclose ``E L(theta_t)`` of the diffusion around the zeroth-order loss.

    New (1d). With ``A^2 >= E ||Delta||^2``, ``Delta = theta - theta~``: logistic loss, linear probing
    ``|E L - L~| <= A sum_i ||A_i||``; full fine-tuning ``<= sum_i ||x_i|| (||theta~|| A + A^2 / 2)``,
    ``theta~ = (W~, v~)``; the same for any loss of slope at most 1. Square loss, linear probing ``A ||A^T
    r~|| + lambda_max(A A^T) A^2 / 2``; full
    fine-tuning ``sum |r~_i| ||x_i|| (||theta~|| A + A^2 / 2) + sum ||x_i||^2 (||theta~|| B + B^2 / 2)^2 / 2``
    with ``B = 2 n C t + sigma sqrt(2 t) (p (p + 2))^(1/4)``. The last, quadratic terms are above only: the
    lower bound does without. All in span coordinates, ``A`` from 1a and 1b.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional
    base : {"flow", "sandwich"}
        Where ``L~``, ``r~`` and ``||theta~||`` come from: the zeroth-order flow, integrated here for any
        problem, or `sandwich` and the growth of the norm, without integration of the network.

    Returns
    -------
    Band
        Not valid from the first phase that is not covered, or where the sandwich is not.

    Examples
    --------
    >>> problem, weights = Problem([[1.0], [-1.0]], [1, -1]), Weights([[1.0], [-1.0]], [0.1, 0.1])
    >>> schedule = Schedule.lp_fft(lp_time=1.0, fft_time=0.1, sigma=0.02, clip=0.1)
    >>> band = certified_loss(problem, weights, schedule, [0.0, 1.0, 1.1])
    >>> bool((band.lower <= band.upper).all()), bool(band.valid.all())
    (True, True)
    """
    require_moderate(problem, weights, schedule)
    validate.choice("base", base, BASES)
    t = record_times(schedule, times)
    good = COVERS.phases(schedule)
    valid = until(schedule, t, good, start=True)
    uncovered = COVERS.refuses(problem)
    reason = uncovered or COVERS.refuses_phases(schedule)
    if uncovered or not valid.any():
        return nowhere(t, reason, SOURCE)
    probing = t <= sum(p.time for p, m in zip(schedule, probing_first(schedule), strict=True) if m)
    if base == "flow":
        if not valid.all():
            schedule, t_run = _cut(schedule, good, t)
        else:
            t_run = t
        states, e, _ = path(problem, weights, schedule, t_run)
        outputs = np.array([state.outputs for state in states])
        low = high = problem.losses(outputs).sum(1)
        residual = np.abs(problem.residuals(outputs))
        sizes = np.array([state.squared_norm - state.rest for state in states])
        count = len(t_run)
    else:
        found = enclose(problem, weights, schedule, t)
        if isinstance(found, str):
            return nowhere(t, found, SOURCE)
        if not found.valid.all():
            valid, reason = valid & found.valid, found.reason
        count = int(valid.sum())
        # valid times come first
        lower, upper = problem.y * found.lower[:count], problem.y * found.upper[:count]
        high, low = problem.losses(lower).sum(1), problem.losses(upper).sum(1)
        # at time 0 they differ by roundoff
        low = np.minimum(low, high)
        residual = np.maximum(np.abs(problem.residuals(lower)), np.abs(problem.residuals(upper)))
        still = Schedule([Phase(p.method, p.time, 0.0, p.clip) for p in schedule])
        sizes = expected_norm(problem, weights, still, t[:count]).upper
        e = approximation_error(problem, weights, schedule, t[:count], kind="lambert").upper
    up, down = np.zeros(len(t)), np.zeros(len(t))
    above, below = _widths(problem, weights, schedule, t[:count], probing[:count], residual, sizes, e)
    up[:count], down[:count] = high + above, np.maximum(low - below, 0.0)
    finite = np.isfinite(up)
    return Band(t, down, up, valid & finite, reason if finite.all() else "the bound overflows", SOURCE)


def _cut(schedule: Schedule, good: list[bool], t: FloatArray) -> tuple[Schedule, FloatArray]:
    """Keep the phases before the first that is not good, and the times in them."""
    keep = schedule.phases[: good.index(False)]
    if not keep:
        # only time 0 is left: any good phase leads there
        phase = schedule.phases[0]
        keep = (Phase(phase.method, phase.time, 0.0, 1.0),)
        return Schedule(keep), t[t <= 0.0]
    short = Schedule(keep)
    return short, t[t <= short.duration]


def _widths(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    t: FloatArray,
    probing: np.ndarray,
    residual: FloatArray,
    squared_size: FloatArray,
    e: FloatArray,
) -> tuple[FloatArray, FloatArray]:
    """Return how far ``E L`` may lie above and below ``L~``."""
    A = problem.features(weights.W)
    root, size = np.sqrt(e), np.sqrt(squared_size)
    norms = np.sqrt(problem.squared_norms)
    reach = size * root + e / 2
    features = np.linalg.norm(A, axis=1)
    steepest = LOSSES[problem.loss].largest_residual
    if steepest is not None:
        width = steepest * np.where(probing, root * features.sum(), norms.sum() * reach)
        return width, width
    # the quadratic terms are those of a second derivative of at most 1
    # ||A^T r|| <= sum |r_i| ||A_i||, tight enough and free of signs
    head = root * (residual @ features)
    slope = residual @ norms * reach
    below = np.where(probing, head, slope)
    most = float(np.linalg.norm(A, 2)) ** 2
    B = _fourth(problem, weights, schedule, t)
    curve = 0.5 * float(problem.squared_norms.sum()) * (size * B + B**2 / 2) ** 2
    return below + np.where(probing, most * e / 2, curve), below


def _fourth(problem: Problem, weights: Weights, schedule: Schedule, t: FloatArray) -> FloatArray:
    """Bound of ``(E ||Delta||^4)^(1/4)`` in span coordinates."""
    k = span(problem, weights).X.shape[1]
    total = np.zeros(len(t))
    for phase, free, time in zip(schedule, probing_first(schedule), schedule.time_in(t), strict=True):
        p = weights.width * (k + 1 if phase.method == "fft" else 1)
        total += phase.sigma * np.sqrt(2 * time) * (p * (p + 2)) ** 0.25
        if not free and phase.clip is not None:
            total += 2 * problem.samples * phase.clip * time
    return total
