"""The zeroth-order flow of a ReLU network whose neurons stay in their cones (theory, section 7d; 7d').

Under Assumptions 3.1 and 3.2 of [1]_ the samples and neurons of a class train like a linear net, apart from
those of the other classes, until a neuron leaves its cone: so the Gram matrix of each class tells all
neurons. For K classes this is new (theory for K outputs, section 3').

References
----------
.. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from langevin.engine.reductions.blocks import MARGINS
from langevin.engine.reductions.choose import reduction
from langevin.engine.reductions.request import Request
from langevin.engine.system import System
from langevin.model.alignment import cone_distance, head_excess
from langevin.model.gauge import gauge_basis
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
    labels = range(problem.outputs_dim) if problem.class_names else (1.0, -1.0)
    blocks = [
        _Block.of(problem, W, v, label, neurons)
        for label in labels
        if (neurons := _neurons_of(problem, W, label)).size
    ]
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
            # features that have not moved keep their bits
            if i > 0 and not probing[i]:
                W[block.neurons] = block.frame @ state[0]
            if i > 0:
                v[block.neurons] = block.frame @ state[1] + block.resting
        if i > 0 and not probing[i]:
            for block in blocks:
                if not block.certain(problem, *before, v, largest * (t - times[i - 1])):
                    raise LeavesCone(
                        f"neurons may leave the cones of their classes from time {times[i - 1]:g} on"
                    )
        if t in records:
            system.layout.pack(W, v, theta)
            yield theta


def _neurons_of(problem: Problem, W: FloatArray, label: float) -> np.ndarray:
    """The neurons in the cone of a class; none if it has no samples."""
    X = problem.X[problem.y == label]
    return np.flatnonzero(W @ X[0] > 0) if len(X) else np.zeros(0, int)


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
    """The samples and neurons of a class.

    Attributes
    ----------
    label : float
        Of the class.
    X, others : ndarray, shapes (n_c, k) and (n - n_c, k)
        Its samples, and those of the other classes.
    neurons : ndarray of int, shape (h_c,)
        Its neurons.
    frame : ndarray, shape (h_c, r)
        Orthonormal columns: the neurons are ``frame @ start.W``, their heads ``frame @ start.v + resting``.
    start : Weights
        A linear net with the Gram matrix of the class.
    resting : ndarray, shape (h_c,) or (h_c, K)
        What never moves of the heads: with softmax the mean over outputs.
    """

    label: float
    X: FloatArray
    others: FloatArray
    neurons: np.ndarray
    frame: FloatArray
    start: Weights
    resting: FloatArray

    @classmethod
    def of(cls, problem: Problem, W: FloatArray, v: FloatArray, label: float, neurons: np.ndarray) -> _Block:
        own, gauge = problem.y == label, LOSSES[problem.loss].gauge
        X, outputs = problem.X[own], problem.outputs_dim
        W, v = W[neurons], v[neurons]
        E = gauge_basis(outputs) if gauge else np.eye(outputs)
        moving = v @ E if v.ndim > 1 else v
        frame, coordinates = np.linalg.qr(np.column_stack([W, moving]))
        head = coordinates[:, W.shape[1] :]
        start = Weights(coordinates[:, : W.shape[1]], head[:, 0] if v.ndim == 1 else head @ E.T)
        resting = v.mean(axis=1, keepdims=True) * np.ones(outputs) if gauge else np.zeros_like(v)
        return cls(label, X, problem.X[~own], neurons, frame, start, resting)

    def flow(
        self, system: System, times: FloatArray, rtol: float, atol: float, report: Report
    ) -> Iterator[tuple[FloatArray, FloatArray]]:
        """Yield ``W`` and ``v`` of the linear net at each time."""
        problem = system.reduction.problem
        X, y = self.X, np.full(len(self.X), self.label)
        if names := problem.class_names:
            # every class needs a sample: at 0 it has no gradient
            X = np.vstack([X, np.zeros((len(names), X.shape[1]))])
            y = np.concatenate([y, np.arange(len(names))]).astype(int)
        local = Problem(X, y, "linear", problem.loss, classes=names or None)
        request = Request(local, self.start, system.schedule, None, noisy=False)
        linear = System.build(request, reduction("none", request), np.float64)
        for theta in adaptive.follow(linear, times, rtol, atol, report):
            yield linear.layout.unpack(theta)

    def certain(
        self, problem: Problem, W: FloatArray, v: FloatArray, after: FloatArray, longest: float
    ) -> bool:
        """Tell whether all neurons stay in their cones from ``W``, ``v`` until the heads ``after``.

        ``longest`` bounds the integral of each ``c_i`` until then.
        """
        W, v, rise = W[self.neurons], v[self.neurons], (after - v)[self.neurons]
        own, room = W @ self.X.T, -(W @ self.others.T)
        if problem.class_names:
            return self._certain_of_classes(problem, own, room, v, rise, longest)
        return self._certain_of_signs(problem, own, room, self.label * v, self.label * rise, longest)

    def _certain_of_signs(
        self,
        problem: Problem,
        own: FloatArray,
        room: FloatArray,
        alpha: FloatArray,
        rise: FloatArray,
        longest: float,
    ) -> bool:
        """`certain` of one output.

        In the clock ``S = int sum_i c_i g_i dt``, ``zeta = min_k z_jk`` obeys ``d zeta / dS >= Gamma alpha``
        and ``d alpha / dS >= zeta`` while ``alpha < 0``, which hyperbolic functions solve.
        """
        zeta, gamma = own.min(axis=1), self._largest_product
        aligned, clock = alpha >= 0, np.inf
        if aligned.any():
            # an aligned head rises at least at the rate of its smallest pre-activation
            clock = float((rise[aligned] / zeta[aligned]).min())
        elif (residual := LOSSES[problem.loss].largest_residual) is not None:
            clock = len(self.X) * longest * residual
        turn = gamma**0.5 * clock
        if (limit := MARGINS[problem.loss]) < np.inf:
            growth = float((own.max(axis=1) ** 2 + gamma * alpha**2).sum())
            margin = float((own.T @ alpha).max())
            if not margin + growth * np.expm1(2 * turn) / (2 * gamma**0.5) < limit:
                return False
        zeta, room, a = zeta[~aligned], room[~aligned], gamma**0.5 * -alpha[~aligned]
        pull = self._pull
        with np.errstate(divide="ignore", invalid="ignore"):
            drop = np.where(pull > 0, gamma * room / pull, np.inf).min(axis=1, initial=np.inf)
            lowest = np.maximum(0.0, zeta - drop)
            squared = lowest**2 - zeta**2 + a**2
            leaves = np.where(squared >= 0, np.log((zeta + a) / (lowest + np.sqrt(squared))), np.inf)
        return bool((turn < leaves).all())

    def _certain_of_classes(
        self,
        problem: Problem,
        own: FloatArray,
        room: FloatArray,
        v: FloatArray,
        rise: FloatArray,
        longest: float,
    ) -> bool:
        """`certain` of K outputs.

        In the clock ``S = int sum_i c_i |r_i| dt``, summed over outputs (softmax: of the own output alone),
        no excess of a head over a condition of its aligned cone grows, so that ``zeta = min_k z_jk`` falls at
        most at the rate ``Gamma`` times the largest. And ``zeta^2 - Gamma a^2`` does not decrease, with the
        distance ``a`` to the cone: where it is positive, ``zeta`` never falls by more than
        ``zeta - sqrt(zeta^2 - Gamma a^2)``.
        """
        classes, zeta, gamma = np.full(len(v), int(self.label)), own.min(axis=1), self._largest_product
        largest = head_excess(problem, v, classes).max(axis=1)
        moved = rise[:, int(self.label)] if LOSSES[problem.loss].gauge else np.abs(rise).sum(axis=1)
        aligned, outputs = largest <= 0, 1 if LOSSES[problem.loss].gauge else problem.outputs_dim
        clock = len(self.X) * longest * outputs
        if aligned.any():
            # an aligned head moves at least at the rate of its smallest pre-activation
            clock = min(clock, float((moved[aligned] / zeta[aligned]).min()))
        drop = gamma * np.maximum(largest, 0.0) * clock
        squared = zeta**2 - gamma * cone_distance(problem, v, classes) ** 2
        drop = np.where(squared > 0, np.minimum(drop, zeta - np.sqrt(np.maximum(squared, 0.0))), drop)
        rooms = room - self._pull / gamma * drop[:, None]
        return bool((drop < zeta).all() and (rooms > 0).all())

    @cached_property
    def _largest_product(self) -> float:
        """``Gamma``: the largest product of two samples of the class."""
        return float((self.X @ self.X.T).max())

    @cached_property
    def _pull(self) -> FloatArray:
        """Largest product of each sample of other classes with one of the class, by absolute value."""
        return np.abs(self.others @ self.X.T).max(axis=1, initial=0.0)
