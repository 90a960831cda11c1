"""Distance between the diffusion and its approximation from a one-sided Lipschitz constant (section 1c)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.support.covers import ALL, ANY, PROBING, Covers, declares
from bounds.support.phases import until
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support import validate

COVERS = Covers(ANY, ANY, lp=(*ALL, *PROBING), outputs=True)
SOURCE = "new (1c)"


@declares(COVERS)
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
    probing of one output has 0; full fine-tuning has no global constant without further knowledge of the
    problem. For K outputs `approximation_error` uses the constants that are proved.

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
    reason = COVERS.refuses(problem)
    if reason:
        return nowhere(t, reason, SOURCE)
    e = np.zeros(len(t))
    with np.errstate(over="ignore"):
        for phase, time in zip(schedule, schedule.time_in(t), strict=True):
            noise = 2 * phase.sigma**2 * weights.trained_parameters(phase.method)
            grown = time if rate == 0 else np.expm1(rate * time) / rate
            e = e * np.exp(rate * time) + noise * grown
    valid = until(schedule, t, COVERS.phases(schedule), start=True)
    reason = COVERS.refuses_phases(schedule) or "the bound overflows"
    return Band(t, 0.0, e, valid & np.isfinite(e), reason, SOURCE)
