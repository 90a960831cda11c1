"""What full fine-tuning does to the features (section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bounds.distance.flow import span
from bounds.features.blocks import COVERS as BLOCKS
from bounds.features.blocks import MARGINS, ROUNDOFF, Block, decouple, fft_obstacle
from bounds.support.covers import Covers, declares
from bounds.support.ranges import require_moderate
from langevin.model.activations import ACTIVATIONS
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

DISTORTION = "re-derived, sharp form new; replaces Theorem 3.3 of [1]"
RELU = replace(BLOCKS, activations=("relu",))
# smooth activations too: then the drift is continuous at the start
DRIFT = Covers(
    ("logistic", "square", "huber"), ("relu", "linear", "gelu", "tanh"), lp=(), fft=("none", "flat")
)


@dataclass(frozen=True, eq=False)
class Distortion:
    """The effect of full fine-tuning on each neuron while its head is misaligned; see `distortion`.

    Attributes
    ----------
    valid : bool
    reason : str
        Why the statement does not hold; all arrays are then False or NaN.
    probability : float
        ``1 - 2^-h``: chance that a head drawn from ``N(0, beta^2)`` misaligns some neuron.
    classes : ndarray, shape (h,)
        ``s_j``, the class whose cone a neuron lies in: -1 or +1.
    misaligned : ndarray of bool, shape (h,)
        ``s_j v_j < 0``: own-class pre-activations fall, opposite ones move towards zero.
    duration : ndarray, shape (h,)
        Least time for which a misaligned neuron stays so, if no neuron leaves its cone before; 0 for the
        aligned, infinite if no sample pulls the head.
    survives : ndarray of bool, shape (h,)
        The head's sign is sure to flip before the neuron can leave its cone (True if aligned).
    largest_drop : ndarray, shape (h,)
        ``delta_j``: most that an own-class pre-activation falls; NaN unless the flip is sure.
    largest_rise : ndarray, shape (h,)
        Most that an opposite-class pre-activation moves towards zero; NaN unless the flip is sure.
    never_flips : ndarray of bool, shape (h,)
        ``|v_j| >= ||w_j||`` of a misaligned neuron: balancedness forbids that its head flips.
    cosine_falls : ndarray of bool, shape (h,)
        At time 0 the neuron's cosine to its class mean is sure to be falling.
    fixed : bool
        All neurons survive: the activation patterns never change.
    scope : str
        Until when all this holds.
    source : str
    """

    valid: bool
    reason: str
    probability: float
    classes: FloatArray
    misaligned: NDArray[np.bool_]
    duration: FloatArray
    survives: NDArray[np.bool_]
    largest_drop: FloatArray
    largest_rise: FloatArray
    never_flips: NDArray[np.bool_]
    cosine_falls: NDArray[np.bool_]
    fixed: bool
    scope: str
    source: str = DISTORTION


@declares(replace(RELU, lp=()))
def distortion(problem: Problem, weights: Weights, *, clip: float | None = None) -> Distortion:
    r"""Determine which features full fine-tuning distorts, the minimum duration, and which survive.

    Re-derived; replaces Theorem 3.3 of [1]_; the sharp form of survival and of the duration is
    new. Zeroth order, under assumptions 3.1 and 3.2.

    Statement
        While ``alpha_j = s_j v_j < 0``, pre-activations of the neuron's own class fall and those of
        the other class move towards zero, for at least ``|v_j| / sum_i min(C, g_i(0) z_ji(0))`` over
        the class's ``n_s`` samples, as long as no neuron leaves its cone; for at least ``|v_j| / (n_s C)``
        whatever the others do. With ``zeta_j = min_k z_jk(0)`` and ``Gamma = max G`` in the class,
        ``zeta_j^2 > Gamma v_j^2`` makes the head flip after a drop of at most ``delta_j = zeta_j -
        sqrt(zeta_j^2 - Gamma v_j^2)``, while the pre-activation of a sample of the other class rises
        by at most ``Gamma'_k delta_j / Gamma``, ``Gamma'_k`` its largest ``|G_ik|``. If each was further
        from zero, no pattern ever changes.

    Parameters
    ----------
    problem, weights
        ReLU network; time is that of full fine-tuning from ``weights``.
    clip : float or None
        Threshold of flat clipping.

    Returns
    -------
    Distortion
        For all time with the logistic loss; with the square loss until a margin reaches 1. With
        ``valid`` False and a reason where an assumption fails.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> found = distortion(problem, Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.6, 0.3]), clip=1.0)
    >>> found.misaligned, found.survives
    (array([ True,  True]), array([ True,  True]))
    >>> found.largest_drop.round(3)
    array([0.2  , 0.046])
    """
    require_moderate(problem, weights, clip=clip, pairs=True)
    clip = validate.positive_or_none("clip", clip)
    h = len(weights.v)
    no, nan = np.zeros(h, dtype=bool), np.full(h, np.nan)
    probability = 1 - 0.5**weights.width
    blocks, reason = decouple(problem, weights)
    reason = RELU.refuses(problem) or reason or fft_obstacle(problem, blocks)
    if not reason and any((b.margins >= MARGINS[problem.loss].end).any() for b in blocks):
        reason = "a margin is at least 1 from the start (square loss)"
    if reason:
        return Distortion(False, reason, probability, nan, no, nan, no, nan, nan, no, no, False, "nowhere")
    signs = np.zeros(h)
    misaligned, survives = no.copy(), np.ones(h, dtype=bool)
    duration, drop, rise = np.zeros(h), np.zeros(h), np.zeros(h)
    never, falls = no.copy(), no.copy()
    norms = np.linalg.norm(span(problem, weights).W, axis=1)
    for block in blocks:
        j = block.neurons
        signs[j] = block.sign
        bad = block.alpha < 0
        misaligned[j] = bad
        pull = block.Z * MARGINS[problem.loss].slope(block.margins)
        pull = pull if clip is None else np.minimum(pull, clip)
        duration[j] = np.where(bad, -block.alpha / pull.sum(1), 0.0)
        zeta, most = block.Z.min(1), float(block.G.max())
        left = zeta**2 - most * block.alpha**2
        fall = np.where(left > 0, zeta - np.sqrt(np.maximum(left, 0.0)), np.nan)
        fall = np.where(bad, fall, 0.0)
        up = fall[:, None] * block.G_opposite.max(0, initial=0.0) / most
        drop[j], rise[j] = fall, up.max(1, initial=0.0)
        survives[j] = ~bad | ((left > 0) & (up < block.opposite).all(1))
        never[j] = bad & (np.abs(block.alpha) >= norms[j])
        falls[j] = bad & _beyond_class(problem, weights, block)
    # neurons of a class without samples belong to no block: nothing pulls them
    orphan = signs == 0
    if orphan.any():
        signs[orphan] = -problem.y[0]
        misaligned[orphan] = signs[orphan] * weights.v[orphan] < 0
        duration[orphan & misaligned] = np.inf
    rise[np.isnan(drop)] = np.nan
    lasting = np.isinf(MARGINS[problem.loss].end)
    scope = "for all time" if lasting else "until a margin reaches 1 (square loss)"
    return Distortion(
        True,
        "",
        probability,
        signs,
        misaligned,
        duration,
        survives,
        drop,
        rise,
        never,
        falls,
        bool(survives.all()),
        scope,
    )


def _beyond_class(problem: Problem, weights: Weights, block: Block) -> NDArray[np.bool_]:
    """Tell whether a neuron's angle to its class mean exceeds that of every sample of the class."""
    x = problem.X[block.samples]
    mean = x.mean(0)
    mean = mean / np.linalg.norm(mean)
    least = float((x @ mean / np.linalg.norm(x, axis=1)).min())
    w = weights.W[block.neurons]
    return (w @ mean / np.linalg.norm(w, axis=1) < least) & (least > 0)


