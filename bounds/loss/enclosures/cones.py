"""Intervals of heads and pre-activations while neurons stay in their cones (sections 4b and 4b')."""

from __future__ import annotations

import numpy as np

from bounds.features.blocks import Block
from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.clocked import CONE, Clocked
from bounds.loss.enclosures.envelope import Envelope, outer
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray


class Cones(Clocked):
    """Enclosure through intervals of ``z_ji`` and of the pulls ``a_ji`` of samples on neurons.

    In the clock, ``z_jk`` moves at the rate of a mean of ``a_ji G_ik`` over samples ``i``, and the smallest
    and largest pull of a neuron at ``slowest`` and ``fastest`` times a mean of ``z_ji``.

    Parameters
    ----------
    block : Block or ClassBlock
    low, high : ndarray, shape (neurons,)
        Smallest and largest pulls.
    norms : ndarray, shape (samples,)
        ``||x_i||^2``.
    """

    slowest, fastest = 1.0, 1.0

    def __init__(
        self, block: Block | ClassBlock, low: FloatArray, high: FloatArray, norms: FloatArray
    ) -> None:
        self.norms = norms
        self.Z_low = self.Z_high = block.Z
        self.pull_low, self.pull_high = low, high
        self.opposite = block.opposite
        self.G_opposite = block.G_opposite.max(0, initial=0.0)
        self.G_least, self.G_most = block.G.min(0), block.G.max(0)

    def prepare(self, phase: Phase) -> None:
        if phase.method == "lp":
            self.K_low, self.K_high = self.Z_low.T @ self.Z_low, self.Z_high.T @ self.Z_high
            return
        least, most = float(self.G_least.min()), float(self.G_most.max())
        self.below = Envelope(self.Z_low.min(1, initial=np.inf), self.pull_low, least, most, self.slowest)
        self.above = Envelope(self.Z_high.max(1, initial=0.0), self.pull_high, most, least, self.fastest)
        with np.errstate(divide="ignore"):
            own = (self.Z_low / self.G_most).min(1, initial=np.inf)
            other = np.where(self.G_opposite > 0, self.opposite / self.G_opposite, np.inf)
        self.room = np.minimum(own, other.min(1, initial=np.inf))

    def gained(self, S: FloatArray, spent: FloatArray) -> tuple[FloatArray, FloatArray]:
        """What the margins gain at least and at most at clocks (q,) of linear probing, shapes (q, n).

        Each sample has spent some of the clock; the rest may be of any samples.
        """
        rest = np.maximum(S - spent.sum(1), 0.0)
        least = spent @ self.K_low + outer(rest, self.K_low.min(1))
        most = spent @ self.K_high + outer(rest, self.K_high.max(1))
        return self.slowest * least, self.fastest * most

    def lengths(self, S: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Bounds of ``||z_i||`` at clocks (q,) of linear probing, shapes (q, n)."""
        low, high = (np.sqrt(np.diag(K)) for K in (self.K_low, self.K_high))
        return np.tile(low, (len(S), 1)), np.tile(high, (len(S), 1))

    def of_lower(
        self, P: FloatArray, N: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
        """Lower pre-activations ``Z + up P + down N``, by the integrals of the lower pulls."""
        return self.Z_low, self.G_least, P, self.G_most, N

    def of_upper(
        self, P: FloatArray, N: FloatArray
    ) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
        """Upper pre-activations."""
        return self.Z_high, self.G_most, P, self.G_least, N

    def conditions(self, phase: Phase, S: FloatArray) -> list[tuple[np.ndarray, str]]:
        if phase.method == "lp":
            return []
        fall = -self.below(S)[2]
        return [((fall < self.room).all(1), CONE)]

    def advance(
        self, phase: Phase, S_low: float, S_high: float, m_low: FloatArray, m_high: FloatArray
    ) -> None:
        ends = np.array([S_low, S_high])
        if phase.method == "lp":
            self.pull_low = self.pull_low + self.slowest * S_low * self.Z_low.min(1, initial=np.inf)
            self.pull_high = self.pull_high + self.fastest * S_high * self.Z_high.max(1, initial=0.0)
        else:
            a_low, P_low, N_low = self.below(ends)
            a_high, P_high, N_high = self.above(ends)
            # the lower pre-activations turn where their head does; between, their least value is there
            P = np.where(self.below.turn <= S_low, P_low[0], 0.0)
            N = N_low[1]
            Z_low = self.Z_low + outer(P, self.G_least) + outer(N, self.G_most)
            reach = outer(P_high.T[:, 0], self.G_most) + outer(N_high.T[:, 0], self.G_least)
            late = outer(P_high.T[:, 1], self.G_most) + outer(N_high.T[:, 1], self.G_least)
            self.opposite = self.opposite + outer(N, self.G_opposite)
            self.Z_low, self.Z_high = Z_low, self.Z_high + np.maximum(reach, late)
            self.pull_low, self.pull_high = a_low[0], a_high[1]
        self.m_low, self.m_high = m_low, m_high


def weighted(
    a: FloatArray, Z: FloatArray, up: FloatArray, P: FloatArray, down: FloatArray, N: FloatArray
) -> FloatArray:
    """``sum_j a_j (Z_jk + up_k P_j + down_k N_j)``."""
    return a @ Z + outer((a * P).sum(1), up) + outer((a * N).sum(1), down)


def squares(Z: FloatArray, up: FloatArray, P: FloatArray, down: FloatArray, N: FloatArray) -> FloatArray:
    """``sum_j (Z_jk + up_k P_j + down_k N_j)^2``."""
    total = (Z**2).sum(0) + 2 * up * (P @ Z) + 2 * down * (N @ Z)
    total = total + outer((P**2).sum(1), up**2) + outer((N**2).sum(1), down**2)
    return total + 2 * outer((P * N).sum(1), up * down)
