"""Expected loss and head of linear probing with noise, exactly (section 5a)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.loss.rates import probe
from bounds.support.covers import ANY, Covers, declares
from bounds.support.phases import until
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

LP = "re-derived (5a); replaces Section 5.2 of [1]"
PROBING = Covers(("square",), ANY, lp=("none",), fft=())


@declares(PROBING)
def lp_expected_loss(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None
) -> Band:
    r"""``E L(theta_t)`` of linear probing with noise, exactly.

    Re-derived (5a); replaces Section 5.2 of [1]_. The head is an Ornstein-Uhlenbeck process:
    with eigenpairs ``(lambda_k, u_k)`` of ``A A^T`` and the initial residual ``r_0``, ``E L = L_perp +
    sum_k [(u_k . r_0)^2 exp(-2 lambda_k t) + sigma^2 (1 - exp(-2 lambda_k t))] / 2``: a floor of
    ``sigma^2 rank(A) / 2``. Over phases the noise of each decays in the next.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional

    Returns
    -------
    Band
        ``lower`` and ``upper`` are the same. Not valid from the first other phase on.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> lp_expected_loss(problem, weights, Schedule.lp(time=9.0, sigma=0.1), [0.0, 9.0]).upper.round(6)
    array([1.  , 0.01])
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    reason = PROBING.refuses(problem)
    if reason:
        return nowhere(t, reason, LP)
    found = probe(problem, weights)
    mean = np.exp(-np.outer(t, found.eigenvalues)) * found.coordinates
    spread = _head_variance(found.eigenvalues, schedule, t) * found.eigenvalues
    loss = found.floor + 0.5 * (mean**2 + spread).sum(1)
    return _exact(schedule, t, loss)


def _exact(schedule: Schedule, t: FloatArray, value: FloatArray) -> Band:
    valid = until(schedule, t, PROBING.phases(schedule))
    return Band(t, value, value, valid, PROBING.refuses_phases(schedule), LP)


def _head_variance(eigenvalues: FloatArray, schedule: Schedule, t: FloatArray) -> FloatArray:
    """Variance of the head along each eigenvector, shape (m, rank)."""
    variance = np.zeros((len(t), len(eigenvalues)))
    for phase, time in zip(schedule, schedule.time_in(t), strict=True):
        lost = np.outer(time, 2 * eigenvalues)
        variance = variance * np.exp(-lost) - phase.sigma**2 * np.expm1(-lost) / eigenvalues
    return variance


@declares(PROBING)
def lp_expected_head(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None
) -> Band:
    """``E ||v_t||^2`` of linear probing with noise, exactly; assumptions of `lp_expected_loss`.

    Re-derived (5a): mean ``v_0 - sum_k (1 - exp(-lambda_k t)) m_k q_k``, covariance
    ``sigma^2 H^-1 (I - exp(-2 H t))`` with ``H = A^T A``, ``2 sigma^2 t`` on its kernel. It is what full
    fine-tuning starts from; it replaces Corollary 5.3 of [1]_.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0]], [1.0], "linear", "square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> lp_expected_head(problem, weights, Schedule.lp(time=9.0, sigma=0.1), [9.0]).upper.round(4)
    array([1.1898])
    """
    require_moderate(problem, weights, schedule)
    t = record_times(schedule, times)
    reason = PROBING.refuses(problem)
    if reason:
        return nowhere(t, reason, LP)
    found = probe(problem, weights)
    shift = np.expm1(-np.outer(t, found.eigenvalues)) / np.sqrt(found.eigenvalues) * found.coordinates
    mean = weights.v + shift @ found.right
    free = weights.width - len(found.eigenvalues)
    spread = _head_variance(found.eigenvalues, schedule, t).sum(1)
    for phase, time in zip(schedule, schedule.time_in(t), strict=True):
        spread = spread + 2 * phase.sigma**2 * free * time
    return _exact(schedule, t, (mean**2).sum(1) + spread)
