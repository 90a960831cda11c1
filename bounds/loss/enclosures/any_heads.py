"""The sandwich of a class of the softmax loss with any heads (section 4b'(b)): the tighter of two."""

from __future__ import annotations

import math

import numpy as np

from bounds.features.blocks import MARGINS
from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.clocked import Bounds, Clocked
from bounds.loss.enclosures.near_symmetric import NearSymmetric
from bounds.loss.enclosures.several_outputs import SeveralOutputs
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray


class AnyHeads(Clocked):
    """The tighter of two enclosures of a class, sample by sample and clock by clock.

    Parameters
    ----------
    block : ClassBlock
    norms : ndarray, shape (samples,)
        ``||x_i||^2``.
    """

    loss = MARGINS["logistic"]
    steepness = math.sqrt(2)
    source = "4b'(b)"

    def __init__(self, block: ClassBlock, norms: FloatArray) -> None:
        self.cones = SeveralOutputs(block, norms)
        self.forms: tuple[Clocked, ...] = self.cones, NearSymmetric(block, norms)
        self.m_low = self.m_high = block.margins

    def prepare(self, phase: Phase) -> None:
        for form in self.forms:
            form.prepare(phase)

    def probed(self, phase: Phase, S: FloatArray, spent: FloatArray) -> tuple[Bounds, Bounds]:
        low, high = zip(*(form.probed(phase, S, spent) for form in self.forms), strict=True)
        return _tighter(np.maximum, *low), _tighter(np.minimum, *high)

    def least(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[0]
        return _tighter(np.maximum, *(form.least(phase, S) for form in self.forms))

    def most(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[1]
        return _tighter(np.minimum, *(form.most(phase, S) for form in self.forms))

    def between(self, phase: Phase, S_low: FloatArray, S_high: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            return super().between(phase, S_low, S_high)
        (low, high), (near_low, near_high) = (form.between(phase, S_low, S_high) for form in self.forms)
        return np.maximum(low, near_low), np.minimum(high, near_high)

    def conditions(self, phase: Phase, S: FloatArray) -> list[tuple[np.ndarray, str]]:
        return self.cones.conditions(phase, S)

    def advance(
        self, phase: Phase, S_low: float, S_high: float, m_low: FloatArray, m_high: FloatArray
    ) -> None:
        for form in self.forms:
            form.advance(phase, S_low, S_high, m_low, m_high)


def _tighter(best: np.ufunc, one: Bounds, other: Bounds) -> Bounds:
    (m, size), (near, length) = one, other
    return best(m, near), None if size is None or length is None else best(size, length)
