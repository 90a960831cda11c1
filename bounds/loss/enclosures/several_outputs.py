"""The sandwich of a class of the softmax loss with any heads (section 4b'(b))."""

from __future__ import annotations

import math

import numpy as np

from bounds.features.blocks import MARGINS
from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.clocked import Bounds
from bounds.loss.enclosures.cones import Cones, squares, weighted
from bounds.loss.enclosures.envelope import LARGEST, Both, Envelopes, outer
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray

BISECTIONS = 60


class SeveralOutputs(Cones):
    """Enclosure of a class ``c`` of at least three, with the margins ``f_c - log sum_k exp f_k``, ``k != c``.

    The pull of sample ``i`` on a neuron is ``a_ji = V_jc - q_i . V_j``, where ``q_i`` is the softmax of the
    outputs of the other classes. It lies between ``V_jc - max V_jk`` and ``V_jc - min V_jk``, which move at 1
    to 2 times a mean of ``z_ji``; so do the margins, by ``1 + q_i . q_k``, for what the heads move.

    Parameters
    ----------
    block : ClassBlock
    norms : ndarray, shape (samples,)
        ``||x_i||^2``.
    """

    slowest, fastest = 1.0, 2.0
    loss = MARGINS["logistic"]
    steepness = math.sqrt(2)
    source = "4b'(b)"

    def __init__(self, block: ClassBlock, norms: FloatArray) -> None:
        lead = block.V[:, [block.own]] - block.rivals
        super().__init__(block, lead.min(1), lead.max(1), norms)
        # ||r_i|| = g_i sqrt(1 + ||q_i||^2)
        self.shortest = math.sqrt(block.classes / (block.classes - 1))
        self.m_low = self.m_high = block.margins

    def prepare(self, phase: Phase) -> None:
        super().prepare(phase)
        if phase.method == "lp":
            return
        self.pulls = Envelopes(self.below, self.above)
        self.start_low, self.start_high = self.pull_low @ self.Z_low, self.pull_high @ self.Z_high
        self.level = self._level()
        finite = self.pulls(np.where(np.isfinite(self.level), self.level, 0.0)[None]).squares
        self.beyond = np.where(np.isfinite(self.level), finite[0] - finite[3], 0.0)
        # the pulls have both signs from the turn of the upper one to that of the lower one
        last, first = np.where(np.isfinite(self.pulls.turns), self.pulls.turns, 0.0)[:, None]
        self.wronskian = self.pulls(first).wronskian
        self.change = np.where(np.isfinite(self.below.turn), self.pulls(last).wronskian - self.wronskian, 0.0)

    def _level(self) -> FloatArray:
        """Clock from which each neuron's upper pull exceeds the lower one in size; it may be infinite."""

        def behind(S: FloatArray) -> np.ndarray:
            return self.below(S)[0] + self.above(S)[0] < 0

        low = np.zeros((1, len(self.pull_low)))
        high = np.minimum(self.below.turn, LARGEST / math.sqrt(self.above.G_up))[None]
        never = behind(high)
        if behind(low).any():
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                yet = behind(middle)
                low, high = np.where(yet, middle, low), np.where(yet, high, middle)
        return np.where(never, np.inf, low)[0]

    def _lost(self, S: FloatArray, both: Both) -> FloatArray:
        """What the lower margins may lose to neurons whose pulls may have both signs, shape (q, n).

        Integral of ``a b``, the lower pull times the upper one, from the clock at which ``b`` turns positive
        to that at which ``a`` does: ``a b' - a' b`` has that slope, times the difference of their squared
        rates.
        """
        at, (last, first) = S[:, None], self.pulls.turns
        change = np.where(at < last, both.wronskian - self.wronskian, self.change)
        change = np.where(at > first, np.minimum(change, 0.0), 0.0)
        return outer(change.sum(1) / (self.above.G_up - self.below.G_down), self.G_most)

    def _gained(self, both: Both) -> FloatArray:
        """What the lower margins gain, which never falls, shape (q, n)."""
        a, *integrals = both.low
        gained = weighted(a, *self.of_lower(*integrals)) - self.start_low
        gained += outer(both.squares[2].sum(1), self.G_least)
        return gained - outer(both.squares[0].sum(1), self.G_most)

    def _gained_at_most(self, S: FloatArray, both: Both) -> FloatArray:
        """What the upper margins gain, which never falls, shape (q, n)."""
        a, *integrals = both.high
        gained = weighted(a, *self.of_upper(*integrals)) - self.start_high
        beyond = np.where(S[:, None] < self.level, both.squares[0] - both.squares[3], self.beyond)
        gained += outer(beyond.sum(1), self.G_most)
        return gained - outer(both.squares[2].sum(1), self.G_least)

    def probed(self, phase: Phase, S: FloatArray, spent: FloatArray) -> tuple[Bounds, Bounds]:
        (least, most), (low, high) = self.gained(S, spent), self.lengths(S)
        # the margin's clip takes the largest norm at any outputs
        shortest = self.steepness if phase.clipping == "margin" else self.shortest
        return (self.m_low + least, shortest * low), (self.m_high + most, self.steepness * high)

    def least(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[0]
        both = self.pulls(S)
        m = self.m_low + self._gained(both) + self._lost(S, both)
        if phase.clip is None:
            return m, None
        heads = (np.maximum(both.low[0], 0.0) ** 2 + np.minimum(both.high[0], 0.0) ** 2).sum(1)
        z = np.maximum(squares(*self.of_lower(*both.low[1:])), 0.0)
        return m, np.sqrt(self.shortest**2 * z + outer(heads, self.norms))

    def most(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[1]
        both = self.pulls(S)
        m = self.m_high + self._gained_at_most(S, both)
        if phase.clip is None:
            return m, None
        heads = np.maximum(both.low[0] ** 2, both.high[0] ** 2).sum(1)
        z = squares(*self.of_upper(*both.high[1:]))
        return m, np.sqrt(self.steepness**2 * z + outer(heads, self.norms))

    def between(self, phase: Phase, S_low: FloatArray, S_high: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            return super().between(phase, S_low, S_high)
        # pulls of both signs may lower a margin: what is lost must be that of the later clock
        later = self.pulls(S_high)
        m_low = self.m_low + self._gained(self.pulls(S_low)) + self._lost(S_high, later)
        return m_low, self.m_high + self._gained_at_most(S_high, later)
