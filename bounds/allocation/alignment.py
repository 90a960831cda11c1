"""When linear probing has aligned the heads (section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bounds.features.blocks import MARGINS, Block, Margin, decouple, fft_obstacle
from bounds.features.distortion import RELU
from bounds.loss.enclosure import enclose
from bounds.support.covers import declares
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.support import validate

ALIGNMENT = "re-derived; replaces Theorem 3.4 of [1]"
ALIGNED = replace(RELU, fft=())
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
        ``Delta t_s`` by class.
    valid : bool
    reason : str
    lasting : bool
        Whether from then on full fine-tuning distorts nothing more, for ever: assumption 3.1 and the
        logistic loss.
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

    Re-derived; replaces Theorem 3.4 of [1]_. Zeroth order, under assumption 3.2.

    Statement
        All heads of class ``s`` are aligned by ``G* / (n_s min(g_min, C / max_i ||A_i||))`` with ``G* =
        max |v_j(0)| / min_k z_jk`` over the misaligned, ``F = max_i m_i(0)``, ``M = max <A_i, A_k>``
        and ``g_min = 1 / (1 + exp(F + M G*))``, or ``1 - (F + M G*)`` for the square loss. ``sharp`` is
        ``int_0^G* dS / sum_i min(g(m_i(0) + S max_k K_ik), C / ||A_i||)``, new.

    Parameters
    ----------
    problem, weights
        ReLU network.
    clip : float or None
        Threshold of flat clipping, over the head's gradients.

    Returns
    -------
    AlignmentTime
        With the square loss valid only if every class keeps its margins below 1 until then.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> found = alignment_time(problem, Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.6, 0.3]), clip=1.0)
    >>> round(found.time, 3), found.lasting
    (1.2, True)
    """
    require_moderate(problem, weights, clip=clip, pairs=True)
    clip = validate.positive_or_none("clip", clip)
    blocks, reason = decouple(problem, weights)
    reason = ALIGNED.refuses(problem) or reason
    if reason:
        return _unknown(reason)
    loss = MARGINS[problem.loss]
    per_class, sharp = {}, 0.0
    for block in blocks:
        cls = int(problem.y[block.samples[0]])
        found = _class_time(loss, block, clip)
        if found is None:
            return _unknown(
                f"the margins of class {cls:+d} may reach 1 before its heads are aligned (square loss)"
            )
        per_class[cls] = found[0]
        sharp = max(sharp, found[1])
    time = max(per_class.values(), default=0.0)
    reason = _overshoot(problem, weights, clip, time) if np.isfinite(loss.end) else ""
    if reason:
        return _unknown(reason)
    lasting = bool(np.isinf(loss.end)) and not fft_obstacle(problem, blocks)
    return AlignmentTime(time, sharp, per_class, True, "", lasting)


def _unknown(reason: str) -> AlignmentTime:
    return AlignmentTime(np.nan, np.nan, {}, False, reason, False)


def _class_time(loss: Margin, block: Block, clip: float | None) -> tuple[float, float] | None:
    """``Delta t_s`` of a class and its sharp form; None if the loss may end before."""
    bad = block.alpha < 0
    if not bad.any():
        return 0.0, 0.0
    goal = float((-block.alpha[bad] / block.Z[bad].min(1)).max())
    K = block.Z.T @ block.Z
    g_min = float(loss.slope(np.array(block.margins.max() + K.max() * goal)))
    if g_min <= 0:
        return None
    sizes = np.sqrt(np.diag(K))
    speed = min(g_min, np.inf if clip is None else clip / float(sizes.max()))
    time = goal / (len(block.samples) * speed)
    # the integrand rises, so a sum over right ends stays an upper bound
    S = goal * np.arange(1, NODES + 1) / NODES
    g = loss.slope(block.margins + S[:, None] * K.max(1))
    rates = (g if clip is None else np.minimum(g, clip / sizes)).sum(1)
    return time, min(time, goal / NODES * float((1 / rates).sum()))


def _overshoot(problem: Problem, weights: Weights, clip: float | None, time: float) -> str:
    """Return why the square loss may overshoot in linear probing until ``time``, or ''."""
    if time == 0.0:
        return "" if (problem.y * problem.outputs(weights) < 1).all() else "a margin is at least 1"
    found = enclose(problem, weights, Schedule.lp(time=time, clip=clip), [time])
    return found if isinstance(found, str) else found.reason
