"""What full fine-tuning does to the features (section 3)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bounds.distance.flow import span
from bounds.features.blocks import COVERS as BLOCKS
from bounds.features.blocks import MARGINS, ROUNDOFF, Block, decouple, fft_obstacle
from bounds.features.classes import COVERS as CLASSES
from bounds.features.classes import (
    TARGETS,
    ClassBlock,
    classes_obstacle,
    decouple_classes,
    decouple_targets,
)
from bounds.features.effects import Effect, class_effect, gather, scalar_effect, square_effect
from bounds.support.covers import Covers, declares
from bounds.support.ranges import require_moderate
from langevin.model.activations import ACTIVATIONS
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

DISTORTION = "re-derived, sharp form new; replaces Theorem 3.3 of [1]"
CLASSES_DISTORTION = "new (3.3')"
RELU = replace(BLOCKS, activations=("relu",))
# smooth activations too: then the drift is continuous at the start
DRIFT = Covers(
    ("logistic", "square", "huber"), ("relu", "linear", "gelu", "tanh"), lp=(), fft=("none", "flat")
)
KINDS = {
    "one output": replace(RELU, lp=()),
    "K classes": replace(CLASSES, lp=()),
    "K targets": replace(TARGETS, lp=()),
}


@dataclass(frozen=True, eq=False)
class Distortion:
    """The effect of full fine-tuning on each neuron while its head is misaligned; see `distortion`.

    With one output "aligned" means ``s_j v_j >= 0``. With K classes ``c`` is the class of the neuron and the
    aligned cone is ``V_jc >= V_jk`` for all ``k`` (softmax), or ``V_jc >= 0 >= V_jk`` (one-vs-rest); with the
    square loss and K targets ``V_jk r_ik <= 0``.

    Attributes
    ----------
    valid : bool
    reason : str
        Why the statement does not hold; all arrays are then False or NaN.
    probability : float
        Chance that a head drawn from ``N(0, beta^2)`` misaligns some neuron: ``1 - 2^-h``; with K classes
        ``1 - K^-h`` (softmax) or ``1 - 2^(-K h)`` (one-vs-rest); NaN with K targets.
    wholly_probability : float
        Chance that it misaligns some neuron wholly: ``1 - (1 - p)^h`` where a single one is with probability
        ``p``, which is 1/2, 1/K or ``2^-K``.
    classes : ndarray, shape (h,)
        Class whose cone a neuron lies in: ``s_j``, -1 or +1, or the number of the class, NaN for a neuron
        that is active on no sample.
    misaligned : ndarray of bool, shape (h,)
        The head is outside the aligned cone. With one output own-class pre-activations then fall and opposite
        ones move towards zero; with K classes they may.
    wholly : ndarray of bool, shape (h,)
        With K classes ``V_jc < V_jk`` for all ``k`` (softmax), ``V_jc < 0 < V_jk`` (one-vs-rest): all samples
        push the neuron away from them, whatever the outputs. With one output: misaligned.
    pushed : ndarray of bool, shape (h,)
        At time 0 some sample of its class pushes the neuron away, ``V_j . r_i > 0``. With one output:
        misaligned.
    distance : ndarray, shape (h,)
        ``a_j``, the distance of the head to the aligned cone: ``|v_j|`` of a misaligned neuron.
    duration : ndarray, shape (h,)
        Least time for which a misaligned neuron stays so, if no neuron leaves its cone before; 0 for the
        aligned, infinite if no sample pulls the head.
    survives : ndarray of bool, shape (h,)
        The neuron is sure never to leave its cone (True if aligned): its head becomes aligned before
        (one-vs-rest: or stays misaligned without harm).
    largest_drop : ndarray, shape (h,)
        ``delta_j``: most that an own-class pre-activation falls; NaN unless the neuron is sure to keep those
        of its class positive.
    largest_rise : ndarray, shape (h,)
        Most that a pre-activation of another class moves towards zero; NaN like ``largest_drop``.
    never_flips : ndarray of bool, shape (h,)
        Balancedness forbids that the misaligned head ever becomes aligned: ``|v_j| >= ||w_j||``. With K
        classes for heads that are equal for all other classes, for which ``a_j >= ||w_j||`` says it; for
        others it does not follow, and False is given.
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
    wholly_probability: float
    classes: FloatArray
    misaligned: NDArray[np.bool_]
    wholly: NDArray[np.bool_]
    pushed: NDArray[np.bool_]
    distance: FloatArray
    duration: FloatArray
    survives: NDArray[np.bool_]
    largest_drop: FloatArray
    largest_rise: FloatArray
    never_flips: NDArray[np.bool_]
    cosine_falls: NDArray[np.bool_]
    fixed: bool
    scope: str
    source: str = DISTORTION


