"""Problems that decouple into blocks (assumptions 3.1 and 3.2, or a linear network of one sign)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from bounds.support.covers import Covers
from langevin.model.problem import Problem
from langevin.model.weights import GramWeights, Weights
from langevin.support.validate import FloatArray

ROUNDOFF = 1e-12
"""Inner products below this share of the norms' product count as zero."""
NO_NEURONS = "the weights are known by their Gram matrix, which tells no single neurons"


class Margin(NamedTuple):
    """A loss as a function of the margin ``m = y f``.

    Attributes
    ----------
    value : callable
        The loss of a sample.
    slope : callable
        ``g(m) = |r|``.
    bends : callable
        First two derivatives of ``g`` from ``g``.
    end : float
        Margin up to which the loss falls.
    """

    value: Callable[[FloatArray], FloatArray]
    slope: Callable[[FloatArray], FloatArray]
    bends: Callable[[float], tuple[float, float]]
    end: float


MARGINS = {
    "logistic": Margin(
        lambda m: np.logaddexp(0.0, -m),
        lambda m: np.exp(-np.logaddexp(0.0, m)),
        lambda g: (-g * (1 - g), g * (1 - g) * (1 - 2 * g)),
        np.inf,
    ),
    "square": Margin(lambda m: 0.5 * (m - 1) ** 2, lambda m: 1 - m, lambda g: (-1.0, 0.0), 1.0),
}


def _softmax(classes: int) -> Margin:
    """``log(1 + (K - 1) exp(-m))``: the logistic loss, with margins less ``log(K - 1)``."""
    value, slope, bends, end = MARGINS["logistic"]
    shift = math.log(classes - 1)
    return Margin(lambda m: value(m - shift), lambda m: slope(m - shift), bends, end)


def _one_vs_rest(classes: int) -> Margin:
    """``K log(1 + exp(-m / sqrt(K)))``."""
    value, slope, bends, end = MARGINS["logistic"]
    root = math.sqrt(classes)

    def bent(g: float) -> tuple[float, float]:
        first, second = bends(g / root)
        return first, second / root

    return Margin(lambda m: classes * value(m / root), lambda m: root * slope(m / root), bent, end)


CLASS_MARGINS: dict[str, Callable[[int], Margin]] = {"softmax": _softmax, "ovr": _one_vs_rest}
"""Losses of the scalar nets that the blocks of K classes with like heads train as, by K (new; 4b'(a))."""
COVERS = Covers(tuple(MARGINS), ("relu", "linear"), lp=("none", "flat"), fft=("none", "flat"), binary=True)
"""What any statement on blocks covers."""


@dataclass(frozen=True)
class Block:
    """Samples and neurons that train together, apart from all others.

    Attributes
    ----------
    samples, neurons : ndarray of int
        Their indices in the problem and the weights.
    sign : ndarray, shape (neurons,)
        ``s_j``.
    Z : ndarray, shape (neurons, samples)
        ``z_ji = |w_j . x_i|``, all positive.
    alpha : ndarray, shape (neurons,)
        ``s_j v_j``; negative: misaligned.
    signed : ndarray, shape (samples, d)
        ``y_i x_i``.
    opposite : ndarray, shape (neurons, others)
        ``|w_j . x_k|`` of the samples of the other class, empty for a linear net.
    others : ndarray, shape (others, d)
        Those samples' ``y_k x_k``.
    """

    samples: np.ndarray
    neurons: np.ndarray
    sign: FloatArray
    Z: FloatArray
    alpha: FloatArray
    signed: FloatArray
    opposite: FloatArray
    others: FloatArray

    @cached_property
    def G(self) -> FloatArray:
        """``G_ik = y_i y_k <x_i, x_k>`` in the block, roundoff cut, shape (samples, samples)."""
        return cut(self.signed, self.signed)

    @cached_property
    def G_opposite(self) -> FloatArray:
        """``|G_ik|`` between the block's samples and the others, shape (samples, others)."""
        return np.abs(cut(self.signed, self.others))

    @cached_property
    def margins(self) -> FloatArray:
        """``m_i = sum_j alpha_j z_ji``, shape (samples,)."""
        return self.alpha @ self.Z


def cut(a: FloatArray, b: FloatArray) -> FloatArray:
    """Inner products of rows, those of the size of roundoff set to 0."""
    products = a @ b.T
    scale = np.linalg.norm(a, axis=1)[:, None] * np.linalg.norm(b, axis=1)
    return np.where(np.abs(products) <= ROUNDOFF * scale, 0.0, products)


def decouple(problem: Problem, weights: Weights) -> tuple[list[Block], str]:
    """Split a problem into blocks, as far as the *weights* allow (3.2, or one sign per neuron).

    Returns
    -------
    list of Block, str
        Blocks, and '' or the reason why there are none. What full fine-tuning asks of the data is
        `fft_obstacle`.
    """
    reason = COVERS.refuses(problem) or (NO_NEURONS if isinstance(weights, GramWeights) else "")
    if reason:
        return [], reason
    X, y = problem.X, problem.y
    pre = X @ weights.W.T
    scale = np.sqrt(problem.squared_norms)[:, None] * np.linalg.norm(weights.W, axis=1)
    signs = np.where(np.abs(pre) <= ROUNDOFF * scale, 0.0, np.sign(pre)) * y[:, None]
    if problem.activation == "linear":
        s = signs[0]
        if (signs == 0).any() or (signs != s).any():
            j = int(np.argmax(((signs != s) | (signs == 0)).any(0)))
            return [], f"neuron {j} of the linear net has y_i w_j.x_i of both signs or 0"
        everything = np.arange(len(y)), np.arange(len(weights.v))
        signed = y[:, None] * X
        none = np.empty((len(weights.v), 0)), np.empty((0, problem.dim))
        return [Block(*everything, s, np.abs(pre).T, s * weights.v, signed, *none)], ""
    # in the cone of class s: active exactly on that class, so the products y_i w.x_i all have sign s
    s = signs[0]
    bad = ((signs != s) | (signs == 0)).any(0)
    if bad.any():
        return [], (
            f"assumption 3.2 fails: {int(bad.sum())} of {bad.size} neurons, such as {int(np.argmax(bad))}, "
            "lie in no class's cone"
        )
    blocks = []
    for sign in (1.0, -1.0):
        own, neurons = np.flatnonzero(y == sign), np.flatnonzero(s == sign)
        other = np.flatnonzero(y == -sign)
        if len(own):
            size = np.abs(pre).T[neurons]
            signed = y[:, None] * X
            blocks.append(
                Block(
                    own,
                    neurons,
                    s[neurons],
                    size[:, own],
                    sign * weights.v[neurons],
                    signed[own],
                    size[:, other],
                    signed[other],
                )
            )
    return blocks, ""


def fft_obstacle(problem: Problem, blocks: list[Block]) -> str:
    """Return '' if the data keep the blocks separate in full fine-tuning, otherwise the reason."""
    for block in blocks:
        if problem.activation == "linear":
            if (block.G < 0).any():
                return "G_ik = y_i y_k <x_i, x_k> is negative for some pair"
        elif (block.G <= 0).any():
            return "assumption 3.1 fails: G_ik is not positive within a class"
        elif (cut(block.signed, block.others) < 0).any():
            return "assumption 3.1 fails: a product across the classes is positive"
    return ""


def collapsed(problem: Problem, weights: Weights) -> tuple[Block | None, str]:
    """Return the one block of a collapsed problem."""
    reason = COVERS.refuses(problem)
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
