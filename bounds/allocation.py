"""How to split a privacy budget between linear probing and full fine-tuning (section 6)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import quad

from bounds._blocks import COVERS as BLOCKS
from bounds._blocks import MARGINS, Block, decouple, fft_obstacle
from bounds.band import Band
from bounds.certified import certified_loss
from bounds.decay import conserved_rates, rates
from bounds.enclosure import sandwich
from bounds.features import ALIGNED, alignment_time
from bounds.linear import fft_expected_loss, lp_expected_loss
from bounds.privacy import Neighbours, sensitivity
from bounds.support.covers import ANY, Covers, declares
from bounds.support.numeric import root
from bounds.support.ranges import require_moderate
from langevin import _validate
from langevin._validate import FloatArray
from langevin.problem import Problem, Weights
from langevin.schedule import Phase, Schedule

SHARE = "re-derived; in the place of Theorem 5.1 of [1]"
CROSSOVER = "new (6b)"
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
ZEROTH = ("sandwich", "conserved", "rates")
"""Those of the zeroth-order loss; the others bound the diffusion's expected loss."""


def budget_time(rho: float, sigma: float, clip: float, neighbours: Neighbours = "add-remove") -> float:
    """Time ``T = 4 sigma^2 rho / Delta^2`` that a zCDP budget buys at fixed noise and clipping.

    Re-derived; in the place of Theorem 4.1 of [1]_, solved for the time.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> budget_time(rho=0.02, sigma=5.0, clip=1.0)
    2.0
    """
    rho, sigma = _validate.positive("rho", rho), _validate.positive("sigma", sigma)
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

    Re-derived; in the place of Theorem 5.1 of [1]_: ``r(rho) = Delta t Delta^2 / (4 sigma^2 rho)`` with
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