@declares(KINDS)
def distortion(problem: Problem, weights: Weights, *, clip: float | None = None) -> Distortion:
    r"""Determine which features full fine-tuning distorts, the minimum duration, and which survive.

    Re-derived; replaces Theorem 3.3 of [1]_; the sharp form of survival and of the duration is
    new, and so is everything on K classes (3.3'). Zeroth order, under assumptions 3.1 and 3.2, or 3.1' and
    3.2'.

    Statement
        While ``alpha_j = s_j v_j < 0``, pre-activations of the neuron's own class fall and those of
        the other class move towards zero, for at least ``|v_j| / sum_i min(C, g_i(0) z_ji(0))`` over
        the class's ``n_s`` samples, as long as no neuron leaves its cone; for at least ``|v_j| / (n_s C)``
        whatever the others do. With ``zeta_j = min_k z_jk(0)`` and ``Gamma = max G`` in the class,
        ``zeta_j^2 > Gamma v_j^2`` makes the head flip after a drop of at most ``delta_j = zeta_j -
        sqrt(zeta_j^2 - Gamma v_j^2)``, while the pre-activation of a sample of the other class rises
        by at most ``Gamma'_k delta_j / Gamma``, ``Gamma'_k`` its largest ``|G_ik|``. If each was further
        from zero, no pattern ever changes.

    Statement, K classes
        With the distance ``a_j`` of the head to the aligned cone in place of ``|v_j|``, survival, drop and
        rise are the same. A neuron stays wholly misaligned for at least ``b_j / sum_i min(C, R z_ji(0))``,
        with ``b_j`` the distance to the heads that are not and ``R`` the largest norm of a residual, and
        misaligned for at least ``(a_j - b_j) / (n_c C)`` more; without a clip ``C`` is replaced by ``R``
        times a bound of ``z``. Heads equal for all other classes, such as all of two classes, train as a
        scalar net, whose statement then is used. A zero head is aligned: full fine-tuning then distorts
        nothing at zeroth order.

    Statement, K targets
        With the square loss a class is the samples with the same largest target. If the residuals of each
        output have one sign in each class at the start, a head is aligned where no output has the sign of its
        residuals, and the statement is that of one-vs-rest until a residual changes its sign; afterwards
        aligned neurons may be turned away. ``C`` is replaced by the norm of the class's residuals times a
        bound of ``z`` without a clip.

    Parameters
    ----------
    problem, weights
        ReLU network; time is that of full fine-tuning from ``weights``.
    clip : float or None
        Threshold of flat clipping.

    Returns
    -------
    Distortion
        For all time with the logistic loss and with K classes; with the square loss until a margin reaches 1,
        or with K targets a residual changes its sign.
        With ``valid`` False and a reason where an assumption fails.

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

    Three classes, whose neurons are wholly misaligned, misaligned and aligned:

    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> W = 1.5 * np.eye(3) - 0.5
    >>> found = distortion(problem, Weights(W, [[-0.3, 0.1, 0.2], [-0.1, 0.1, 0.2], [0, 0, 0]]), clip=1.0)
    >>> found.wholly, found.misaligned, found.distance.round(3)
    (array([ True, False, False]), array([ True,  True, False]), array([0.374, 0.071, 0.   ]))
    """
    require_moderate(problem, weights, clip=clip, pairs=True)
    clip = validate.positive_or_none("clip", clip)
    several, square = problem.outputs_dim > 1, problem.loss == "square"
    source = CLASSES_DISTORTION if several else DISTORTION
    chances, h = _chances(problem, weights.width), len(weights.v)
    found = (_square_effects if square else _class_effects) if several else _scalar_effects
    effects, reason = found(problem, weights, clip)
    no, nan = np.zeros(h, dtype=bool), np.full(h, np.nan)
    if reason:
        state = no, no, no, nan, nan, no, nan, nan, no, no
        return Distortion(False, reason, *chances, nan, *state, False, "nowhere", source)
    arrays = gather([(block.neurons, effect) for block, effect in effects], h)
    classes, never, falls = nan.copy(), no.copy(), no.copy()
    norms = np.linalg.norm(span(problem, weights).W, axis=1)
    for block, effect in effects:
        j = block.neurons
        classes[j] = block.own if isinstance(block, ClassBlock) else problem.y[block.samples[0]]
        never[j] = effect.keeps_direction & effect.wholly & (effect.distance >= norms[j])
        falls[j] = effect.wholly & _beyond_class(problem, weights, block)
    orphan = np.isnan(classes)
    if orphan.any() and not several:
        # of a class without samples: nothing pulls them
        classes[orphan] = -problem.y[0]
        bad = orphan & (classes * weights.v < 0)
        for name in ("misaligned", "wholly", "pushed"):
            arrays[name][bad] = True
        arrays["distance"][bad], arrays["duration"][bad] = np.abs(weights.v[bad]), np.inf
    scope = "until a residual changes its sign" if several else "until a margin reaches 1"
    return Distortion(
        True,
        "",
        *chances,
        classes=classes,
        **arrays,
        never_flips=never,
        cosine_falls=falls,
        fixed=bool(arrays["survives"].all()),
        scope=f"{scope} (square loss)" if square else "for all time",
        source=source,
    )


