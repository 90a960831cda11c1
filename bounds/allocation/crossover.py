"""When linear probing first lowers the final loss (section 6b)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.integrate import quad

from bounds.features.blocks import COVERS as BLOCKS
from bounds.features.blocks import MARGINS, Block, Margin, collapsed
from bounds.features.classes import COVERS as CLASSES
from bounds.features.classes import class_margin, classes_obstacle, decouple_classes
from bounds.features.effects import scalar_effect
from bounds.support.covers import declares
from bounds.support.numeric import root
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate

CROSSOVER = "new (6b)"
CLASSES_CROSSOVER = "new (6b with the loss of 4b'(a))"
KINDS = {"one output": BLOCKS, "K classes": replace(CLASSES, losses=("softmax",))}
# exponents beyond this overflow
STEEP = 600.0


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


@declares(KINDS)
def lp_crossover(problem: Problem, weights: Weights, *, time: float, clip: float | None = None) -> Crossover:
    r"""Decide whether a first phase of linear probing can lower the final loss of a collapsed block.

    New (6b), zeroth order. For a block of ``n`` equal ``y_i x_i = x``, with ``gamma = ||x||^2``, ``u = W x /
    sqrt(gamma)``, ``Q = ||u||^2``, heads ``alpha``, ``s = ||alpha||^2``, ``mu = alpha . u``:

    1. ``mu >= 0`` and ``s <= Q`` through linear probing: the final loss rises with the time of linear
       probing; the best share is 0.
    2. ``mu_0 < 0``, ``s_0 < Q``, unclipped: a short linear probing helps iff the total time exceeds
       ``T_c``. Below ``T_c`` it hurts: a smaller budget does *not* ask for a larger share. (A longer one may
       help below ``T_c``, too, where the head nearly opposes the features.) If also ``s <= Q``
       through linear probing, every minimiser switches by ``t_0 = int_{m_0}^0 dm / (n gamma Q g)``. A
       head that outgrows the features (logistic loss, large times) makes a much later switch better.

    With K classes and heads that are equal for all other classes, such as zero heads, each class is such a
    block, of the inputs ``sqrt(K / (K - 1)) x`` and the loss ``log(1 + (K - 1) exp(-m))``. If each is in
    case 1, so is their sum.

    Parameters
    ----------
    problem, weights
        One block: a ReLU net with one class of samples and only neurons of its cone, each sure to
        stay there (``|v_j| < u_j`` if misaligned), or a linear net; all ``y_i x_i`` equal (to a relative
        1e-9). With K classes (softmax) under assumptions 3.1' and 3.2' the same of each class.
    time : float
        Total time, for the condition on ``s`` through linear probing.
    clip : float or None
        Threshold of flat clipping; case 2 needs None.

    Returns
    -------
    Crossover
        ``valid`` False with a reason outside both cases, and in case 2 with several classes that learn.

    Examples
    --------
    >>> problem = Problem([[1.0], [1.0]], [1, 1])
    >>> lp_crossover(problem, Weights([[1.0], [1.0]], [0.2, 0.3]), time=1.0).case
    'fft'
    >>> found = lp_crossover(problem, Weights([[2.0], [1.0]], [-0.6, 0.1]), time=1.0)
    >>> found.case, found.critical_time > 0
    ('lp-helps-above', True)
    >>> problem, W = Problem(np.eye(3), [0, 1, 2], loss="softmax"), 1.5 * np.eye(3) - 0.5
    >>> lp_crossover(problem, Weights(W, np.zeros((3, 3))), time=1.0, clip=1.0).case
    'fft'
    """
    require_moderate(problem, weights, clip=clip, time=time, pairs=True)
    found = crossovers(problem, weights, time, clip)
    bad = next((one for one in found if not one.valid), None)
    if bad is not None or len(found) == 1:
        return bad or found[0]
    if any(one.case != "fft" for one in found):
        return _unknown(
            "some margin is negative at the start, and several classes learn (6b(2) is of one block)",
            CLASSES_CROSSOVER,
        )
    return Crossover("fft", np.inf, 0.0, True, "", found[0].source if found else CLASSES_CROSSOVER)


def crossovers(problem: Problem, weights: Weights, time: float, clip: float | None) -> list[Crossover]:
    """One `Crossover` of the whole net with one output, and of each class that has neurons with K outputs."""
    time = validate.positive("time", time)
    clip = validate.positive_or_none("clip", clip)
    if problem.outputs_dim == 1:
        block, reason = collapsed(problem, weights)
        if block is None:
            return [_unknown(reason)]
        return [_of_block(block, MARGINS[problem.loss], time, clip)]
    blocks, reason = _collapsed_classes(problem, weights)
    if reason:
        return [_unknown(reason, CLASSES_CROSSOVER)]
    margin = class_margin(problem.outputs_dim)
    found = [_of_block(block, margin, time, clip) for block in blocks]
    return [replace(one, source=CLASSES_CROSSOVER) for one in found]


def _unknown(reason: str, source: str = CROSSOVER) -> Crossover:
    return Crossover("", np.nan, np.nan, False, reason, source)


def _of_block(block: Block, loss: Margin, time: float, clip: float | None) -> Crossover:
    """The crossover of one collapsed block with a scalar head."""
    n, gamma = len(block.samples), float(block.G[0, 0])
    u = block.Z[:, 0] / np.sqrt(gamma)
    Q, s, mu = float(u @ u), float(block.alpha @ block.alpha), float(block.alpha @ u)
    square = np.isfinite(loss.end)
    if mu * np.sqrt(gamma) >= loss.end:
        return _unknown("the margin is at least 1 (square loss)")

    def g(m: float) -> float:
        return float(loss.slope(np.array(m)))

    if mu >= 0:
        if s <= Q and time <= _until_outgrown(loss, n, gamma, Q, s, mu, clip):
            return Crossover("fft", np.inf, 0.0, True, "")
        return _unknown("the head outgrows the features in linear probing")
    if clip is not None:
        return _unknown("the initial margin is negative and the phase clips")
    if s >= Q:
        return _unknown("the initial margin is negative and the head too large")
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
    latest = latest if time <= _until_outgrown(loss, n, gamma, Q, s, mu, clip) else np.inf
    return Crossover("lp-helps-above", float(critical), float(latest), True, "")


def _plain(g: Callable[[float], float], scale: float, PN: float, power: float) -> Callable[[float], float]:
    return lambda m: 1 / (g(m) * ((m / scale) ** 2 + PN) ** power)


def _slow(scale: float, PN: float, power: float) -> Callable[[float], float]:
    return lambda p: 1 / ((np.expm1(-p) / scale) ** 2 + PN) ** power


def _until_outgrown(
    loss: Margin, n: int, gamma: float, Q: float, s: float, mu: float, clip: float | None
) -> float:
    """Time for which linear probing keeps ``s <= Q``, which holds at the start."""
    if Q == 0:
        return np.inf
    # in the clock S = int n c g dt: m = m_0 + gamma Q S and s = s_0 + 2 sqrt(gamma) mu S + gamma Q S^2
    size, start = np.sqrt(gamma * Q), np.sqrt(gamma) * mu
    half = mu / np.sqrt(Q)
    end = start + size * (np.sqrt(half**2 + Q - s) - half)
    if end >= loss.end:
        return np.inf
    most = np.inf if clip is None else clip / size

    def short(m: float) -> float:
        return float(loss.slope(np.array(m))) - most

    # beyond such margins the time overflows, and less time is said
    cuts = [start, min(end, max(start, 0.0) + STEEP)]
    if short(cuts[0]) > 0 > short(cuts[1]):
        cuts.insert(1, root(short, *cuts))
    time = sum(
        quad(lambda m: 1 / min(float(loss.slope(np.array(m))), most), a, b, limit=500)[0]
        for a, b in pairwise(cuts)
    )
    return time / (n * gamma * Q)


def _collapsed_classes(problem: Problem, weights: Weights) -> tuple[list[Block], str]:
    """Scalar nets of the classes that have neurons, if each is collapsed and sure to stay in its cones."""
    reason = KINDS["K classes"].refuses(problem)
    blocks, obstacle = ([], "") if reason else decouple_classes(problem, weights)
    reason = reason or obstacle or classes_obstacle(blocks)
    if reason:
        return [], reason
    found, margin = [], class_margin(problem.outputs_dim)
    for block in blocks:
        if not len(block.neurons):
            continue
        if np.abs(block.X - block.X[0]).max() > 1e-9 * np.abs(block.X[0]).max():
            return [], f"the inputs of class {block.own} are not all equal"
        if not block.symmetric:
            return [], f"heads of class {block.own} are not equal for all other classes (4b'(a))"
        if not scalar_effect(block.scalar(), margin, None).survives.all():
            return [], f"a neuron of class {block.own} may leave its cone"
        found.append(block.scalar())
    return found, ""
