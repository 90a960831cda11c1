"""The loss of a class whose samples are all equal, with any heads (section 4b'(c))."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.integrate import RK45

from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.clocked import ATOL, CONE, PAD, RTOL, Enclosed
from bounds.support.numeric import patient
from langevin.model.alignment import cone_distance, head_excess
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.support.validate import FloatArray

State = tuple[FloatArray, FloatArray, float]


class Collapsed:
    """Exact flow of ``n`` equal samples ``x`` through ``u = W x / ||x||`` and the heads ``V``.

    The outputs are ``f = ||x|| V^T u``, and ``V' = -n ||x|| u (c r)^T``, ``u' = -n ||x|| V (c r)`` (not in
    linear probing), with the clipping factor ``c``. They are followed together with the clock ``S``, whose
    rate ``n c |r_c|`` (softmax) or ``n c sum_k |r_k|`` bounds how fast a neuron may leave its cone.
    """

    source = "4b'(c)"

    def __init__(self, problem: Problem, block: ClassBlock) -> None:
        self.problem, self.loss, self.own = problem, LOSSES[problem.loss], block.own
        self.label = np.eye(block.classes)[[block.own]]
        self.classes = np.full(len(block.neurons), block.own)
        self.n = len(block.samples)
        self.length = math.sqrt(float(block.G[0, 0]))
        self.u, self.V = block.Z[:, 0] / self.length, block.V
        with np.errstate(divide="ignore"):
            rooms = np.where(block.G_opposite[:1] > 0, block.opposite / block.G_opposite[:1], np.inf)
        room = self.length * rooms.min(1, initial=np.inf)
        # a neuron moves along x alone: where its products with x or with other classes change sign
        self.floor = np.maximum(self.u - room, 0.0)

    def outputs(self, u: FloatArray, V: FloatArray) -> FloatArray:
        """``f``, shape (1, K)."""
        return self.length * (u @ V)[None]

    def clipped(self, phase: Phase, u: FloatArray, V: FloatArray, r: FloatArray) -> FloatArray:
        """``c r``, shape (K,)."""
        if phase.clip is None:
            return r
        size = self.length * np.linalg.norm(u)
        norm, clip = np.linalg.norm(r) * size, phase.clip
        if phase.clipping == "margin":
            norm = math.sqrt(2) * np.abs(r[self.own]) * size
        elif phase.clipping == "column":
            norm, clip = np.abs(r) * size, clip / math.sqrt(len(r))
        elif phase.method == "fft":
            norm = np.hypot(norm, self.length * np.linalg.norm(V @ r))
        with np.errstate(divide="ignore"):
            return np.minimum(1.0, clip / norm) * r

    def rate(self, phase: Phase) -> Callable[[float, FloatArray], FloatArray]:
        """The flow of a phase, of ``u``, ``V`` and the clock in a row."""

        def rate(_: float, state: FloatArray) -> FloatArray:
            u, V, _ = self.unpack(state)
            r = self.clipped(phase, u, V, self.loss.residual(self.outputs(u, V), self.label)[0])
            speed = self.n * self.length
            du = -speed * V @ r if phase.method == "fft" else np.zeros_like(u)
            pull = abs(r[self.own]) if self.loss.gauge else np.abs(r).sum()
            return np.concatenate([du, -speed * np.outer(u, r).ravel(), [self.n * pull]])

        return patient(rate)

    def unpack(self, state: FloatArray) -> State:
        """``u``, ``V`` and the clock."""
        h = len(self.u)
        return state[:h], state[h:-1].reshape(self.V.shape), float(state[-1])

    def stays(self, before: FloatArray, after: FloatArray) -> bool:
        """Whether all neurons keep their cones between two states of full fine-tuning (3.3').

        No excess of a head over a condition of its aligned cone grows, so ``u`` falls by at most the largest
        times the clock; and where ``u^2`` exceeds the squared distance ``a^2`` of a head from its cone, by at
        most ``u - sqrt(u^2 - a^2)``.
        """
        (u, V, start), (_, _, end) = self.unpack(before), self.unpack(after)
        excess = head_excess(self.problem, V, self.classes).max(axis=1, initial=0.0)
        squared = u**2 - cone_distance(self.problem, V, self.classes) ** 2
        drop = self.length * excess * (end - start)
        drop = np.where(squared > 0, np.minimum(drop, u - np.sqrt(np.maximum(squared, 0.0))), drop)
        return bool((u - drop > self.floor).all())

    def enclose(self, schedule: Schedule, t: FloatArray) -> Enclosed:
        """Enclose the class's losses at ``t``, up to the padded error of integration."""
        state = np.concatenate([self.u, self.V.ravel(), [0.0]])
        F, valid = np.repeat(self.outputs(self.u, self.V), len(t), axis=0), t <= 0.0
        reason = ""
        phases = list(zip(schedule, schedule.starts, strict=True))
        for phase, start in phases:
            end = start + phase.time
            here = np.flatnonzero((t > start) & ((t <= end) | (phase is phases[-1][0])))
            state, found, reason = self.follow(phase, state, np.minimum(t[here] - start, phase.time))
            reached = here[: len(found)]
            F[reached], valid[reached] = found, True
            if reason:
                break
        moved = PAD * np.linalg.norm(F - self.outputs(self.u, self.V), axis=1)
        size = np.linalg.norm(self.loss.residual(F, self.label), axis=1)
        loss = self.loss.value(F, self.label)
        bounds = loss - moved * size, loss + moved * size, size + self.loss.smoothness * moved
        low, high, residual = (np.repeat(bound[:, None], self.n, axis=1) for bound in bounds)
        return Enclosed(low, high, residual, valid, reason, self.source)

    def follow(self, phase: Phase, state: FloatArray, t: FloatArray) -> tuple[FloatArray, FloatArray, str]:
        """Follow a phase: the state at its end, the outputs at the times reached, why it ended before."""
        solver = RK45(self.rate(phase), 0.0, state, phase.time, rtol=RTOL, atol=ATOL)
        found = np.zeros((0, self.V.shape[1]))
        while solver.status == "running":
            before = solver.y
            solver.step()
            if solver.status == "failed" or not np.isfinite(solver.y).all():
                return before, found, "the flow of a collapsed class could not be followed"
            if phase.method == "fft" and not self.stays(before, solver.y):
                return before, found, CONE
            inside = t[len(found) :]
            inside = inside[inside <= solver.t]
            if len(inside):
                between = solver.dense_output()(inside).T
                outputs = [self.outputs(*self.unpack(one)[:2]) for one in between]
                found = np.concatenate([found, *outputs])
        return solver.y, found, ""