def _chances(problem: Problem, width: int) -> tuple[float, float]:
    """Chances that a Gaussian head misaligns some neuron, and that it does so wholly."""
    K = problem.outputs_dim
    if K > 1 and problem.loss == "square":
        return np.nan, np.nan
    # of one neuron to be aligned, and to be wholly misaligned
    one = 0.5**K if problem.loss == "ovr" or K == 1 else 1 / K
    return 1 - one**width, 1 - (1 - one) ** width


def _scalar_effects(
    problem: Problem, weights: Weights, clip: float | None
) -> tuple[list[tuple[Block, Effect]], str]:
    blocks, reason = decouple(problem, weights)
    reason = RELU.refuses(problem) or reason or fft_obstacle(problem, blocks)
    if not reason and any((b.margins >= MARGINS[problem.loss].end).any() for b in blocks):
        reason = "a margin is at least 1 from the start (square loss)"
    if reason:
        return [], reason
    return [(block, scalar_effect(block, MARGINS[problem.loss], clip)) for block in blocks], ""


def _class_effects(
    problem: Problem, weights: Weights, clip: float | None
) -> tuple[list[tuple[ClassBlock, Effect]], str]:
    blocks, reason = decouple_classes(problem, weights)
    reason = reason or classes_obstacle(blocks)
    if reason:
        return [], reason
    return [(block, class_effect(block, problem.loss, clip)) for block in blocks], ""


def _square_effects(
    problem: Problem, weights: Weights, clip: float | None
) -> tuple[list[tuple[ClassBlock, Effect]], str]:
    blocks, reason = decouple_targets(problem, weights)
    reason = reason or classes_obstacle(blocks)
    effects = []
    for block in blocks if not reason else []:
        effect = square_effect(block, problem.targets[block.samples], clip)
        if isinstance(effect, str):
            return [], effect
        effects.append((block, effect))
    return effects, reason


def _beyond_class(problem: Problem, weights: Weights, block: Block | ClassBlock) -> NDArray[np.bool_]:
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
