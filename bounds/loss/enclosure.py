"""Enclosures of the margins of decoupled problems (section 4b)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import RK45

from bounds.features.blocks import COVERS, MARGINS, Block, decouple, fft_obstacle
from bounds.support.numeric import patient
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

LARGEST = 300.0
"""Cap of ``sqrt(G) S``: margins beyond exp(300) have no loss left."""
RTOL, ATOL = 1e-10, 1e-13
PAD = 1e-6
"""Relative padding of the clock, above the error of interpolating it across a kink of clipping."""


@dataclass(frozen=True)
class Margins:
    """Enclosures of the margins ``y_i f(x_i)``, shapes (m, n), and where they hold."""

    times: FloatArray
    lower: FloatArray
    upper: FloatArray
    valid: np.ndarray
    reason: str


def enclose(problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None) -> Margins | str:
    """Enclose all margins at ``times``, or return the reason why that fails."""
    require_moderate(problem, weights, schedule, pairs=True)
    t = record_times(schedule, times)
    reason = COVERS.refuses_phases(schedule)
    if reason:
        return reason
    blocks, reason = decouple(problem, weights)
    if not reason and any(phase.method == "fft" for phase in schedule):
        reason = fft_obstacle(problem, blocks)
    if reason:
        return reason
    lower, upper = np.zeros((len(t), problem.samples)), np.zeros((len(t), problem.samples))
    valid = np.ones(len(t), dtype=bool)
    reasons = set()
    for block in blocks:
        low, high, good, why = _Enclosure(problem, block).run(schedule, t)
        lower[:, block.samples], upper[:, block.samples] = low, high
        valid &= good
        if why:
            reasons.add(why)
    # a cone left in one block couples the others
    valid = np.logical_and.accumulate(valid)
    return Margins(t, lower, upper, valid, "; ".join(sorted(reasons)))


def _swing(alpha: FloatArray, z: FloatArray, G: float, S: FloatArray) -> tuple[FloatArray, ...]:
    """Solve ``z' = G alpha``, ``alpha' = z`` over clock ``S``: alpha, its integral, z."""
    g = math.sqrt(G)
    x = np.minimum(g * S, LARGEST)
    if g > 0:
        # for small arguments the series is exact in floating point and avoids 0/0 at tiny g
        ratio = np.where(x < 1e-8, S, np.sinh(x) / g)
        square = np.where(x < 1e-8, S**2 / 2, 2 * (np.sinh(x / 2) / g) ** 2)
    else:
        ratio, square = S, S**2 / 2
    cosh = np.cosh(x)
    return alpha * cosh + z * ratio, alpha * ratio + z * square, z * cosh + G * alpha * ratio


def _outer(a: FloatArray, b: FloatArray) -> FloatArray:
    return a[:, None] * b


class _Envelope:
    """One-sided solution of ``z' = G_up alpha+ + G_down alpha-``, ``alpha' = z`` of each neuron."""

    def __init__(self, z: FloatArray, alpha: FloatArray, G_up: float, G_down: float) -> None:
        self.z, self.alpha, self.G_up, self.G_down = z, alpha, G_up, G_down
        g = math.sqrt(G_down)
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(z > 0, -alpha / z, np.inf)
            ratio = np.where(alpha >= 0, 0.0, ratio)
            turn = np.arctanh(np.minimum(g * ratio, 1.0)) / g if g > 0 else ratio
        self.turn = np.where(alpha >= 0, 0.0, turn)
        """Clock at which the head turns positive; infinite if it never does."""
        finite = np.where(np.isfinite(self.turn), self.turn, 0.0)
        _, below, z_turn = _swing(alpha, z, G_down, finite)
        self.start = np.where(alpha >= 0, alpha, 0.0)
        self.z_turn = np.where(alpha >= 0, z, z_turn)
        self.below = np.where(alpha >= 0, 0.0, below)

    def __call__(self, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return alpha and the integrals of its positive and of its negative part, shapes (q, h)."""
        S = S[:, None]
        before = self.turn > S
        alpha, above, _ = _swing(self.start, self.z_turn, self.G_up, np.where(before, 0.0, S - self.turn))
        if not before.any():
            return alpha, above, np.broadcast_to(self.below, alpha.shape)
        early, below, _ = _swing(self.alpha, self.z, self.G_down, S)
        return (
            np.where(before, early, alpha),
            np.where(before, 0.0, above),
            np.where(before, below, self.below),
        )


