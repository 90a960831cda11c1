"""Share of a privacy budget that linear probing needs (section 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import binom

from bounds.allocation.alignment import ALIGNED, ALIGNMENT, AlignmentTime, alignment_time
from bounds.features.blocks import MARGINS, ROUNDOFF
from bounds.privacy.neighbours import Neighbours, sensitivity
from bounds.support.covers import declares
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

SHARE = "re-derived; replaces Theorem 5.1 of [1]"
CLASSES_SHARE = "new (6')"
CHAIN_SHARE = "new (8'(f))"
# more are infinitely many
MOST_STEPS = 2.0**40


def budget_time(rho: float, sigma: float, clip: float, neighbours: Neighbours = "add-remove") -> float:
    """Return the time ``T = 4 sigma^2 rho / Delta^2`` that a zCDP budget allows at fixed noise and clipping.

    Re-derived; replaces Theorem 4.1 of [1]_, solved for the time.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> budget_time(rho=0.02, sigma=5.0, clip=1.0)
    2.0
    """
    rho, sigma = validate.positive("rho", rho), validate.positive("sigma", sigma)
    gap = sensitivity(Phase("lp", 1.0, sigma, clip), neighbours)
    time = 4 * rho * (sigma / gap) * (sigma / gap)
    if not 0 < time < math.inf:
        raise ValueError(
            f"rho, sigma and clip must buy a time within the range of doubles, got rho={rho:g}, "
            f"sigma={sigma:g} and clip={clip:g}, a time of {time:g}: take others"
        )
    return time


@dataclass(frozen=True)
class LpShare:
    """Share of a budget that linear probing needs; see `minimum_lp_share`. ``float()`` is ``share``.

    Attributes
    ----------
    share : float
        ``Delta t / T``, or ``N_lp / N`` of the chain; above 1 if unattainable, NaN if not valid.
    attainable : bool
        Whether the budget pays for it.
    alignment : float
        ``Delta t``.
    time : float
        ``T``, all the time that the budget pays for.
    valid : bool
    reason : str
    source : str
    steps : float
        ``N_lp``, a whole number of steps of the chain, infinite beyond 2^40; NaN for the diffusion.
    failure : float
        Bound of the probability, over the batches, that some class is not aligned after ``steps``.
    """

    share: float
    attainable: bool
    alignment: float
    time: float
    valid: bool
    reason: str
    source: str = SHARE
    steps: float = np.nan
    failure: float = 0.0

    def __float__(self) -> float:
        return self.share


@declares(ALIGNED)
def minimum_lp_share(
    problem: Problem,
    weights: Weights,
    *,
    clip: float,
    rho: float | None = None,
    sigma: float | None = None,
    neighbours: Neighbours = "add-remove",
    dt: float | None = None,
    steps: int | None = None,
    sample_rate: float = 1.0,
    confidence: float | None = None,
) -> LpShare:
    r"""Share of the privacy budget that linear probing needs to prevent all feature distortion.

    Re-derived; replaces Theorem 5.1 of [1]_: ``r(rho) = Delta t Delta^2 / (4 sigma^2 rho)`` with
    ``Delta t`` the `alignment_time` and ``Delta`` the sensitivity. ``Delta t`` does not depend on the budget,
    so the share grows as the budget shrinks; above 1 mitigation is unattainable. For K classes, and for the
    chain, it is new (6', 8'(f)).

    Statement, the chain
        Of ``N`` noise-free steps of ``dt`` the first ``N_lp = ceil(Delta t / dt)`` align all heads, if they
        take full batches. With Poisson batches of rate ``q`` class ``c`` of ``n_c`` samples is not aligned
        after ``N_lp`` steps with probability at most ``P(Bin(N_lp n_c, q) < q n_c Delta t_c / dt)``, and
        batches of different classes are independent. ``N_lp`` is the least for which all classes are aligned
        with the probability ``confidence``. At the same noise multiplier and rate in all steps the share of
        any budget that adds up over steps is ``N_lp / N``.

    Assumptions
        Those of `alignment_time`: ReLU, assumption 3.2 or 3.2'. It is read off the data: on private data that
        costs privacy, which is not accounted for here.

    Parameters
    ----------
    problem, weights
        ReLU network before linear probing.
    clip : float
        Flat clipping threshold, in both phases.
    rho : float, optional
        zCDP budget of the whole path of the diffusion.
    sigma : float, optional
        Its noise, in both phases.
    neighbours : {"add-remove", "replace"}
        Of ``rho``.
    dt : float, optional
        Step of the chain, in place of ``rho`` and ``sigma``; see `langevin.DPSGD` for that of DP-SGD.
    steps : int, optional
        ``N``, all steps of the chain.
    sample_rate : float
        ``q``, in linear probing.
    confidence : float, optional
        Required with ``sample_rate < 1``: after ``ceil(Delta t / dt)`` steps of batches a class may still be
        misaligned, with a probability near 1/2.

    Returns
    -------
    LpShare

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> weights = Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.6, 0.3])
    >>> for rho in (0.1, 0.01):
    ...     found = minimum_lp_share(problem, weights, rho=rho, sigma=5.0, clip=1.0)
    ...     print(round(found.share, 2), found.attainable)
    0.12 True
    1.2 False
    >>> chain = dict(clip=1.0, dt=0.01, steps=1000)
    >>> minimum_lp_share(problem, weights, **chain).share
    0.12
    >>> found = minimum_lp_share(problem, weights, **chain, sample_rate=0.1, confidence=0.99)
    >>> found.share, round(found.failure, 4)
    (0.21, 0.0098)
    """
    if (dt is None) == (rho is None) or (steps is None) != (dt is None) or (sigma is None) != (rho is None):
        raise ValueError(
            f"give rho and sigma, or dt and steps, got rho={rho}, sigma={sigma}, dt={dt} and steps={steps}"
        )
    if rho is not None and sigma is not None:
        if sample_rate != 1:
            raise ValueError(
                f"sample_rate must be 1 with a budget rho of the diffusion, got {sample_rate}: with batches "
                "give dt, steps and confidence"
            )
        time = budget_time(rho, sigma, clip, neighbours)
        found = alignment_time(problem, weights, clip=clip)
        if not found.valid:
            return _unknown(found, time)
        share = found.time / time
        return LpShare(share, share <= 1, found.time, time, True, "", _source(found))
    assert dt is not None
    assert steps is not None
    return _of_chain(problem, weights, clip, dt, steps, sample_rate, confidence)


def _source(found: AlignmentTime) -> str:
    return SHARE if found.source == ALIGNMENT else CLASSES_SHARE


def _unknown(found: AlignmentTime, time: float) -> LpShare:
    return LpShare(np.nan, False, np.nan, time, False, found.reason, _source(found))


def _of_chain(
    problem: Problem,
    weights: Weights,
    clip: float,
    dt: float,
    steps: int,
    sample_rate: float,
    confidence: float | None,
) -> LpShare:
    dt, steps = validate.positive("dt", dt), validate.integer("steps", steps, 1)
    rate = validate.rate("sample_rate", sample_rate)
    if rate < 1 and (confidence is None or not 0 < confidence < 1):
        raise ValueError(
            f"confidence must be between 0 and 1 with sample_rate={rate:g}, got {confidence}: with batches "
            "the number of steps that align all heads is random, and ceil(alignment time / dt) is nominal"
        )
    found = alignment_time(problem, weights, clip=clip)
    if found.valid and np.isfinite(getattr(MARGINS.get(problem.loss), "end", np.inf)):
        reason = "the square loss is not covered for the chain: a step may overshoot"
        found = replace(found, valid=False, reason=reason)
    if not found.valid:
        return _unknown(found, steps * dt)
    labels, counts = np.unique(problem.y, return_counts=True)
    times = np.array([found.per_class.get(int(label), 0.0) for label in labels])
    # rounding must not add a step
    needed = times / dt * (1 - ROUNDOFF)
    taken, failure = _steps(needed, counts, rate, 0.0 if confidence is None else 1 - confidence)
    share = taken / steps
    return LpShare(share, share <= 1, found.time, steps * dt, True, "", CHAIN_SHARE, taken, failure)


def _steps(needed: FloatArray, counts: np.ndarray, rate: float, allowed: float) -> tuple[float, float]:
    """Least number of steps that misalign a class with no more than an allowed probability, and this.

    Parameters
    ----------
    needed : ndarray, shape (classes,)
        Steps of full batches after which each class is aligned.
    counts : ndarray, shape (classes,)
        Samples of each class.
    rate, allowed : float
    """
    if needed.max() > MOST_STEPS:
        return np.inf, 1.0
    if rate == 1:
        return float(np.ceil(needed.max())), 0.0
    # draws of a class that are enough
    enough = np.ceil(rate * counts * needed)

    def failure(taken: int) -> float:
        missed = binom.cdf(enough - 1, taken * counts, rate)
        with np.errstate(divide="ignore"):
            return float(-np.expm1(np.log1p(-missed).sum()))

    low, high = -1, 0
    while failure(high) > allowed:
        low, high = high, 2 * high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if failure(middle) <= allowed else (middle, high)
    return float(high), failure(high)
