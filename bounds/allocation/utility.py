"""Bounds of the final loss over the share of linear probing (section 6)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bounds.allocation.share import budget_time
from bounds.band import Band
from bounds.loss.certified import certified_loss
from bounds.loss.fine_tuning import fft_expected_loss
from bounds.loss.probing import lp_expected_loss
from bounds.loss.rates import conserved_rates, rates
from bounds.loss.sandwich import sandwich
from bounds.privacy.neighbours import Neighbours
from bounds.support.covers import ANY, Covers, declares
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

COVERS = Covers(ANY, ANY, lp=("none", "flat"), fft=("none", "flat"), outputs=True)
SHARES = 21
BOUNDS: dict[str, Callable[..., Band]] = {
    "sandwich": sandwich,
    "certified": certified_loss,
    "conserved": conserved_rates,
    "rates": rates,
    "lp_expected": lp_expected_loss,
    "fft_expected": fft_expected_loss,
}
"""Bounds that `utility_curve` can draw, by name."""


@dataclass(frozen=True, eq=False)
class UtilityCurve:
    """Bounds of the final loss as a function of the share of linear probing; see `utility_curve`.

    Attributes
    ----------
    shares : ndarray, shape (m,)
        Share of the time (and, at one noise and clip, of the budget) spent on linear probing.
    time : float
        Total time.
    curves : dict of str to Band
        Per bound a `Band` whose ``times`` are the shares; only bounds that hold for some share.
    reasons : dict of str to str
        Why a bound is missing.
    best : dict of str to float
        Share with the least upper bound, endpoints included.
    flatness : dict of str to (float, float)
        Least and largest share whose upper bound is within ``tolerance`` of the least one.
    gap : dict of str to float
        Certified gap: no share that the bound covers has a true final loss below the loss at ``best`` by
        more than this.
    tolerance : float
    """

    shares: FloatArray
    time: float
    curves: dict[str, Band]
    reasons: dict[str, str]
    best: dict[str, float]
    flatness: dict[str, tuple[float, float]]
    gap: dict[str, float]
    tolerance: float


@declares(COVERS)
def utility_curve(
    problem: Problem,
    weights: Weights,
    *,
    sigma: float,
    clip: float | None,
    rho: float | None = None,
    time: float | None = None,
    shares: ArrayLike | None = None,
    bounds: tuple[str, ...] = tuple(BOUNDS),
    tolerance: float = 0.05,
    neighbours: Neighbours = "add-remove",
) -> UtilityCurve:
    r"""Bound the final loss as a function of the share of linear probing.

    Re-derived, by way of its bounds; replaces Section 6 and Corollary 5.3 of [1]_: each bound
    that applies is evaluated at the end of linear probing for ``share * T`` followed by full fine-tuning
    for the rest. The minimiser may be interior or an endpoint; nothing makes it grow as the budget
    shrinks. Bounds that do not cover the problem are left out, with their reasons.

    Parameters
    ----------
    problem, weights
        What is trained, and from where. Reading the data costs privacy that is not accounted for.
    sigma, clip : float
        Noise and flat clipping threshold of both phases (``clip=None``: no clipping, needs ``time``).
    rho, time : float
        The zCDP budget, or the total time: give one.
    shares : array_like, optional
        Shares in [0, 1], rising; 21 by default, endpoints included.
    bounds : tuple of str
        Names from `BOUNDS`. "sandwich", "conserved" and "rates" bound the zeroth-order loss, the
        others the expected loss of the diffusion.
    tolerance : float
        Relative excess over the least bound that counts as flat.
    neighbours : {"add-remove", "replace"}

    Returns
    -------
    UtilityCurve

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> weights = Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.2, 0.3])
    >>> curve = utility_curve(
    ...     problem, weights, sigma=0.01, clip=1.0, time=2.0, shares=[0.0, 0.25, 1.0]
    ... )
    >>> sorted(curve.curves), curve.best["sandwich"]
    (['certified', 'sandwich'], 0.25)
    """
    require_moderate(problem, weights, clip=clip, time=time, sigma=sigma)
    COVERS.require(problem)
    if (rho is None) == (time is None):
        raise ValueError(f"give one of rho and time, got rho={rho} and time={time}")
    if rho is not None:
        if clip is None:
            raise ValueError("clip must be positive with a budget rho, got None: give time instead")
        time = budget_time(rho, sigma, clip, neighbours)
    total = validate.positive("time", time)
    r = np.linspace(0, 1, SHARES) if shares is None else validate.array("shares", shares, 1)
    if r.min() < 0 or r.max() > 1 or (np.diff(r) <= 0).any():
        raise ValueError(f"shares must rise within [0, 1], got {r.min():g} to {r.max():g}")
    tolerance = validate.non_negative("tolerance", tolerance)
    for name in validate.sequence("bounds", bounds, str):
        validate.choice("bounds", name, BOUNDS)
    curves: dict[str, Band] = {}
    reasons: dict[str, str] = {}
    for name in bounds:
        found = [_final(BOUNDS[name], problem, weights, share, total, sigma, clip) for share in r]
        valid = np.array([bool(band.valid[0]) for band in found])
        why = next((band.reason for band in found if not band.valid[0]), "")
        if valid.any():
            low, high = ([getattr(band, side)[0] for band in found] for side in ("lower", "upper"))
            curves[name] = Band(r, low, high, valid, why, found[0].source)
        else:
            reasons[name] = why
    best, flatness, gap = {}, {}, {}
    for name, band in curves.items():
        upper = np.where(band.valid, band.upper, np.inf)
        k = int(upper.argmin())
        best[name] = float(r[k])
        flat = r[upper <= upper[k] * (1 + tolerance)]
        flatness[name] = float(flat.min()), float(flat.max())
        gap[name] = float(max(upper[k] - band.lower[band.valid].min(), 0.0))
    return UtilityCurve(r, total, curves, reasons, best, flatness, gap, tolerance)


def _final(bound: Callable[..., Band], problem, weights, share, total, sigma, clip) -> Band:
    """Evaluate a bound at the end of one allocation."""
    settings: Any = {"sigma": sigma, "clip": clip}
    schedule = Schedule.lp_fft(lp_time=share * total, fft_time=(1 - share) * total, **settings)
    return bound(problem, weights, schedule, [schedule.duration])
