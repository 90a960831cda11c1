"""The sandwich of a scalar head (section 4b)."""

from __future__ import annotations

import numpy as np

from bounds.features.blocks import Block, Margin
from bounds.loss.enclosures.cones import Cones, weighted
from bounds.loss.enclosures.envelope import outer
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray


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

    def prepare(self, phase: Phase) -> None:
        super().prepare(phase)
        if phase.method == "lp":
            return
        self.aligned = bool((self.pull_low >= 0).all())
        if self.aligned:
            low, high, _, _ = self.products(np.zeros(1))
            # with aligned heads the products grow no faster (slower) than the margins themselves
            self.lift_low, self.lift_high = self.m_low - low[0], self.m_high - high[0]

    def products(self, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Products of the enclosures in full fine-tuning: margins and squared gradient norms of f."""
        low, high = self.below(S), self.above(S)
        (a_low, *lower), (a_high, *upper) = low, high
        z_low, z_high = self.of_lower(*lower), self.of_upper(*upper)
        m_low = weighted(np.maximum(a_low, 0.0), *z_low) + weighted(np.minimum(a_low, 0.0), *z_high)
        m_high = weighted(np.maximum(a_high, 0.0), *z_high) + weighted(np.minimum(a_high, 0.0), *z_low)
        size_low, heads_low, size_high, heads_high = self.sizes(low, high)
        return m_low, m_high, size_low + heads_low, size_high + heads_high

    def margins(self, phase: Phase, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        if phase.method == "lp":
            shape = (len(S), len(self.m_low))
            return (
                self.m_low + outer(S, self.K_least),
                self.m_high + outer(S, self.K_most),
                np.broadcast_to(self.size_low, shape),
                np.broadcast_to(self.size_high, shape),
            )
        m_low, m_high, low, high = self.products(S)
        if self.aligned:
            m_low = np.maximum(m_low, m_low + self.lift_low)
            m_high = np.minimum(m_high, m_high + self.lift_high)
        return np.maximum(m_low, self.m_low), m_high, np.sqrt(low), np.sqrt(high)