@declares(DRIFT)
def drift_of_expectation(problem: Problem, weights: Weights, *, clip: float | None = None) -> FloatArray:
    r"""Rate at which ``E[w_j . x_k]`` starts to move in full fine-tuning, for the diffusion itself.

    Re-derived; the remark to Theorem 3.3 of [1]_: the noise has mean zero, so at time 0 ``d/dt E[w_j .
    x_k] = -v_j sum_i c_i r_i phi'(w_j . x_i) <x_i, x_k>`` whatever ``sigma``. Under assumptions 3.1 and
    3.2 the distortion of misaligned neurons thus also holds in expectation, for small times.

    Assumptions
        No ``w_j . x_i`` is 0 in a ReLU network, where the drift jumps.

    Parameters
    ----------
    problem, weights
    clip : float or None
        Threshold of flat clipping.

    Returns
    -------
    ndarray, shape (h, n)
        Per unit time; NaN for neurons that are exactly at a sample's boundary.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> weights = Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.6, 0.3])
    >>> drift_of_expectation(problem, weights, clip=0.2).diagonal().round(3)
    array([-0.103, -0.057])
    """
    require_moderate(problem, weights, clip=clip)
    DRIFT.require(problem)
    clip = validate.positive_or_none("clip", clip)
    X = problem.X
    pre = X @ weights.W.T
    norms = problem.gradient_norms(weights, "fft")
    factors = np.ones(len(X)) if clip is None else clip / np.maximum(norms, clip)
    u = factors * problem.residuals(problem.outputs(weights))
    rate = -weights.v[:, None] * ((problem.slope(pre) * u[:, None]).T @ X @ X.T)
    if not ACTIVATIONS[problem.activation].smooth:
        scale = np.sqrt(problem.squared_norms)[:, None] * np.linalg.norm(weights.W, axis=1)
        rate[((np.abs(pre) <= ROUNDOFF * scale) & (problem.squared_norms[:, None] > 0)).any(0)] = np.nan
    return rate
