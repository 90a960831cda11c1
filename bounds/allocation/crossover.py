"""When linear probing first lowers the final loss (section 6b)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.integrate import quad

from bounds.features.blocks import COVERS as BLOCKS
from bounds.features.blocks import MARGINS, collapsed
from bounds.support.covers import declares
from bounds.support.numeric import root
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Phase
from langevin.model.weights import Weights
from langevin.support import validate

CROSSOVER = "new (6b)"


@dataclass(frozen=True)
class Crossover:
    """Conditions under which a short linear probing lowers a collapsed block's loss; see `lp_crossover`.

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
    r"""Decide whether a first phase of linear probing can lower the final loss of a collapsed block.

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
    time = validate.positive("time", time)
    clip = validate.positive_or_none("clip", clip)
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
    from bounds.distance.flow import Flow

    flow = Flow(problem, weights)
    flow.run(Phase("lp", time, 0.0, clip), np.array([time]), 0.0, lambda *_: 0.0)
    return float(flow.v @ flow.v)
