"""Share of a privacy budget that linear probing needs (section 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bounds.allocation.alignment import ALIGNED, alignment_time
from bounds.privacy.neighbours import Neighbours, sensitivity
from bounds.support.covers import declares
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Weights
from langevin.support import validate

SHARE = "re-derived; replaces Theorem 5.1 of [1]"


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
        ``Delta t / T``; above 1 if unattainable, NaN if not valid.
    attainable : bool
        Whether the budget pays for it.
    alignment : float
        ``Delta t``.
    time : float
        ``T``, all the time that the budget pays for.
    valid : bool
    reason : str
    source : str
    """

    share: float
    attainable: bool
    alignment: float
    time: float
    valid: bool
    reason: str
    source: str = SHARE

    def __float__(self) -> float:
        return self.share


@declares(ALIGNED)
def minimum_lp_share(
    problem: Problem,
    weights: Weights,
    *,
    rho: float,
    sigma: float,
    clip: float,
    neighbours: Neighbours = "add-remove",
) -> LpShare:
    r"""Share of the privacy budget that linear probing needs to prevent all feature distortion.

    Re-derived; replaces Theorem 5.1 of [1]_: ``r(rho) = Delta t Delta^2 / (4 sigma^2 rho)`` with
    ``Delta t`` the `alignment_time` and ``Delta`` the sensitivity. ``Delta t`` does not depend on the budget,
    so the share grows as the budget shrinks; above 1 mitigation is unattainable.

    Assumptions
        Those of `alignment_time`: ReLU, assumption 3.2. It is read off the data: on private data that
        costs privacy, which is not accounted for here.

    Parameters
    ----------
    problem, weights
        ReLU network before linear probing.
    rho : float
        zCDP budget of the whole path.
    sigma, clip : float
        Noise and flat clipping threshold, in both phases.
    neighbours : {"add-remove", "replace"}

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
    """
    time = budget_time(rho, sigma, clip, neighbours)
    found = alignment_time(problem, weights, clip=clip)
    if not found.valid:
        return LpShare(np.nan, False, np.nan, time, False, found.reason)
    share = found.time / time
    return LpShare(share, share <= 1, found.time, time, True, "")
