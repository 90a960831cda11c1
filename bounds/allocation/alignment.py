"""When linear probing has aligned the heads (section 3.4)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from bounds.features.blocks import MARGINS, Block, Margin, decouple, fft_obstacle
from bounds.features.classes import COVERS as CLASSES
from bounds.features.classes import ClassBlock, class_margin, classes_obstacle, decouple_classes
from bounds.features.distortion import RELU
from bounds.loss.enclosure import enclose
from bounds.support.covers import declares
from bounds.support.ranges import require_moderate
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

ALIGNMENT = "re-derived; replaces Theorem 3.4 of [1]"
CLASSES_ALIGNMENT = "new (3.4')"
ALIGNED = {"one output": replace(RELU, fft=()), "K classes": replace(CLASSES, fft=())}
NODES = 4096


@dataclass(frozen=True)
class AlignmentTime:
    """Time of linear probing after which every head is aligned; see `alignment_time`.

    ``float()`` of it is ``time``.

    Attributes
    ----------
    time : float
        ``Delta t``; NaN if not valid.
    sharp : float
        The same from the enclosed clock itself, never larger; NaN if not valid.
    per_class : dict
        ``Delta t_s`` by class: -1 and +1, or the number of each of K classes, 0 without neurons.
    valid : bool
    reason : str
    lasting : bool
        Whether from then on full fine-tuning distorts nothing more, for ever, at zeroth order: assumption 3.1
        and the logistic loss, or 3.1' with K classes. That of noise-free steps, with any batches, does not
        either.
    source : str
    """

    time: float
    sharp: float
    per_class: dict[int, float]
    valid: bool
    reason: str
    lasting: bool
    source: str = ALIGNMENT

    def __float__(self) -> float:
        return self.time


@declares(ALIGNED)
def alignment_time(problem: Problem, weights: Weights, *, clip: float | None = None) -> AlignmentTime:
    r"""Time by which linear probing has aligned every head.

    Re-derived; replaces Theorem 3.4 of [1]_; what it says of K classes is new (3.4'). Zeroth order, under
    assumption 3.2 or 3.2'.

    Statement
        All heads of class ``s`` are aligned by ``G* / (n_s min(g_min, C / max_i ||A_i||))`` with ``G* =
        max |v_j(0)| / min_k z_jk`` over the misaligned, ``F = max_i m_i(0)``, ``M = max <A_i, A_k>``
        and ``g_min = 1 / (1 + exp(F + M G*))``, or ``1 - (F + M G*)`` for the square loss. ``sharp`` is
        ``int_0^G* dS / sum_i min(g(m_i(0) + S max_k K_ik), C / ||A_i||)``, new.

    Statement, K classes
        Softmax: the same with ``G* = max (max_k V_jk - V_jc) / min_k z_jk``, the margins ``f_y - log sum_k
        exp f_k`` over the other classes, ``2 M`` and ``2 K_ik`` for the products, and ``sqrt(2) ||A_i||`` for
        the norms. Heads equal for all other classes, such as all of two classes, train as a scalar net,
        whose statement then is used. One-vs-rest: the largest of the times of the ``K`` outputs, each with
        its own margins ``+-f_k``, ``G*`` of its misaligned part, and ``g_min min(1, C / (sqrt(K) max_i
        ||A_i||))`` for the speed. Zero heads: 0.

    Parameters
    ----------
    problem, weights
        ReLU network.
    clip : float or None
        Threshold of flat clipping, over the head's gradients.

    Returns
    -------
    AlignmentTime
        With the square loss valid only if every class keeps its margins below 1 until then. Infinite where
        the residuals may become smaller than any number.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> found = alignment_time(problem, Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.6, 0.3]), clip=1.0)
    >>> round(found.time, 3), found.lasting
    (1.2, True)
    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> W = 1.5 * np.eye(3) - 0.5
    >>> found = alignment_time(problem, Weights(W, [[0.0, 0.2, 0.1], [0.0, 0.4, 0.1], [0, 0, 0]]), clip=1.0)
    >>> {label: round(time, 3) for label, time in found.per_class.items()}
    {0: 0.328, 1: 0.0, 2: 0.0}
    """
    require_moderate(problem, weights, clip=clip, pairs=True)
    clip = validate.positive_or_none("clip", clip)
    return (_scalar if problem.outputs_dim == 1 else _classes)(problem, weights, clip)


def _scalar(problem: Problem, weights: Weights, clip: float | None) -> AlignmentTime:
    blocks, reason = decouple(problem, weights)
    reason = ALIGNED["one output"].refuses(problem) or reason
    if reason:
        return _unknown(reason)
    loss = MARGINS[problem.loss]
    found = {int(problem.y[block.samples[0]]): _clock(loss, block, clip) for block in blocks}
    for cls, clock in found.items():
        if clock.goal > 0 and clock.slowest <= 0 and np.isfinite(loss.end):
            return _unknown(
                f"the margins of class {cls:+d} may reach 1 before its heads are aligned (square loss)"
            )
    per_class = {cls: clock.time for cls, clock in found.items()}
    time = max(per_class.values(), default=0.0)
    reason = _overshoot(problem, weights, clip, time) if np.isfinite(loss.end) else ""
    if reason:
        return _unknown(reason)
    lasting = bool(np.isinf(loss.end)) and not fft_obstacle(problem, blocks)
    sharp = max((clock.sharp for clock in found.values()), default=0.0)
    return AlignmentTime(time, sharp, per_class, True, "", lasting)


def _classes(problem: Problem, weights: Weights, clip: float | None) -> AlignmentTime:
    blocks, reason = decouple_classes(problem, weights)
    if reason:
        return _unknown(reason, CLASSES_ALIGNMENT)
    clocks = {block.own: _class_clocks(problem.loss, block, clip) for block in blocks}
    per_class = dict.fromkeys(range(problem.outputs_dim), 0.0)
    per_class |= {own: max((clock.time for clock in found), default=0.0) for own, found in clocks.items()}
    sharp = max((clock.sharp for found in clocks.values() for clock in found), default=0.0)
    lasting = not classes_obstacle(blocks)
    return AlignmentTime(max(per_class.values()), sharp, per_class, True, "", lasting, CLASSES_ALIGNMENT)


def _unknown(reason: str, source: str = ALIGNMENT) -> AlignmentTime:
    return AlignmentTime(np.nan, np.nan, {}, False, reason, False, source)


@dataclass(frozen=True)
class _Clock:
    """A clock ``S = int sum_i c_i g_i dt`` that probing takes to ``goal``, where heads are aligned.

    Attributes
    ----------
    slope : callable
        ``g`` of a margin.
    goal : float
        ``G*``.
    margins, growth : ndarray, shape (samples,)
        Margins at the start, and the most that they grow per unit of the clock.
    factor, cap : ndarray, shape (samples,)
        ``c_i g_i >= min(factor_i g_i, cap_i)``.
    """

    slope: Callable[[FloatArray], FloatArray]
    goal: float
    margins: FloatArray
    growth: FloatArray
    factor: FloatArray
    cap: FloatArray

    @property
    def slowest(self) -> float:
        """``g_min``, no larger than any ``g`` before the goal."""
        return float(self.slope(self.margins.max() + self.growth.max() * self.goal))

    @property
    def time(self) -> float:
        """Time to the goal at the speed of the slowest."""
        if self.goal == 0:
            return 0.0
        speed = min(self.slowest * float(self.factor.min()), float(self.cap.min()))
        return self.goal / (len(self.margins) * speed) if speed > 0 else np.inf

    @property
    def sharp(self) -> float:
        """Time to the goal by the enclosed margins."""
        # the integrand rises, so a sum over right ends stays an upper bound
        S = self.goal * np.arange(1, NODES + 1) / NODES
        g = self.slope(self.margins + S[:, None] * self.growth)
        rates = np.minimum(g * self.factor, self.cap).sum(1)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            return min(self.time, self.goal / NODES * float((1 / rates).sum()))


def _clock(loss: Margin, block: Block, clip: float | None) -> _Clock:
    """The clock of a scalar head."""
    K = block.Z.T @ block.Z
    goal = _furthest(-block.alpha, block.Z)
    return _Clock(loss.slope, goal, block.margins, K.max(1), np.ones(len(K)), _caps(K, clip))


def _class_clocks(loss: str, block: ClassBlock, clip: float | None) -> list[_Clock]:
    """The clocks that align the heads of a class: one with softmax, one for each output one-vs-rest."""
    if not len(block.neurons):
        return []
    if loss == "softmax" and block.symmetric:
        return [_clock(class_margin(block.classes), block.scalar(), clip)]
    K = block.Z.T @ block.Z
    steepest = LOSSES[loss].steepest(block.classes)
    assert steepest is not None
    ones, cap = np.ones(len(K)), _caps(K, clip) / steepest
    slope = MARGINS["logistic"].slope
    if loss == "softmax":
        gaps = (block.rivals - block.V[:, [block.own]]).max(1)
        return [_Clock(slope, _furthest(gaps, block.Z), block.margins, 2 * K.max(1), ones, cap)]
    sign = np.where(np.arange(block.classes) == block.own, 1.0, -1.0)
    factor = np.minimum(cap, 1.0)
    return [
        _Clock(slope, _furthest(-s * v, block.Z), s * f, K.max(1), factor, np.inf * ones)
        for s, v, f in zip(sign, block.V.T, block.outputs.T, strict=True)
    ]


def _caps(K: FloatArray, clip: float | None) -> FloatArray:
    """``C / ||A_i||``; infinite without a clip."""
    with np.errstate(divide="ignore"):
        return np.full(len(K), np.inf) if clip is None else clip / np.sqrt(np.diag(K))


def _furthest(gaps: FloatArray, Z: FloatArray) -> float:
    """``G*``: the clock at which the last of the gaps is closed, at a rate of at least ``min_k z_jk``."""
    return float((np.maximum(gaps, 0.0) / Z.min(1)).max(initial=0.0))


def _overshoot(problem: Problem, weights: Weights, clip: float | None, time: float) -> str:
    """Return why the square loss may overshoot in linear probing until ``time``, or ''."""
    if time == 0.0:
        return "" if (problem.y * problem.outputs(weights) < 1).all() else "a margin is at least 1"
    found = enclose(problem, weights, Schedule.lp(time=time, clip=clip), [time])
    return found if isinstance(found, str) else found.reason
