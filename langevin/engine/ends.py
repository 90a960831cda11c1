"""Where runs end: chains without records, whose phases each have a step size of their own.

For searches over schedules of one network. The runs of a draw share its head, its batches and its noise,
whatever their phases, and a first phase that several of them have in common is run once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, NamedTuple

import numpy as np

from langevin.engine import outputs, pool
from langevin.engine.chain import outputs_step_seconds, steps_a_call
from langevin.engine.kernels.outputs.loop import advance_outputs
from langevin.engine.kernels.outputs.types import SCALARS, OutputsData, OutputsRule
from langevin.engine.kernels.types import ACCURACY, LOSS, NEURON_ROWS, Records
from langevin.engine.layout import Layout, aligned_zeros
from langevin.engine.noise import DTYPES, Precision
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.support.validate import FloatArray


class Leg(NamedTuple):
    """A phase and its step size, in units of diffusion time."""

    phase: Phase
    dt: float

    @property
    def steps(self) -> int:
        """Number of steps."""
        return round(self.phase.time / self.dt)

    @property
    def pace(self) -> tuple[Phase, float]:
        """What its steps are, however many."""
        return replace(self.phase, time=1.0), self.dt


class Draw(NamedTuple):
    """What is random in a run."""

    v: FloatArray  # (h,) or (h, K): head at the start
    key: tuple[int, int]  # of batches and noise


class Ends(NamedTuple):
    """Where runs end, by course and draw; NaN if a run has diverged."""

    loss: FloatArray
    test_accuracy: FloatArray


@dataclass(frozen=True, eq=False)
class Net:
    """A network at the start of all runs, and its data in the compiled code's form."""

    problem: Problem
    W: FloatArray
    layout: Layout
    data: OutputsData
    frozen: OutputsData  # with the features of W
    held: OutputsData  # of the held-out points

    @classmethod
    def of(cls, problem: Problem, W: FloatArray, precision: Precision = "single") -> Net:
        """Lay out a problem with held-out points, and a first layer, shape (h, d)."""
        layout = Layout(problem.dim, len(W), DTYPES[precision], problem.outputs_dim)
        assert problem.X_test is not None
        assert problem.y_test is not None
        held = np.eye(problem.outputs_dim)[problem.y_test] if problem.class_names else problem.y_test
        parts = (
            (problem.X, problem.targets, None),
            (problem.X, problem.targets, problem.features(W)),
            (problem.X_test, held, None),
        )
        built = (
            outputs.build_data(
                layout,
                X,
                targets,
                activation=problem.activation,
                loss=problem.loss,
                classes=problem.classification,
                features=features,
            )
            for X, targets, features in parts
        )
        return cls(problem, W, layout, *built)

    def ends(self, courses: Sequence[Sequence[Leg]], draws: Sequence[Draw], threads: int) -> Ends:
        """Run each course from each draw to its end.

        Parameters
        ----------
        courses : sequence of sequences of Leg
            In each, linear probing comes before full fine-tuning: its features are those of ``W``.
        draws : sequence of Draw
            A draw has the same results to the last bit whatever the other draws and courses.
        threads : int
            The results do not depend on it.
        """
        for course in courses:
            methods = [leg.phase.method for leg in course]
            if not methods or methods != sorted(methods, reverse=True):
                raise ValueError(f"courses must hold phases, 'lp' before 'fft', got {methods}")
        found = pool.each(lambda draw, rest: _Runs(self, draw, rest).ends(courses), draws, threads)
        return Ends(*np.array(found).transpose(2, 1, 0))

    def start(self, v: FloatArray) -> _State:
        """The state of a run before its first step."""
        theta = aligned_zeros((1, self.layout.size), self.layout.dtype)
        self.layout.pack(self.W, v, theta[0])
        return _State(theta, 0, np.full(1, -1))


@dataclass
class _State:
    """A run under way."""

    theta: np.ndarray  # (1, size)
    step: int
    diverged: np.ndarray  # (1,): -1, or the step from which it is not finite

    def copy(self) -> _State:
        theta = aligned_zeros(self.theta.shape, self.theta.dtype)
        theta[:] = self.theta
        return _State(theta, self.step, self.diverged.copy())


class _Runs:
    """The runs of a draw, on one thread, until ``rest`` is set."""

    def __init__(self, net: Net, draw: Draw, rest: Event) -> None:
        self._net, self._draw, self._rest = net, draw, rest
        self._scratch, self._held = (
            outputs.build_scratch(net.layout, data, probing=False) for data in (net.data, net.held)
        )

    @np.errstate(all="ignore")  # of numbers out of the range, which a run shows by diverging
    def ends(self, courses: Sequence[Sequence[Leg]]) -> FloatArray:
        """Loss and held-out accuracy at the end of each course, shape (courses, 2)."""
        found = np.empty((len(courses), 2))
        alike: dict[Any, list[int]] = {}
        for i, course in enumerate(courses):
            alike.setdefault(course[0].pace, []).append(i)
        for same in alike.values():
            state = self._net.start(self._draw.v)
            for i in sorted(same, key=lambda i: courses[i][0].steps):
                first, *others = courses[i]
                self._advance(state, first, first.steps - state.step)
                own = state.copy()
                for leg in others:
                    self._advance(own, leg, leg.steps)
                found[i] = self._observe(own)
        return found

    def _advance(self, state: _State, leg: Leg, steps: int) -> None:
        """Take some steps of a leg."""
        net, phase = self._net, leg.phase
        data = net.frozen if phase.method == "lp" else net.data
        at_once = steps_a_call(outputs_step_seconds(net.layout, data, Schedule([phase])))
        rule = outputs.phase_rule(net.layout, phase, leg.dt)
        end = state.step + steps
        while state.step < end and not self._rest.is_set():
            stop = min(state.step + at_once, end)
            self._call(state, stop, data, rule, ())
            state.step = stop

    def _observe(self, state: _State) -> tuple[float, float]:
        """Loss and held-out accuracy at a state."""
        net = self._net
        # of a phase that trains the layer: its features are not those of the start
        rule = outputs.phase_rule(net.layout, Phase("fft", time=1.0), dt=1.0)
        loss, accuracy = (
            self._call(state, state.step, data, rule, (state.step,))[0, which, 0]
            for data, which in ((net.data, LOSS), (net.held, ACCURACY))
        )
        return (np.nan, np.nan) if state.diverged[0] >= 0 else (loss, accuracy)

    def _call(
        self, state: _State, stop: int, data: OutputsData, rule: OutputsRule, records: tuple[int, ...]
    ) -> np.ndarray:
        """Run compiled code up to step ``stop``, and return the observables of the records."""
        dtype, count = self._net.layout.dtype, len(records)
        scalars = np.full((1, SCALARS, count), np.nan)
        advance_outputs(
            state.theta,
            np.zeros((1, 2, 0)),
            state.diverged,
            0,
            state.step,
            stop,
            count > 0,
            *map(np.uint64, self._draw.key),
            data,
            rule,
            self._held if data is self._net.held else self._scratch,
            # without a reference path, classes of neurons, and dimensions that are not simulated
            Records(
                np.array(records, np.int64),
                state.theta[0],
                np.zeros((0, 0), dtype),
                np.zeros(0),
                np.zeros((2, self._net.layout.inputs), dtype),
                np.zeros(2),
                np.zeros(0),
                complement_dims=np.zeros(0, np.int64),
                complement_scales=np.zeros((0, count)),
            ),
            scalars,
            np.full((1, NEURON_ROWS, 0, 0), np.nan),
        )
        return scalars