@dataclass(frozen=True, eq=False)
class UtilityCurve:
    """Bounds of the final loss over the share of linear probing; see `utility_curve`.

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


@declares(Covers(ANY, ANY, lp=("none", "flat"), fft=("none", "flat")))
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

    Re-derived, by way of its bounds; in the place of Section 6 and Corollary 5.3 of [1]_: each bound
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
    if (rho is None) == (time is None):
        raise ValueError(f"give one of rho and time, got rho={rho} and time={time}")
    if rho is not None:
        if clip is None:
            raise ValueError("clip must be positive with a budget rho, got None: give time instead")
        time = budget_time(rho, sigma, clip, neighbours)
    total = _validate.positive("time", time)
    r = np.linspace(0, 1, SHARES) if shares is None else _validate.array("shares", shares, 1)
    if r.min() < 0 or r.max() > 1 or (np.diff(r) <= 0).any():
        raise ValueError(f"shares must rise within [0, 1], got {r.min():g} to {r.max():g}")
    tolerance = _validate.non_negative("tolerance", tolerance)
    for name in _validate.sequence("bounds", bounds, str):
        _validate.choice("bounds", name, BOUNDS)
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


@dataclass(frozen=True)
class Crossover:
    """When a short linear probing lowers the final loss of a collapsed block; see `lp_crossover`.

    Attributes
    ----------
    case : str
        "fft" (best share 0 at any budget), "lp-helps-above" (it helps above ``critical_time``) or "".
    critical_time : float
        ``T_c``: infinite in the first case, NaN if not valid.
    latest_switch : float
        ``t_0``: no minimiser switches later; 0 in the first case, infinite (nothing is said) where the
        head outgrows the features within ``time``, NaN if not valid.
    valid : bool
    reason : str
    source : str
    """

    case: str
    critical_time: float
    latest_switch: float
    valid: bool
    reason: str
    source: str = CROSSOVER


@declares(BLOCKS)
def lp_crossover(problem: Problem, weights: Weights, *, time: float, clip: float | None = None) -> Crossover:
    r"""Say whether a first phase of linear probing can lower the final loss of a collapsed block.

    New (6b), zeroth order. For a block of ``n`` equal ``y_i x_i = x``, with ``gamma = ||x||^2``, ``u = W x /
    sqrt(gamma)``, ``Q = ||u||^2``, heads ``alpha``, ``s = ||alpha||^2``, ``mu = alpha . u``:

    1. ``mu >= 0`` and ``s <= Q`` through linear probing: the final loss rises with the time of linear
       probing; the best share is 0.
    2. ``mu_0 < 0``, ``s_0 < Q``, unclipped: a short linear probing helps iff the total time exceeds
       ``T_c``. Below ``T_c`` it hurts: a smaller budget does *not* ask for a larger share. If also ``s <= Q``
       through linear probing, every minimiser switches by ``t_0 = int_{m_0}^0 dm / (n gamma Q g)``. A
       head that outgrows the features (logistic loss, large times) makes a much later switch better.

    Parameters
    ----------
    problem, weights
        One block: a ReLU net with one class of samples and only neurons of its cone, each sure to
        stay there (``|v_j| < u_j`` if misaligned), or a linear net; all ``y_i x_i`` equal (to a relative
        1e-9).
    time : float
        Total time, for the condition on ``s`` through linear probing.
    clip : float or None
        Threshold of flat clipping; case 2 needs None.

    Returns
    -------
    Crossover
        ``valid`` False with a reason outside both cases.

    Examples
    --------
    >>> problem = Problem([[1.0], [1.0]], [1, 1])
    >>> lp_crossover(problem, Weights([[1.0], [1.0]], [0.2, 0.3]), time=1.0).case
    'fft'
    >>> found = lp_crossover(problem, Weights([[2.0], [1.0]], [-0.6, 0.1]), time=1.0)
    >>> found.case, found.critical_time > 0
    ('lp-helps-above', True)
    """
    require_moderate(problem, weights, clip=clip, time=time, pairs=True)
    time = _validate.positive("time", time)
    clip = _validate.positive_or_none("clip", clip)
    block, reason = collapsed(problem, weights)
    if block is None:
        return Crossover("", np.nan, np.nan, False, reason)
    n, gamma = len(block.samples), float(block.G[0, 0])
    u = block.Z[:, 0] / np.sqrt(gamma)
    Q, s, mu = float(u @ u), float(block.alpha @ block.alpha), float(block.alpha @ u)
    loss = MARGINS[problem.loss]
    square = np.isfinite(loss.end)
    if mu * np.sqrt(gamma) >= loss.end:
        return Crossover("", np.nan, np.nan, False, "the margin is at least 1 (square loss)")

    def g(m: float) -> float:
        return float(loss.slope(np.array(m)))

    if mu >= 0:
        end = _head_after(problem, weights, time, clip)
        if end <= Q:
            return Crossover("fft", np.inf, 0.0, True, "")
        return Crossover("", np.nan, np.nan, False, "the head outgrows the features in linear probing")
    if clip is not None:
        return Crossover("", np.nan, np.nan, False, "the initial margin is negative and the phase clips")
    if s >= Q:
        return Crossover("", np.nan, np.nan, False, "the initial margin is negative and the head too large")
    PN = (Q + s) ** 2 / 4 - mu**2
    scale = np.sqrt(gamma)
    start = mu * scale

    def over(power: float, end: float) -> float:
        # integral of dm / (g (mu^2 + PN)^power) to a margin; for the square loss in -log(1 - m), where
        # 1/g is not singular
        if not square:
            kernel, low, high, middle = _plain(g, scale, PN, power), start, end, 0.0
        else:
            kernel, low, high, middle = _slow(scale, PN, power), -np.log1p(-start), end, 0.0
        cuts = [low, middle, high] if low < middle < high else [low, high]
        return sum(quad(kernel, a, b, limit=500)[0] for a, b in pairwise(cuts))

    latest = over(0.0, 0.0) / (n * gamma * Q)
    goal = s / (g(start) * Q * (Q + s))

    def excess(end: float) -> float:
        return 0.25 * -mu * (1 - s / Q) * over(1.5, end) / scale - goal

    step = 1.0
    origin = -np.log1p(-start) if square else start
    while excess(origin + step) < 0:
        step *= 1.5
    end = root(excess, origin, origin + step)
    critical = over(0.5, end) / (2 * n * gamma)
    # past margin 0 more linear probing hurts only while the head is the smaller
    latest = latest if _head_after(problem, weights, time, clip) <= Q else np.inf
    return Crossover("lp-helps-above", float(critical), float(latest), True, "")


def _plain(g: Callable[[float], float], scale: float, PN: float, power: float) -> Callable[[float], float]:
    return lambda m: 1 / (g(m) * ((m / scale) ** 2 + PN) ** power)


def _slow(scale: float, PN: float, power: float) -> Callable[[float], float]:
    return lambda p: 1 / ((np.expm1(-p) / scale) ** 2 + PN) ** power


def _head_after(problem: Problem, weights: Weights, time: float, clip: float | None) -> float:
    """Squared norm of a collapsed block's head after linear probing for ``time``."""
    from bounds._flow import Flow

    flow = Flow(problem, weights)
    flow.run(Phase("lp", time, 0.0, clip), np.array([time]), 0.0, lambda *_: 0.0)
    return float(flow.v @ flow.v)


def collapsed(problem: Problem, weights: Weights) -> tuple[Block | None, str]:
    """Return the one block of a collapsed problem."""
    reason = BLOCKS.refuses(problem)
    if reason:
        return None, reason
    signed = problem.y[:, None] * problem.X
    if np.abs(signed - signed[0]).max() > 1e-9 * np.abs(signed[0]).max(initial=0.0) or not signed[0].any():
        return None, "the y_i x_i are not all equal"
    if problem.activation == "linear":
        pre = signed[:1] @ weights.W.T
        n, h = problem.samples, len(weights.v)
        none = np.empty((h, 0)), np.empty((0, problem.dim))
        # signs may differ: no cone matters to a linear net
        Z = np.repeat(pre.T, n, axis=1)
        return Block(np.arange(n), np.arange(h), np.ones(h), Z, weights.v, signed, *none), ""
    blocks, reason = decouple(problem, weights)
    reason = reason or fft_obstacle(problem, blocks)
    if reason:
        return None, reason
    if len(blocks) != 1 or len(blocks[0].neurons) != weights.width:
        return None, "some neurons belong to another class"
    block = blocks[0]
    # z_j^2 - gamma alpha_j^2 is conserved: the head turns before the neuron leaves its cone
    if (block.Z[:, 0] <= -np.sqrt(block.G[0, 0]) * block.alpha).any():
        return None, "a neuron may leave its cone"
    return block, ""
