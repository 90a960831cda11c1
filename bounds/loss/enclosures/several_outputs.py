"""The sandwich of a class of the softmax loss with any heads (section 4b'(b))."""

from __future__ import annotations

import math

import numpy as np
from scipy.special import logsumexp

from bounds.features.blocks import MARGINS
from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.cones import Cones, weighted
from bounds.loss.enclosures.envelope import LARGEST, outer
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray

BISECTIONS = 60


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
        """``a a+' - a' a+`` of the lower pull ``a < 0`` and the upper one ``a+ > 0``.

        Its slope is their product times the difference of the squares of their rates.
        """
        a_low, z_low = self.below.before_turn(S)
        a_high, z_high = self.above.after_turn(S)
        return self.fastest * a_low * z_high - self.slowest * z_low * a_high

    def _loss_of(self, S: FloatArray) -> FloatArray:
        """What the lower margins may lose to neurons whose pulls may have both signs, shape (q, n)."""
        until = np.clip(S[:, None], self.begin, np.where(self.straddles, self.below.turn, 0.0))
        change = (self._wronskian(until) - self.wronskian) / (self.above.G_up - self.below.G_down)
        return outer(np.where(self.straddles, np.minimum(change, 0.0), 0.0).sum(1), self.G_most)

    def _gain_of(self, S: FloatArray) -> FloatArray:
        """What the lower margins gain, which never falls, shape (q, n)."""
        a, *integrals = self.below(S)
        gained = weighted(a, *self.of_lower(*integrals)) - self.start_low
        gained += outer(self.above.squares_before(S[:, None]).sum(1), self.G_least)
        return gained - outer(self.below.squares_before(S[:, None]).sum(1), self.G_most)

    def _most_of(self, S: FloatArray) -> FloatArray:
        """What the upper margins gain, which never falls, shape (q, n)."""
        a, *integrals = self.above(S)
        early = np.minimum(S[:, None], self.level)
        beyond = self.below.squares_before(early) - self.above.squares_after(early)
        gained = weighted(a, *self.of_upper(*integrals)) - self.start_high
        gained += outer(beyond.sum(1), self.G_most)
        return gained - outer(self.above.squares_before(S[:, None]).sum(1), self.G_least)

    def margins(self, phase: Phase, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        if phase.method == "lp":
            shape = (len(S), len(self.m_low))
            shortest = self.steepness if phase.clipping == "margin" else self.shortest
            return (
                self.m_low + self.slowest * outer(S, self.K_least),
                self.m_high + self.fastest * outer(S, self.K_most),
                np.broadcast_to(shortest * self.size_low, shape),
                np.broadcast_to(self.steepness * self.size_high, shape),
            )
        z_low, heads_low, z_high, heads_high = self.sizes(self.below(S), self.above(S))
        return (
            self.m_low + self._gain_of(S) + self._loss_of(S),
            self.m_high + self._most_of(S),
            np.sqrt(self.shortest**2 * z_low + heads_low),
            np.sqrt(self.steepness**2 * z_high + heads_high),
        )

    def between(self, phase: Phase, S_low: FloatArray, S_high: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            return super().between(phase, S_low, S_high)
        # pulls of both signs may lower a margin: what is lost must be that of the later clock
        return self.m_low + self._gain_of(S_low) + self._loss_of(S_high), self.m_high + self._most_of(S_high)
