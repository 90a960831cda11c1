"""The Euler-Maruyama chain of one path, in chunks of paths."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from langevin.engine import outputs
from langevin.engine.kernels.outputs.types import (
    TOGETHER,
    OutputsData,
    OutputsRule,
    OutputsScratch,
)
from langevin.engine.kernels.types import Records, Rule, Scratch
from langevin.engine.layout import Layout, aligned_zeros
from langevin.engine.observer import Observer
from langevin.engine.reductions.request import Reduction, Request
from langevin.engine.results import Chunk, Results
from langevin.engine.system import System
from langevin.model.schedule import Phase, Schedule
from langevin.model.steps import Grid
from langevin.support.threads import one_blas_thread

# a call into compiled code lasts about this long: the delay of an interruption
_CALL_SECONDS = 0.1
# states of a chunk take at most this, unless one path takes more
_CHUNK_BYTES = 2**25
# a cautious rate, to cut calls; nothing else depends on it
_FLOPS = 2e10


@dataclass(frozen=True, eq=False)
class Chain(System):
    """What all paths of a run share: a system, its steps, records and noise.

    ``key`` is that of the noise and the batches; ``draws`` the number of draws a step; without ``noisy`` all
    noise is left out and batches are full, which gives the zeroth-order approximation on the same grid, to
    the last bit. ``probed`` is the data with the features that all paths have until the first layer is
    trained, if `data` has none and linear probing comes first.
    """

    grid: Grid
    observer: Observer
    key: tuple[int, int]
    draws: int = 1
    noisy: bool = True
    probed: OutputsData | None = None

    @classmethod
    def build(
        cls,
        request: Request,
        reduction: Reduction,
        dtype: type,
        key: tuple[int, int] = (0, 0),
        draws: int = 1,
    ) -> Chain:
        """Lay out a reduction of the chain that was requested."""
        grid = request.grid
        assert grid is not None
        system = System.build(request, reduction, dtype)
        observer = Observer.of(system, request.observables, grid.times, grid.record_steps)
        dims = np.array([hidden.dims for hidden in reduction.hidden], np.int64)
        scales = [_hidden_scale(request.schedule, grid, hidden.methods) for hidden in reduction.hidden]
        observer = observer.with_hidden(dims, np.reshape(scales, (len(dims), len(grid.record_steps))))
        probed, data = None, system.data
        if isinstance(data, OutputsData) and data.features.size == 0 and _leading(system.schedule) > 0:
            probed = outputs.freeze(system.layout, data, reduction.problem, reduction.W)
        return cls(**vars(system), grid=grid, observer=observer, key=key, draws=draws, probed=probed)

    def without_noise(self) -> Chain:
        """The zeroth-order approximation on the same grid."""
        return replace(self, noisy=False, observer=self.observer.without_noise())

    def with_reference(self, states: np.ndarray) -> Chain:
        """The same chain, recording the distance to ``states (m, size)``."""
        return replace(self, observer=self.observer.with_reference(states))

    @property
    def records(self) -> Records:
        """What the step loop writes records by."""
        return self.observer.records

    def rule(self, phase: Phase) -> Rule | OutputsRule:
        """Convert a phase to the form of the compiled code; without noise, on full batches."""
        noise: Any = {}
        if self.noisy:
            folded, rate = self.reduction.folded, phase.sample_rate
            noise = dict(sigma=phase.sigma, sample_rate=rate, folded=folded)
        return self._rule(phase, dt=self.grid.dt, draws=self.draws, **noise)

    def step_seconds(self) -> float:
        """Estimate the time of a step of one path, to divide work into calls."""
        if isinstance(self.data, OutputsData):
            return outputs_step_seconds(self.layout, self.data, self.schedule)
        samples, inputs = self.data.X.shape
        folding = 10 * (self.layout.inputs + 1) ** 3 if self.reduction.folded else 0
        # an activation that is called costs some 20 ns
        calls = 400 * samples * self.layout.width if self.data.activation.phi else 0
        return (
            4 * samples * (inputs + 1) * self.layout.width + 50 * self.layout.size + folding + calls
        ) / _FLOPS + 1e-6

    def steps_a_call(self, paths: int) -> int:
        """Steps of so many paths that a call into compiled code takes."""
        step, start = self.step_seconds(), 0.0
        again = any(phase.method == "lp" for phase in self.schedule.phases[_leading(self.schedule) :])
        if isinstance(self.data, OutputsData) and again:
            # a call computes the features of each path first, which may take longer than many batches
            start = outputs.freeze_flops(self.data) / _FLOPS
        return max(steps_a_call(step * paths), int(start / step))

    def chunk_paths(self, paths: int, threads: int) -> int:
        """Return the number of paths per chunk, limited by call time, chunks per thread and memory."""
        a_call = int(_CALL_SECONDS / (self.step_seconds() * self.grid.steps))
        data = self.probed or self.data
        if isinstance(data, OutputsData) and data.features.size and self.schedule.phases[0].sample_rate == 1:
            # they read features together
            a_call = max(a_call, TOGETHER)
        fitting = _CHUNK_BYTES // self.origin.nbytes
        return max(1, min(a_call, fitting, math.ceil(paths / (4 * threads))))

    def advance(self, chunk: Chunk, results: Results, scratch: Scratch | OutputsScratch, stop: int) -> None:
        """Advance a chunk to step ``stop``, within one phase, and record on the way."""
        rows = chunk.paths
        phase = bisect_right(self.grid.phase_starts, chunk.step) - 1
        shared = self.probed is not None and phase < _leading(self.schedule)
        self.reduction.loop(
            chunk.thetas,
            chunk.complements,
            results.diverged[rows],
            chunk.first_path,
            chunk.step,
            stop,
            stop == self.grid.steps,
            np.uint64(self.key[0]),
            np.uint64(self.key[1]),
            self.probed if shared else self.data,
            self.rule(self.schedule.phases[phase]),
            scratch,
            self.records,
            results.scalars[rows],
            results.neurons[rows],
        )
        chunk.step = stop
        results.steps[rows] = stop

    @property
    def place(self) -> str:
        """Return the device of the run: rounding differs on others."""
        return "cpu"

    def states(self, chunk: Chunk) -> np.ndarray:
        """Return the chunk's states in readable memory."""
        return chunk.thetas

    def watch(self, chunk: Chunk, results: Results) -> None:
        """Evaluate the watchers if the chunk is at a record."""
        r = self.observer.record_at(chunk.step)
        if r is not None and chunk.step in self.observer.watched_steps:
            self.observer.watch(r, chunk.first_path, self.states(chunk), results)

    def stops(self, step: int) -> int:
        """Return the next step at which a call starting at ``step`` has to return."""
        watched = self.observer.watched_steps
        limits = [self.grid.steps, *(s for s in self.grid.phase_starts if s > step)]
        limits += watched[np.searchsorted(watched, step, side="right") :][:1].tolist()
        return min(limits)


