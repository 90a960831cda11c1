"""Problems with K classes that decouple into a block for each class (assumptions 3.1' and 3.2').

New (theory for K outputs, section 3'). Under 3.2' each neuron is strictly active on the samples of exactly
one class, and under 3.1' products of samples are positive within a class and not positive across classes. The
classes then train apart from one another, until a neuron leaves its cone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import logsumexp

from bounds.features.blocks import MARGINS, NO_NEURONS, ROUNDOFF, Block, Margin, cut
from bounds.support.covers import Covers
from langevin.model.alignment import CONES
from langevin.model.problem import Problem
from langevin.model.weights import GramWeights, Weights
from langevin.support.validate import FloatArray

COVERS = Covers(tuple(CONES), ("relu",), lp=("none", "flat"), fft=("none", "flat"), outputs=True)
"""What any statement on the blocks of classes covers."""
TARGETS = Covers(("square",), ("relu",), lp=("none", "flat"), fft=("none", "flat"), outputs=True)
"""What statements on blocks of K real targets cover."""


@dataclass(frozen=True, eq=False)
class ClassBlock:
    """The samples of a class and the neurons in its cone.

    Attributes
    ----------
    own : int
        The class ``c``.
    samples, neurons : ndarray of int
        Their indices in the problem and the weights; a block has samples, but may have no neurons.
    Z : ndarray, shape (neurons, samples)
        ``z_ji = w_j . x_i``, all positive.
    V : ndarray, shape (neurons, K)
        Heads.
    X : ndarray, shape (samples, d)
        Inputs of the class.
    opposite : ndarray, shape (neurons, others)
        ``|w_j . x_k|`` of the samples of the other classes.
    others : ndarray, shape (others, d)
        Those samples.
    """

    own: int
    samples: np.ndarray
    neurons: np.ndarray
    Z: FloatArray
    V: FloatArray
    X: FloatArray
    opposite: FloatArray
    others: FloatArray

    @property
    def classes(self) -> int:
        """``K``."""
        return self.V.shape[1]

    @cached_property
    def G(self) -> FloatArray:
        """``G_ik = <x_i, x_k>`` in the class, roundoff cut, shape (samples, samples)."""
        return cut(self.X, self.X)

    @cached_property
    def G_opposite(self) -> FloatArray:
        """``|<x_i, x_k>|`` between the class's samples and the others, shape (samples, others)."""
        return np.abs(cut(self.X, self.others))

    @cached_property
    def outputs(self) -> FloatArray:
        """``f_i = sum_j V_j z_ji``, shape (samples, K)."""
        return self.Z.T @ self.V

    @cached_property
    def margins(self) -> FloatArray:
        """``M_i``, the own output less the log-sum-exp of the others, shape (samples,)."""
        others = np.delete(self.outputs, self.own, axis=1)
        return self.outputs[:, self.own] - logsumexp(others, axis=1)

    @cached_property
    def rivals(self) -> FloatArray:
        """Heads of the other classes, ``V_jk`` for ``k != c``, shape (neurons, K - 1)."""
        return np.delete(self.V, self.own, axis=1)

    @property
    def symmetric(self) -> bool:
        """Whether each neuron's head is the same for all other classes, as a zero head is."""
        return bool((self.rivals == self.rivals[:, :1]).all())

    @property
    def opposed(self) -> bool:
        """Whether each neuron's heads of other classes are minus that of its own, as a zero head's are."""
        return bool((self.rivals == -self.V[:, [self.own]]).all())

    @property
    def is_collapsed(self) -> bool:
        """Whether all samples are equal, up to roundoff."""
        return bool(np.abs(self.X - self.X[0]).max() <= ROUNDOFF * np.abs(self.X[0]).max())

    def scalar(self) -> Block:
        """Block of the scalar net that a symmetric head trains as, exactly (softmax; new, 4b'(a)).

        Its inputs are ``sqrt(K / (K - 1)) x``, its labels +1, its head ``(V_jc - b_j) / sqrt(K / (K - 1))``
        with ``b_j`` the head of the other classes, and its loss ``log(1 + (K - 1) exp(-m))``.

        Raises
        ------
        ValueError
            If the heads are not symmetric.
        """
        if not self.symmetric:
            raise ValueError(f"heads of class {self.own} must be equal for all other classes")
        return self._against(self.rivals[:, 0])

    def averaged(self) -> Block:
        """Block of the scalar net of `scalar`, with the mean head of the other classes for ``b_j``."""
        return self._against(self.rivals.mean(1))

    def _against(self, rival: FloatArray) -> Block:
        scale = math.sqrt(self.classes / (self.classes - 1))
        return self._with_head((self.V[:, self.own] - rival) / scale, scale)

    def one_vs_rest(self) -> Block:
        """Block of the scalar net that opposed heads train as, exactly (one-vs-rest; new, 4b'(a)).

        Its inputs are those of the class, its labels +1, its head ``sqrt(K) V_jc``, and its loss ``K log(1 +
        exp(-m / sqrt(K)))``.

        Raises
        ------
        ValueError
            If the heads are not opposed.
        """
        if not self.opposed:
            raise ValueError(f"heads of other classes must be minus those of class {self.own}")
        return self._with_head(math.sqrt(self.classes) * self.V[:, self.own], 1.0)

    def _with_head(self, alpha: FloatArray, scale: float) -> Block:
        """Block with labels +1 and inputs times ``scale``."""
        return Block(
            self.samples,
            self.neurons,
            np.ones(len(alpha)),
            scale * self.Z,
            alpha,
            scale * self.X,
            scale * self.opposite,
            -scale * self.others,
        )