class _Enclosure:
    """Interval state of one block, passed from phase to phase."""

    def __init__(self, problem: Problem, block: Block) -> None:
        self.loss = MARGINS[problem.loss]
        self.norms = problem.squared_norms[block.samples]
        self.Z_low = self.Z_high = block.Z
        self.alpha_low = self.alpha_high = block.alpha
        self.m_low = self.m_high = block.margins
        self.opposite = block.opposite
        self.G_opposite = block.G_opposite.max(0, initial=0.0)
        self.G_least, self.G_most = block.G.min(0), block.G.max(0)

    def slope(self, m: FloatArray) -> FloatArray:
        """``g``; beyond the margin where the loss ends the enclosure is flagged elsewhere."""
        return np.maximum(self.loss.slope(m), 0.0)

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
            S_low = self.clock(phase, np.where(np.isfinite(S_high), local, 0.0), upper=False)
            S_high = np.where(np.isfinite(S_high), S_high, 0.0) * (1 + PAD)
            good = np.isfinite(self.last_clock)
            S_low = np.where(good, S_low, 0.0) * (1 - PAD)
            m_low, m_high = self.margins(phase, S_low)[0], self.margins(phase, S_high)[1]
            reason = ""
            for ok, why in self.conditions(phase, S_high, m_high):
                if not ok.all():
                    reason = reason or why
                good = good & ok
            if not good.all():
                reason = reason or self.ended or "the clock could not be enclosed"
            # margins never fall, so a bound from below keeps
            good = np.logical_and.accumulate(good)
            low[here], high[here], valid[here] = m_low[:-1], m_high[:-1], good[:-1]
            if not good[-1]:
                return low, high, valid, reason
            self.advance(phase, S_low[-1], S_high[-1], m_low[-1], m_high[-1])
        return low, high, valid, ""

    def prepare(self, phase: Phase) -> None:
        """Set up the enclosures of a phase as functions of its clock, from the state at its start."""
        if phase.method == "lp":
            K_low = self.Z_low.T @ self.Z_low
            K_high = self.Z_high.T @ self.Z_high
            self.K_least, self.K_most = K_low.min(1), K_high.max(1)
            self.size_low, self.size_high = np.sqrt(np.diag(K_low)), np.sqrt(np.diag(K_high))
            return
        least, most = float(self.G_least.min()), float(self.G_most.max())
        self.below = _Envelope(self.Z_low.min(1, initial=np.inf), self.alpha_low, least, most)
        self.above = _Envelope(self.Z_high.max(1, initial=0.0), self.alpha_high, most, least)
        with np.errstate(divide="ignore"):
            own = (self.Z_low / self.G_most).min(1, initial=np.inf)
            other = np.where(self.G_opposite > 0, self.opposite / self.G_opposite, np.inf)
        self.room = np.minimum(own, other.min(1, initial=np.inf))
        self.aligned = bool((self.alpha_low >= 0).all())
        if self.aligned:
            zero = np.zeros(1)
            low, high, _, _ = self.products(zero)
            # with aligned heads the products grow no faster (slower) than the margins themselves
            self.lift_low, self.lift_high = self.m_low - low[0], self.m_high - high[0]

    def products(self, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Products of the enclosures in full fine-tuning: margins and squared gradient norms of f."""
        a_low, P_low, N_low = self.below(S)
        a_high, P_high, N_high = self.above(S)

        def weighted(a: FloatArray, Z: FloatArray, up: FloatArray, P, down: FloatArray, N) -> FloatArray:
            # sum_j a_j (Z_jk + up_k P_j + down_k N_j)
            return a @ Z + _outer((a * P).sum(1), up) + _outer((a * N).sum(1), down)

        def squares(Z: FloatArray, up: FloatArray, P, down: FloatArray, N) -> FloatArray:
            # sum_j (Z_jk + up_k P_j + down_k N_j)^2
            total = (Z**2).sum(0) + 2 * up * (P @ Z) + 2 * down * (N @ Z)
            total = total + _outer((P**2).sum(1), up**2) + _outer((N**2).sum(1), down**2)
            return total + 2 * _outer((P * N).sum(1), up * down)

        z_low = (self.Z_low, self.G_least, P_low, self.G_most, N_low)
        z_high = (self.Z_high, self.G_most, P_high, self.G_least, N_high)
        zero = 0.0
        m_low = weighted(np.maximum(a_low, zero), *z_low) + weighted(np.minimum(a_low, zero), *z_high)
        m_high = weighted(np.maximum(a_high, zero), *z_high) + weighted(np.minimum(a_high, zero), *z_low)
        heads_high = np.maximum(a_low**2, a_high**2).sum(1)
        heads_low = np.where(a_low * a_high > 0, np.minimum(a_low**2, a_high**2), zero).sum(1)
        low = np.maximum(squares(*z_low), zero) + _outer(heads_low, self.norms)
        return m_low, m_high, low, squares(*z_high) + _outer(heads_high, self.norms)

    def margins(self, phase: Phase, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """Lower and upper margins and norms of the gradient of ``f``, shapes (q, n)."""
        if phase.method == "lp":
            shape = (len(S), len(self.m_low))
            return (
                self.m_low + _outer(S, self.K_least),
                self.m_high + _outer(S, self.K_most),
                np.broadcast_to(self.size_low, shape),
                np.broadcast_to(self.size_high, shape),
            )
        m_low, m_high, low, high = self.products(S)
        if self.aligned:
            m_low = np.maximum(m_low, m_low + self.lift_low)
            m_high = np.minimum(m_high, m_high + self.lift_high)
        return np.maximum(m_low, self.m_low), m_high, np.sqrt(low), np.sqrt(high)

    def clock(self, phase: Phase, local: FloatArray, *, upper: bool) -> FloatArray:
        """Integrate the upper or the lower clock; infinite once the enclosure has ended."""

        def rate(_: float, S: FloatArray) -> FloatArray:
            m_low, m_high, low, high = self.margins(phase, np.maximum(S, 0.0))
            speed = self.slope(m_low if upper else m_high)
            if phase.clip is not None:
                with np.errstate(divide="ignore"):
                    speed = np.minimum(speed, phase.clip / (low if upper else high))
            return speed.sum(1)

        end = float(local.max())
        out = np.full(len(local), np.inf)
        out[local <= 0.0] = 0.0
        if upper:
            self.ended = ""
        if end > 0.0:
            # of low order: the error estimate of a high one can miss the kinks of clipping
            solver = RK45(patient(rate), 0.0, np.zeros(1), end, rtol=RTOL, atol=ATOL)
            while solver.status == "running":
                solver.step()
                if solver.status == "failed" or not np.isfinite(solver.y).all():
                    break
                inside = (local > (solver.t_old or 0.0)) & (local <= solver.t)
                if inside.any():
                    out[inside] = solver.dense_output()(local[inside])[0]
                if upper:
                    checked = self.conditions(phase, solver.y, self.margins(phase, solver.y)[1])
                    self.ended = next((why for ok, why in checked if not ok.all()), "")
                    if self.ended:
                        break
        if upper:
            self.last_clock = out
        return out

    def conditions(self, phase: Phase, S: FloatArray, m_high: FloatArray) -> list[tuple[np.ndarray, str]]:
        """Check the validity rule at upper clocks ``S``."""
        found = []
        if np.isfinite(self.loss.end):
            found.append(((m_high < self.loss.end).all(1), "a margin may have reached 1 (square loss)"))
        if phase.method == "fft":
            fall = -self.below(S)[2]
            found.append(((fall < self.room).all(1), "a neuron may have left its cone"))
        return found

    def advance(
        self, phase: Phase, S_low: float, S_high: float, m_low: FloatArray, m_high: FloatArray
    ) -> None:
        """Carry the intervals to the end of a phase whose clock lies in ``[S_low, S_high]``."""
        ends = np.array([S_low, S_high])
        if phase.method == "lp":
            self.alpha_low = self.alpha_low + S_low * self.Z_low.min(1, initial=np.inf)
            self.alpha_high = self.alpha_high + S_high * self.Z_high.max(1, initial=0.0)
        else:
            a_low, P_low, N_low = self.below(ends)
            a_high, P_high, N_high = self.above(ends)
            # the lower pre-activations turn where their head does; between, their least value is there
            P = np.where(self.below.turn <= S_low, P_low[0], 0.0)
            N = N_low[1]
            Z_low = self.Z_low + _outer(P, self.G_least) + _outer(N, self.G_most)
            reach = _outer(P_high.T[:, 0], self.G_most) + _outer(N_high.T[:, 0], self.G_least)
            late = _outer(P_high.T[:, 1], self.G_most) + _outer(N_high.T[:, 1], self.G_least)
            self.opposite = self.opposite + _outer(N, self.G_opposite)
            self.Z_low, self.Z_high = Z_low, self.Z_high + np.maximum(reach, late)
            self.alpha_low, self.alpha_high = a_low[0], a_high[1]
        self.m_low, self.m_high = m_low, m_high