def _leading(schedule: Schedule) -> int:
    """Number of phases before the first layer is trained."""
    return next((i for i, phase in enumerate(schedule) if phase.method != "lp"), len(schedule))


def outputs_step_seconds(layout: Layout, data: OutputsData, schedule: Schedule) -> float:
    """Estimate the time of a step of the loop of K outputs and batches, on one path."""
    return outputs.step_flops(layout, data, schedule) / _FLOPS + 1e-6


def steps_a_call(step_seconds: float) -> int:
    """Steps that a call into compiled code takes, if one takes so long."""
    return max(1, int(_CALL_SECONDS / step_seconds))


def _hidden_scale(schedule: Schedule, grid: Grid, methods: Sequence[str]) -> np.ndarray:
    """Standard deviation, over each record interval, of what moves by noise alone in such phases."""
    variance = np.zeros(len(grid.record_steps))
    for phase, first, steps in zip(schedule, grid.phase_starts, grid.phase_steps, strict=True):
        if phase.method in methods:
            variance += 2 * phase.sigma**2 * grid.dt * np.clip(grid.record_steps - first, 0, steps)
    return np.sqrt(np.diff(variance, prepend=0.0))


def follow(chain: Chain, results: Results) -> Iterator[np.ndarray]:
    """Run one path on this thread to its end, and yield its state at each record, overwritten by the next.

    BLAS should be kept on one thread.
    """
    chunk, scratch, steps = chain.start(0, 1), chain.scratch(), chain.steps_a_call(1)

    def advance(stop: int) -> None:
        while chunk.step < stop:
            chain.advance(chunk, results, scratch, min(stop, chunk.step + steps, chain.stops(chunk.step)))

    for record in chain.records.steps.tolist():
        advance(record)
        yield chain.states(chunk)[0]
    advance(chain.grid.steps)


def reference_path(chain: Chain) -> np.ndarray:
    """States of a noiseless chain at the record steps, shape (m, size)."""
    states = aligned_zeros((len(chain.records.steps), chain.layout.size), chain.layout.dtype)
    results = chain.observer.empty(1, per_neuron=False)
    with one_blas_thread():
        # the states come first: nothing runs beyond the last record
        for state, theta in zip(states, follow(chain, results), strict=False):
            state[:] = theta
    return states