def class_margin(classes: int) -> Margin:
    """Loss ``log(1 + (K - 1) exp(-m))`` of the scalar net that a symmetric head trains as (new, 4b'(a)).

    Examples
    --------
    >>> class_margin(3).slope(np.array([0.0])).round(3)
    array([0.667])
    """
    shift = math.log(classes - 1)
    return MARGINS["logistic"]._replace(slope=lambda m: MARGINS["logistic"].slope(m - shift))


def decouple_classes(problem: Problem, weights: Weights) -> tuple[list[ClassBlock], str]:
    """Split a problem into the blocks of its classes, as far as the *weights* allow (3.2').

    Neurons that are active on no sample never move and are in no block.

    Returns
    -------
    list of ClassBlock, str
        Blocks of the classes that have samples, in the order of the classes, and '' or the reason why there
        are none. What full fine-tuning asks of the data is `classes_obstacle`.
    """
    reason = COVERS.refuses(problem) or (NO_NEURONS if isinstance(weights, GramWeights) else "")
    if reason or problem.outputs_dim == 1:
        return [], reason or "the problem has one output: its blocks are those of a scalar head"
    return _split(problem, weights, problem.y)


def decouple_targets(problem: Problem, weights: Weights) -> tuple[list[ClassBlock], str]:
    """The same for K real targets, where the class of a sample is its largest target (new, 3.3').

    It does not depend on the loss whether the samples and neurons of a class train apart from all others.
    """
    reason = TARGETS.refuses(problem) or (NO_NEURONS if isinstance(weights, GramWeights) else "")
    return ([], reason) if reason else _split(problem, weights, problem.targets.argmax(1))


def _split(problem: Problem, weights: Weights, y: np.ndarray) -> tuple[list[ClassBlock], str]:
    """Blocks of the samples that a label ``y`` tells apart, or why some neuron is in none."""
    X, pre = problem.X, problem.X @ weights.W.T
    scale = np.sqrt(problem.squared_norms)[:, None] * np.linalg.norm(weights.W, axis=1)
    active = np.where(np.abs(pre) <= ROUNDOFF * scale, 0.0, np.sign(pre))
    own = y[active.argmax(axis=0)]
    idle = (active < 0).all(axis=0)
    expected = np.where(y[:, None] == own, 1.0, -1.0)
    bad = (active != expected).any(axis=0) & ~idle
    if bad.any():
        return [], (
            f"assumption 3.2' fails: {int(bad.sum())} of {bad.size} neurons, such as {int(np.argmax(bad))}, "
            "are not strictly active on the samples of exactly one class"
        )
    blocks = []
    for label in np.unique(y):
        mine, neurons = y == label, np.flatnonzero((own == label) & ~idle)
        size = np.abs(pre).T[neurons]
        blocks.append(
            ClassBlock(
                int(label),
                np.flatnonzero(mine),
                neurons,
                size[:, mine],
                weights.v[neurons],
                X[mine],
                size[:, ~mine],
                X[~mine],
            )
        )
    return blocks, ""


def classes_obstacle(blocks: list[ClassBlock]) -> str:
    """Return '' if the data keep the classes apart in full fine-tuning (3.1'), otherwise the reason."""
    for block in blocks:
        if (block.G <= 0).any():
            return f"assumption 3.1' fails: a product of two samples of class {block.own} is not positive"
        if (cut(block.X, block.others) > 0).any():
            return f"assumption 3.1' fails: a product of class {block.own} with another class is positive"
    return ""
