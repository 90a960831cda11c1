"""Expected loss and head of linear probing with noise, exactly (sections 5a, 5a' and 8'c)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.loss.moments import probing_of, require_memory, walk
from bounds.loss.rates import probe
from bounds.support.covers import ANY, Covers, declares
from bounds.support.phases import steps_until, until
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import grid, record_times
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

LP = "re-derived (5a); replaces Section 5.2 of [1]"
LP_OUTPUTS = "new (5a')"
CHAIN_LP = "new (8'c)"
PROBING = Covers(("square",), ANY, lp=("none",), fft=(), outputs=True)
CHAIN = replace(PROBING, batches=True)
OVERFLOW = "a moment exceeds all numbers: take a smaller dt, see lp_stability"


@declares({"diffusion": PROBING, "chain, with dt": CHAIN})
def lp_expected_loss(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: ArrayLike | None = None,
    dt: float | None = None,
) -> Band:
    r"""``E L(theta_t)`` of linear probing with noise, exactly: of the diffusion, or of the chain itself.

    *Diffusion.* Re-derived (5a); replaces Section 5.2 of [1]_. The head is an Ornstein-Uhlenbeck process:
    with eigenpairs ``(lambda_k, u_k)`` of ``A A^T`` and the initial residual ``r_0``, ``E L = L_perp +
    sum_k [(u_k . r_0)^2 exp(-2 lambda_k t) + sigma^2 (1 - exp(-2 lambda_k t))] / 2``: a floor of
    ``sigma^2 rank(A) / 2``. Over phases the noise of each decays in the next. With K outputs each has its own
    ``r_0``, and the noise counts K times (5a', new).

    *Chain.* New (8'c): of Euler-Maruyama in steps of ``dt``, with full or Poisson batches. With ``Q = E R
    R^T`` of the residuals ``R (n, K)``, ``A A^T = G`` and ``omega = (1 - q) / q``, a step is ``Q <- (I - dt
    G) Q (I - dt G) + dt^2 omega G diag(Q) G + 2 sigma^2 dt K G``, and ``E L`` is half the trace. It is
    computed in the eigenbasis of ``A^T A``: a step costs ``O(n min(n, h)^2)`` with batches, and any number of
    steps on full batches ``O(min(n, h) K)``.

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how.
    times : array_like, shape (m,), optional
    dt : float, optional
        Step of the chain; None for the diffusion, which covers no batches.

    Returns
    -------
    Band
        ``lower`` and ``upper`` are the same. Not valid from the first other phase on. Times of the chain move
        to the nearest step.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], "linear", "square")
    >>> weights = Weights([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    >>> lp_expected_loss(problem, weights, Schedule.lp(time=9.0, sigma=0.1), [0.0, 9.0]).upper.round(6)
    array([1.  , 0.01])
    >>> schedule = Schedule.lp(time=9.0, sigma=0.1, sample_rate=0.5)
    >>> lp_expected_loss(problem, weights, schedule, [0.0, 9.0], dt=0.1).upper.round(6)
    array([1.      , 0.011111])
    """
    require_moderate(problem, weights, schedule)
    if dt is not None:
        return _chain(problem, weights, schedule, times, dt)
    t = record_times(schedule, times)
    reason = PROBING.refuses(problem)
    if reason:
        return nowhere(t, reason, _source(problem))
    found = probe(problem, weights)
    squares = (found.coordinates.reshape(-1, problem.outputs_dim) ** 2).sum(1)
    mean = np.exp(-2 * np.outer(t, found.eigenvalues)) @ squares
    spread = _head_variance(found.eigenvalues, schedule, t) @ found.eigenvalues
    return _exact(problem, schedule, t, found.floor + 0.5 * (mean + problem.outputs_dim * spread))


def _chain(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None, dt: float
) -> Band:
    """Follow the moments of the chain; see `lp_expected_loss`."""
    cut = grid(schedule, dt, times)
    reason = CHAIN.refuses(problem)
    if reason:
        return nowhere(cut.times, reason, CHAIN_LP)
    require_memory(problem, weights)
    valid = steps_until(cut, CHAIN.phases(schedule))
    loss = np.full(len(valid), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):
        moments = walk(probing_of(problem, weights), schedule, cut, int(valid.sum()))
        loss[valid] = [found.loss() for found in moments]
    reason = CHAIN.refuses_phases(schedule) or OVERFLOW
    return Band(cut.times, loss, loss, valid & np.isfinite(loss), reason, CHAIN_LP)


def _source(problem: Problem) -> str:
    return LP if problem.outputs_dim == 1 else LP_OUTPUTS


def _exact(problem: Problem, schedule: Schedule, t: FloatArray, value: FloatArray) -> Band:
    valid, reason = until(schedule, t, PROBING.phases(schedule)), PROBING.refuses_phases(schedule)
    return Band(t, value, value, valid, reason, _source(problem))


def _head_variance(eigenvalues: FloatArray, schedule: Schedule, t: FloatArray) -> FloatArray:
    """Variance of a column of the head along each eigenvector, shape (m, rank)."""
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
    fine-tuning starts from; it replaces Corollary 5.3 of [1]_. With K outputs it is the sum over the columns
    of the head (5a', new).

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
        return nowhere(t, reason, _source(problem))
    found, K = probe(problem, weights), problem.outputs_dim
    # the head moves within the range; its part in the kernel stays
    along = found.right @ weights.v.reshape(len(weights.v), K)
    shift = found.coordinates.reshape(-1, K) / np.sqrt(found.eigenvalues)[:, None]
    moved = along + np.expm1(-np.multiply.outer(t, found.eigenvalues))[..., None] * shift
    rest = max(float((weights.v**2).sum()) - float((along**2).sum()), 0.0)
    free = weights.width - len(found.eigenvalues)
    spread = _head_variance(found.eigenvalues, schedule, t).sum(1)
    for phase, time in zip(schedule, schedule.time_in(t), strict=True):
        spread = spread + 2 * phase.sigma**2 * free * time
    return _exact(problem, schedule, t, (moved**2).sum((1, 2)) + rest + K * spread)
