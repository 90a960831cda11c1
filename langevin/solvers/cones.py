"""The zeroth-order flow of a ReLU network whose neurons stay in their cones (theory, section 7d).

Under Assumptions 3.1 and 3.2 of [1]_ the samples and neurons of a class train like a linear net, apart from
those of the other class, until a neuron leaves its cone: so the Gram matrix of each class tells all neurons.

References
----------
.. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from langevin.engine.reductions.blocks import MARGINS
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.engine.system import System
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from langevin.solvers import adaptive
from langevin.solvers.report import Report
from langevin.support.validate import FloatArray

# intervals a phase in which neurons are watched
_CHECKS = 100


class LeavesCone(ArithmeticError):
    """A neuron may have left its cone from this time on."""


def follow(
    system: System, wanted: FloatArray, rtol: float, atol: float, report: Report
) -> Iterator[np.ndarray]:
    """`langevin.solvers.adaptive.follow`, class by class.

    Raises
    ------
    LeavesCone
        As soon as it is not certain that all neurons stay in their cones.
    """
    problem, W, v = system.reduction.problem, system.reduction.W.copy(), system.reduction.v.copy()
    blocks = [block for sign in (1.0, -1.0) if (block := _Block.of(problem, W, v, sign)).neurons.size]
    times, probing = _checks(system.schedule, wanted)
    flows = [block.flow(system, times, rtol, atol, report) for block in blocks]
    records, theta = set(wanted.tolist()), np.zeros_like(system.origin)
    largest = max(_largest_factor(phase) for phase in system.schedule)
    for i, t in enumerate(times):
        before = W.copy(), v.copy()
        for block, states in zip(blocks, flows, strict=True):
            state = next(states, None)
            if state is None:
                return
            moved = block.frame @ state
            # features that have not moved keep their bits
            if i > 0 and not probing[i]:
                W[block.neurons] = moved[:, :-1]
            if i > 0:
                v[block.neurons] = moved[:, -1]
        if i > 0 and not probing[i]:
            for block in blocks:
                if not block.certain(problem, *before, v, largest * (t - times[i - 1])):
                    raise LeavesCone(
                        f"neurons may leave the cones of their classes from time {times[i - 1]:g} on"
                    )
        if t in records:
            system.layout.pack(W, v, theta)
            yield theta


def _checks(schedule: Schedule, wanted: FloatArray) -> tuple[FloatArray, np.ndarray]:
    """Return the times at which neurons are checked, and whether each ends an interval of linear probing."""
    parts = [wanted]
    for phase, start in zip(schedule, schedule.starts, strict=True):
        parts.append(np.linspace(start, start + phase.time, _CHECKS + 1 if phase.method == "fft" else 2))
    times = np.unique(np.concatenate([[0.0], *parts]))
    times = times[times <= max(schedule.duration, wanted[-1])]
    last = np.searchsorted(schedule.starts, times, side="left") - 1
    methods = np.array([phase.method == "lp" for phase in schedule])
    return times, methods[np.maximum(last, 0)]


def _largest_factor(phase: Phase) -> float:
    """Bound of the clipping factors ``c_i``: normalised clipping makes short gradients longer."""
    if phase.clip is None or phase.clipping != "normalised":
        return 1.0
    return phase.clip / phase.stabiliser


@dataclass(frozen=True, eq=False)
class _Block:
    """The samples and neurons of a class; no neurons if it has no samples."""

    X: FloatArray
    y: FloatArray
    others: FloatArray  # samples of the other class
    neurons: np.ndarray
    sign: float
    frame: FloatArray  # orthonormal columns: rows [W, v] = frame @ coordinates
    coordinates: FloatArray

    @classmethod
    def of(cls, problem: Problem, W: FloatArray, v: FloatArray, sign: float) -> _Block:
        own = problem.y == sign
        X = problem.X[own]
        neurons = np.flatnonzero(W @ X[0] > 0) if len(X) else np.zeros(0, int)
        frame, coordinates = np.linalg.qr(np.column_stack([W[neurons], v[neurons]]))
        return cls(X, problem.y[own], problem.X[~own], neurons, sign, frame, coordinates)

    def flow(
        self, system: System, times: FloatArray, rtol: float, atol: float, report: Report
    ) -> Iterator[FloatArray]:
        """Yield the coordinates ``[W, v]`` at each time."""
        local = Problem(self.X, self.y, "linear", system.problem.loss)
        W, v = self.coordinates[:, :-1], self.coordinates[:, -1]
        request = Request(local, Weights(W, v), system.schedule, None, noisy=False)
        linear = System.build(request, reduction("none", request), np.float64)
        for theta in adaptive.follow(linear, times, rtol, atol, report):
            yield np.column_stack(linear.layout.unpack(theta))

    def certain(
        self, problem: Problem, W: FloatArray, v: FloatArray, after: FloatArray, longest: float
    ) -> bool:
        """Tell whether all neurons stay in their cones from ``W``, ``v`` until the heads ``after``.

        ``longest`` bounds the integral of each ``c_i`` until then. In the clock ``S = int sum_i c_i g_i dt``,
        ``zeta = min_k z_jk`` obeys ``d zeta / dS >= Gamma alpha`` and ``d alpha / dS >= zeta`` while
        ``alpha < 0``, which hyperbolic functions solve.
        """
        W, alpha, rise = W[self.neurons], self.sign * v[self.neurons], self.sign * (after - v)[self.neurons]
        own = W @ self.X.T
        zeta, room = own.min(axis=1), (-(W @ self.others.T))
        gamma = float((self.X @ self.X.T).max())
        aligned, clock = alpha >= 0, np.inf
        if aligned.any():
            # an aligned head rises at least at the rate of its smallest pre-activation
            clock = float((rise[aligned] / zeta[aligned]).min())
        elif (residual := LOSSES[problem.loss].largest_residual) is not None:
            clock = len(self.y) * longest * residual
        turn = gamma**0.5 * clock
        if (limit := MARGINS[problem.loss]) < np.inf:
            growth = float((own.max(axis=1) ** 2 + gamma * alpha**2).sum())
            margin = float((self.sign * (own.T @ v[self.neurons])).max())
            if not margin + growth * np.expm1(2 * turn) / (2 * gamma**0.5) < limit:
                return False
        zeta, room, a = zeta[~aligned], room[~aligned], gamma**0.5 * -alpha[~aligned]
        pull = np.abs(self.others @ self.X.T).max(axis=1, initial=0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            drop = np.where(pull > 0, gamma * room / pull, np.inf).min(axis=1, initial=np.inf)
            lowest = np.maximum(0.0, zeta - drop)
            squared = lowest**2 - zeta**2 + a**2
            leaves = np.where(squared >= 0, np.log((zeta + a) / (lowest + np.sqrt(squared))), np.inf)
        return bool((turn < leaves).all())
