"""The clock that encloses the losses of a block, from phase to phase (sections 4b and 4b')."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from bounds.features.blocks import Margin
from bounds.loss.enclosures.envelope import outer
from bounds.support.quadrature import solve
from langevin.model.schedule import Phase, Schedule
from langevin.support.validate import FloatArray

RTOL, ATOL = 1e-10, 1e-13
PAD = 1e-6
"""Relative padding of the clock, above the error of interpolating it across a kink of clipping."""

STAIRS, PASSES = 4, 2
"""Parts that a clock of linear probing is cut into, and times that margins and parts sharpen each other."""
MANY = 32
"""Samples up to which parts of the clock are bounded: the work of it exceeds that of all else for more."""

CONE = "a neuron may have left its cone"


Bounds = tuple[FloatArray, FloatArray | None]
"""Of the margins and of ``||grad l_i|| / g_i``, shapes (q, n); the norms are None where nothing clips."""


@dataclass(frozen=True)
class Enclosed:
    """Enclosures of the losses of samples, shapes (m, n), and where they hold.

    Attributes
    ----------
    lower, upper : ndarray, shape (m, n)
        Of the losses of the samples.
    residual : ndarray, shape (m, n)
        Bounds of ``||r_i||``.
    valid : ndarray of bool, shape (m,)
    reason, source : str
    """

    lower: FloatArray
    upper: FloatArray
    residual: FloatArray
    valid: np.ndarray
    reason: str
    source: str


class Clocked(ABC):
    """Enclosure of a block whose margins are bounded as functions of ``S = int sum_i c_i g_i dt``.

    A form of the statement says how: it holds intervals of the state at the start of a phase, `prepare`
    turns them into functions of the clock, which `advance` reads at its end.

    Attributes
    ----------
    loss : Margin
        The loss as a function of the margin, and ``g``.
    steepness : float
        Bound of ``||r_i|| / g_i``.
    m_low, m_high : ndarray, shape (n,)
        Interval of the margins at the start of the phase.
    source : str
        The statement.
    """

    loss: Margin
    steepness: float
    m_low: FloatArray
    m_high: FloatArray
    source: str

    @abstractmethod
    def prepare(self, phase: Phase) -> None:
        """Set up the enclosures of a phase as functions of its clock, from the state at its start."""

    @abstractmethod
    def least(self, phase: Phase, S: FloatArray) -> Bounds:
        """Lower bounds at clocks (q,)."""

    @abstractmethod
    def most(self, phase: Phase, S: FloatArray) -> Bounds:
        """Upper bounds at clocks (q,)."""

    @abstractmethod
    def probed(self, phase: Phase, S: FloatArray, spent: FloatArray) -> tuple[Bounds, Bounds]:
        """Bounds at clocks (q,) of linear probing, of which each sample has spent at least (q, n)."""

    @abstractmethod
    def conditions(self, phase: Phase, S: FloatArray) -> list[tuple[np.ndarray, str]]:
        """Check the validity rule at upper clocks ``S``."""

    @abstractmethod
    def advance(
        self, phase: Phase, S_low: float, S_high: float, m_low: FloatArray, m_high: FloatArray
    ) -> None:
        """Carry the intervals to the end of a phase whose clock lies in ``[S_low, S_high]``."""

    def between(self, phase: Phase, S_low: FloatArray, S_high: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Enclose the margins at clocks that lie between two, where neither bound ever falls."""
        return self.least(phase, S_low)[0], self.most(phase, S_high)[0]

    def probing(self, phase: Phase, S: FloatArray) -> tuple[Bounds, Bounds]:
        """Bounds at clocks (q,) of linear probing."""
        return self.probed(phase, S, self.spent(phase, S))

    def spent(self, phase: Phase, S: FloatArray) -> FloatArray:
        """Bound from below what each sample, ``int c_i g_i dt``, has of a clock of linear probing, (q, n).

        No margin falls, so on each part of the clock a sample is slowest at its end and fastest at its start.
        """
        if len(self.m_low) > MANY:
            return np.zeros((len(S), len(self.m_low)))
        clocks = outer(S, np.arange(STAIRS + 1) / STAIRS).ravel()
        shape = len(S), STAIRS + 1, len(self.m_low)
        spent = np.zeros(shape)
        for _ in range(PASSES):
            (low, least), (high, most) = self.probed(phase, clocks, spent.reshape(len(clocks), -1))
            slowest = self.speed(phase, high, most).reshape(shape)[:, 1:]
            # norms are bounded up to a clock, margins at it
            margins = np.concatenate([low.reshape(shape)[:, :1], low.reshape(shape)[:, :-1]], axis=1)
            fastest = self.speed(phase, margins.reshape(low.shape), least).reshape(shape)[:, 1:]
            others = fastest.sum(-1, keepdims=True) - fastest
            share = np.divide(slowest, slowest + others, out=np.zeros_like(slowest), where=slowest > 0)
            spent[:, 1:] = np.cumsum(share * outer(S, np.full(STAIRS, 1 / STAIRS))[..., None], axis=1)
        return spent[:, -1]

    def speed(self, phase: Phase, m: FloatArray, size: FloatArray | None) -> FloatArray:
        """``c_i g_i`` at margins and norms; beyond where the loss ends the enclosure is flagged elsewhere."""
        speed = np.maximum(self.loss.slope(m), 0.0)
        if phase.clip is None or size is None:
            return speed
        with np.errstate(divide="ignore"):
            return np.minimum(speed, phase.clip / size)

    def enclose(self, schedule: Schedule, t: FloatArray) -> Enclosed:
        """Enclose the block's losses at ``t``."""
        low, high, valid, reason = self.run(schedule, t)
        residual = np.maximum(np.abs(self.loss.slope(low)), np.abs(self.loss.slope(high)))
        with np.errstate(over="ignore"):
            # a larger margin is a smaller loss
            lower, upper = self.loss.value(high), self.loss.value(low)
        return Enclosed(lower, upper, self.steepness * residual, valid, reason, self.source)

    def run(self, schedule: Schedule, t: FloatArray) -> tuple[FloatArray, FloatArray, np.ndarray, str]:
        """Enclose the block's margins at ``t``."""
        low, high = np.zeros((len(t), len(self.m_low))), np.zeros((len(t), len(self.m_low)))
        valid = np.zeros(len(t), dtype=bool)
        if (self.m_low >= self.loss.end).any():
            return low, high, valid, "a margin is at least 1 from the start (square loss)"
        phases = list(zip(schedule, schedule.starts, strict=True))
        for phase, start in phases:
            end = start + phase.time
            here = (t >= start) & ((t < end) | (phase is phases[-1][0]))
            local = np.append(np.minimum(t[here] - start, phase.time), phase.time)
            self.prepare(phase)
            S_high = self.clock(phase, local, upper=True)
            good = np.isfinite(S_high)
            S_high = np.where(good, S_high, 0.0)
            S_low = self.clock(phase, np.where(good, local, 0.0), upper=False, limit=2 * S_high.max())
            S_low, S_high = np.minimum(S_low, S_high) * (1 - PAD), S_high * (1 + PAD)
            m_low, m_high = self.between(phase, S_low, S_high)
            reason = ""
            for ok, why in self.conditions(phase, S_high):
                if not ok.all():
                    reason = reason or why
                good = good & ok
            if not good.all():
                reason = reason or self.ended or "the clock could not be enclosed"
            # the clock never falls: once a condition fails, nothing is known
            good = np.logical_and.accumulate(good)
            low[here], high[here], valid[here] = m_low[:-1], m_high[:-1], good[:-1]
            if not good[-1]:
                return low, high, valid, reason
            self.advance(phase, S_low[-1], S_high[-1], m_low[-1], m_high[-1])
        return low, high, valid, ""

    def clock(self, phase: Phase, local: FloatArray, *, upper: bool, limit: float = np.inf) -> FloatArray:
        """Integrate the upper or the lower clock; infinite once the enclosure has ended."""
        enclosed = self.least if upper else self.most

        def rate(S: FloatArray) -> FloatArray:
            return self.speed(phase, *enclosed(phase, S)).sum(1)

        def admitted(S: FloatArray) -> np.ndarray:
            checked = self.conditions(phase, S)
            self.ended = next((why for ok, why in checked if not ok.all()), self.ended)
            return np.logical_and.reduce([ok for ok, _ in checked])

        if upper:
            self.ended = ""
        holds = admitted if upper and self.conditions(phase, np.zeros(1)) else None
        return solve(rate, local, limit, holds)
