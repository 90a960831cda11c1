"""The sandwich of a scalar head (section 4b)."""

from __future__ import annotations

import numpy as np

from bounds.features.blocks import Block, Margin
from bounds.loss.enclosures.clocked import Bounds
from bounds.loss.enclosures.cones import Cones, squares, weighted
from bounds.loss.enclosures.envelope import outer
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray

Pulls = tuple[FloatArray, FloatArray, FloatArray]


class OneOutput(Cones):
    """Enclosure of a block of a scalar head, whose pulls are the ``alpha_j`` of neurons.

    Parameters
    ----------
    block : Block
    loss : Margin
    norms : ndarray, shape (samples,)
        ``||x_i||^2``.
    source : str
    steepness : float
        ``||r_i|| / g_i``.
    """

    def __init__(
        self, block: Block, loss: Margin, norms: FloatArray, source: str, steepness: float = 1.0
    ) -> None:
        super().__init__(block, block.alpha, block.alpha, norms)
        self.loss, self.source, self.steepness = loss, source, steepness
        self.m_low = self.m_high = block.margins
        self._latest: tuple[FloatArray, Pulls, Pulls] | None = None

    def prepare(self, phase: Phase) -> None:
        super().prepare(phase)
        self._latest = None
        if phase.method == "lp":
            return
        self.aligned = bool((self.pull_low >= 0).all())
        if self.aligned:
            start = np.zeros(1)
            # with aligned heads the products grow no faster (slower) than the margins themselves
            self.lift_low = self.m_low - self._least(start, sized=False)[0][0]
            self.lift_high = self.m_high - self._most(start, sized=False)[0][0]

    def _pulls(self, S: FloatArray) -> tuple[Pulls, Pulls]:
        """The lower and the upper envelope; kept, as several bounds ask for them at the same clocks."""
        if self._latest is None or self._latest[0] is not S:
            self._latest = S, self.below(S), self.above(S)
        return self._latest[1:]

    def _least(self, S: FloatArray, *, sized: bool) -> tuple[FloatArray, FloatArray | None]:
        """Products of the lower enclosures in full fine-tuning: margins and norms of the gradient of f."""
        (a, *lower), (a_high, *upper) = self._pulls(S)
        z = self.of_lower(*lower)
        m, heads = weighted(np.maximum(a, 0.0), *z), a**2
        if not self.aligned:
            m = m + weighted(np.minimum(a, 0.0), *self.of_upper(*upper))
            heads = np.where(a * a_high > 0, np.minimum(heads, a_high**2), 0.0)
        return m, self._norm(np.maximum(squares(*z), 0.0), heads) if sized else None

    def _most(self, S: FloatArray, *, sized: bool) -> tuple[FloatArray, FloatArray | None]:
        """Products of the upper enclosures."""
        (a_low, *lower), (a, *upper) = self._pulls(S)
        z = self.of_upper(*upper)
        m, heads = weighted(np.maximum(a, 0.0), *z), a**2
        if not self.aligned:
            m = m + weighted(np.minimum(a, 0.0), *self.of_lower(*lower))
            heads = np.maximum(a_low**2, heads)
        return m, self._norm(squares(*z), heads) if sized else None

    def _norm(self, features: FloatArray, heads: FloatArray) -> FloatArray:
        """Norm of the gradient of ``f``, from ``sum_j z_ji^2`` and the squares of the heads."""
        return np.sqrt(features + outer(heads.sum(1), self.norms))

    def probed(self, phase: Phase, S: FloatArray, spent: FloatArray) -> tuple[Bounds, Bounds]:
        (least, most), (low, high) = self.gained(S, spent), self.lengths(S)
        return (self.m_low + least, low), (self.m_high + most, high)

    def least(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[0]
        m, size = self._least(S, sized=phase.clip is not None)
        if self.aligned:
            m = np.maximum(m, m + self.lift_low)
        return np.maximum(m, self.m_low), size

    def most(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[1]
        m, size = self._most(S, sized=phase.clip is not None)
        if self.aligned:
            m = np.minimum(m, m + self.lift_high)
        return m, size

    def extent(self, phase: Phase, S: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Bounds of ``||z_i||`` up to clocks, shape (q, n), and of ``||alpha||`` at them, shape (q, 1)."""
        if phase.method == "lp":
            low = self.pull_low + outer(S, self.Z_low.min(1, initial=np.inf))
            high = self.pull_high + outer(S, self.Z_high.max(1, initial=0.0))
            z = self.lengths(S)[1]
        else:
            (low, *_), (high, P, _) = self._pulls(S)
            # without the integral of negative pulls they never fall
            z = np.sqrt(squares(*self.of_upper(P, np.zeros_like(P))))
        return z, np.linalg.norm(np.maximum(np.abs(low), np.abs(high)), axis=1, keepdims=True)

    def conditions(self, phase: Phase, S: FloatArray) -> list[tuple[np.ndarray, str]]:
        found = super().conditions(phase, S)
        if np.isinf(self.loss.end):
            return found
        inside = np.less(self.most(phase, S)[0], self.loss.end)
        return [(np.all(inside, axis=1), "a margin may have reached 1 (square loss)"), *found]
