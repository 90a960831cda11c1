"""The sandwich of a class of the softmax loss with any heads (section 4b'(b))."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from bounds.features.blocks import MARGINS
from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.cones import Cones, squares, weighted
from bounds.loss.enclosures.envelope import LARGEST, outer
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray

BISECTIONS = 60
Pulls = tuple[FloatArray, FloatArray, FloatArray]


class SeveralOutputs(Cones):
    """Enclosure of a class ``c`` of at least three, with the margins ``f_c - logsumexp(f_k, k != c)``.

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
        F = block.outputs
        self.m_low = self.m_high = F[:, block.own] - logsumexp(np.delete(F, block.own, axis=1), axis=1)

    def prepare(self, phase: Phase) -> None:
        super().prepare(phase)
        if phase.method == "lp":
            return
        self.start_low, self.start_high = self.pull_low @ self.Z_low, self.pull_high @ self.Z_high
        self.level = self._level()
        self.straddles = (self.pull_low < 0) & np.isfinite(self.above.turn)
        self.begin = np.where(self.straddles, self.above.turn, 0.0)
        self.wronskian = self._wronskian(self.begin[None])

    def _level(self) -> FloatArray:
        """Clock from which the upper pull of each neuron exceeds the lower one in size; it may be infinite."""

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

    def _wronskian(self, S: FloatArray) -> FloatArray:
        """``a b' - a' b`` of the lower pull ``a < 0`` and the upper pull ``b > 0``.

        Its slope is ``a b`` times the difference of their squared rates.
        """
        a, z_low = self.below.before_turn(S)
        b, z_high = self.above.after_turn(S)
        return self.fastest * a * z_high - self.slowest * z_low * b

    def _lost(self, S: FloatArray) -> FloatArray:
        """What the lower margins may lose to neurons whose pulls may have both signs, shape (q, n)."""
        until = np.clip(S[:, None], self.begin, np.where(self.straddles, self.below.turn, 0.0))
        change = (self._wronskian(until) - self.wronskian) / (self.above.G_up - self.below.G_down)
        return outer(np.where(self.straddles, np.minimum(change, 0.0), 0.0).sum(1), self.G_most)

    def _gained(self, S: FloatArray, low: Pulls) -> FloatArray:
        """What the lower margins gain, which never falls, shape (q, n)."""
        a, *integrals = low
        gained = weighted(a, *self.of_lower(*integrals)) - self.start_low
        gained += outer(self.above.squares_before(S[:, None]).sum(1), self.G_least)
        return gained - outer(self.below.squares_before(S[:, None]).sum(1), self.G_most)

    def _gained_at_most(self, S: FloatArray, high: Pulls) -> FloatArray:
        """What the upper margins gain, which never falls, shape (q, n)."""
        a, *integrals = high
        early = np.minimum(S[:, None], self.level)
        beyond = self.below.squares_before(early) - self.above.squares_after(early)
        gained = weighted(a, *self.of_upper(*integrals)) - self.start_high
        gained += outer(beyond.sum(1), self.G_most)
        return gained - outer(self.above.squares_before(S[:, None]).sum(1), self.G_least)

    def least(self, phase: Phase, S: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            m = self.m_low + self.slowest * outer(S, self.K_least)
            # the margin's clip takes the largest norm at any outputs
            shortest = self.steepness if phase.clipping == "margin" else self.shortest
            return m, np.broadcast_to(shortest * self.size_low, m.shape)
        low = self.below(S)
        heads = (np.maximum(low[0], 0.0) ** 2 + np.minimum(self.above(S)[0], 0.0) ** 2).sum(1)
        z = np.maximum(squares(*self.of_lower(*low[1:])), 0.0)
        m = self.m_low + self._gained(S, low) + self._lost(S)
        return m, np.sqrt(self.shortest**2 * z + outer(heads, self.norms))

    def most(self, phase: Phase, S: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            m = self.m_high + self.fastest * outer(S, self.K_most)
            return m, np.broadcast_to(self.steepness * self.size_high, m.shape)
        high = self.above(S)
        heads = np.maximum(self.below(S)[0] ** 2, high[0] ** 2).sum(1)
        z = squares(*self.of_upper(*high[1:]))
        m = self.m_high + self._gained_at_most(S, high)
        return m, np.sqrt(self.steepness**2 * z + outer(heads, self.norms))

    def between(self, phase: Phase, S_low: FloatArray, S_high: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            return super().between(phase, S_low, S_high)
        # pulls of both signs may lower a margin: what is lost must be that of the later clock
        m_low = self.m_low + self._gained(S_low, self.below(S_low)) + self._lost(S_high)
        return m_low, self.most(phase, S_high)[0]
