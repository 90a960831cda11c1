"""Runs ensembles of Euler-Maruyama chains: chunks of paths over a pool of threads."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import resource_tracker
from types import FrameType
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from langevin import _kernels, _validate
from langevin._kernels import Data, Records, Rule
from langevin._layout import Layout, aligned_zeros
from langevin.observables import Watcher, own_class
from langevin.problem import Problem, Weights
from langevin.reduced import Reduction
from langevin.schedule import Grid, Phase, Schedule

_CLIPPING = {"flat": _kernels.FLAT, "normalised": _kernels.NORMALISED}
# a call into compiled code lasts about this long: the delay of an interruption
_CALL_SECONDS = 0.1
# states of a chunk take at most this, unless one path takes more
_CHUNK_BYTES = 2**25
# a cautious rate, to cut calls; nothing else depends on it
_FLOPS = 2e10


def available_threads() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def shielded() -> Iterator[None]:
    """Let no further signal interrupt what keeps the work of an interrupted run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Deferred:
    """Lets signals wait until they are answered, or the end, while what must not be cut short goes on."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Deferred:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number in self._received:
            signal.raise_signal(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received.append(number)

    @property
    def waiting(self) -> bool:
        """Whether a signal has come."""
        return bool(self._received)

    def answer(self) -> None:
        """Do what the signals that have come would have done."""
        while self._received:
            number = self._received.pop()
            signal.signal(number, self._before[number])
            try:
                signal.raise_signal(number)
            finally:
                signal.signal(number, self._receive)


@contextmanager
def deaf_children() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to all of a command's processes, from those that start here.

    Threads and processes inherit which signals are blocked where they start.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # which unblocks signals in the thread that starts it
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def one_blas_thread() -> threadpool_limits:
    """Keep BLAS on one thread: paths are what runs in parallel."""
    return threadpool_limits(1, user_api="blas")


@dataclass
class Chunk:
    """Consecutive paths, all at the same step."""

    first_path: int
    step: int
    thetas: np.ndarray  # (paths, size)
    complements: np.ndarray  # (paths, 2, processes) of what is not simulated, see `Reduction`

    @property
    def paths(self) -> slice:
        """The chunk's rows in the results."""
        return slice(self.first_path, self.first_path + len(self.thetas))


@dataclass
class Results:
    """Observables of an ensemble, NaN where not yet computed."""

    scalars: np.ndarray  # (paths, SCALARS, m)
    neurons: np.ndarray  # (paths, 3, m, h), or (paths, 3, 0, 0)
    watched: dict[str, np.ndarray]  # each (paths, m)
    diverged: np.ndarray  # (paths,): -1, or the step from which a path is not finite
    steps: np.ndarray  # (paths,): steps done

    @classmethod
    def empty(cls, paths: int, records: int, width: int, per_neuron: bool, watched: Sequence[str]) -> Results:
        """Results of which nothing is known yet."""
        neurons = (records, width) if per_neuron else (0, 0)
        return cls(
            np.full((paths, _kernels.SCALARS, records), np.nan),
            np.full((paths, _kernels.NEURON_ROWS, *neurons), np.nan),
            {name: np.full((paths, records), np.nan) for name in watched},
            np.full(paths, -1, np.int64),
            np.zeros(paths, np.int64),
        )

    def mark_overflows(self, record_steps: np.ndarray) -> None:
        """Take a path as diverged from the first record on at which one of its numbers is infinite."""
        infinite: np.ndarray = np.isinf(self.scalars).max(axis=1)
        for path in np.flatnonzero(infinite.any(axis=1)):
            first = int(np.argmax(infinite[path]))
            step = int(record_steps[first])
            if self.diverged[path] < 0 or step < self.diverged[path]:
                self.diverged[path] = step
            self.scalars[path, :, first:] = np.nan
            self.neurons[path, :, first:] = np.nan


@dataclass(frozen=True, eq=False)
class Chain:
    """What all paths of a run share: data, rules, records, noise.

    ``problem`` and ``weights`` are the user's, ``reduction`` is what is simulated in their place; ``key`` is
    the noise's; ``draws`` the number of draws a step; without ``noisy`` all noise is left out, which gives
    the zeroth-order approximation on the same grid, to the last bit.
    """

    problem: Problem
    weights: Weights
    schedule: Schedule
    grid: Grid
    reduction: Reduction
    layout: Layout
    data: Data
    records: Records
    key: tuple[int, int]
    draws: int = 1
    noisy: bool = True
    watchers: tuple[Watcher, ...] = ()

    @classmethod
    def build(
        cls,
        problem: Problem,
        weights: Weights,
        schedule: Schedule,
        grid: Grid,
        reduction: Reduction,
        dtype: type,
        key: tuple[int, int] = (0, 0),
        draws: int = 1,
        watchers: Sequence[Watcher] = (),
    ) -> Chain:
        """Bring a problem into the compiled code's form."""
        rows, inputs = reduction.W.shape
        layout = Layout(inputs, rows, dtype)
        X, y, span = reduction.problem.X, reduction.problem.y, reduction.span
        data = layout.data(
            X,
            y,
            activation=reduction.problem.activation,
            loss=problem.loss,
            features=X if reduction.frozen else None,
        )
        origin = aligned_zeros((layout.size,), dtype)
        layout.pack(reduction.W, reduction.v, origin)
        means, own, outside = np.zeros((2, inputs)), np.zeros(0), np.zeros(0)
        if reduction.neurons and problem.classification:
            own, outside = own_class(problem, weights.W), span.complement_norms(weights.W)
            for row, label in enumerate((-1.0, 1.0)):
                if (y == label).any():
                    means[row] = X[y == label].mean(axis=0)
        records = Records(
            grid.record_steps,
            origin,
            np.zeros((0, 0), dtype),
            own,
            means.astype(dtype),
            np.linalg.norm(means, axis=1),
            outside,
            reduction.hidden,
            _hidden_scale(schedule, grid, reduction.hidden_method),
        )
        return cls(
            problem,
            weights,
            schedule,
            grid,
            reduction,
            layout,
            data,
            records,
            key,
            draws,
            watchers=tuple(watchers),
        )

    def without_noise(self) -> Chain:
        """The zeroth-order approximation on the same grid."""
        return replace(self, noisy=False, records=self.records._replace(complement_dim=0))

    def with_reference(self, states: np.ndarray) -> Chain:
        """The same chain, recording the distance to ``states (m, size)``."""
        return replace(self, records=self.records._replace(reference=states))

    def rule(self, phase: Phase) -> Rule:
        """A phase in the compiled code's form."""
        number = self.layout.dtype
        if phase.clip is not None and number(phase.clip) == 0:
            raise ValueError(
                f"clip must be larger for this precision, got {phase.clip:g}: take precision='double'"
            )
        sigma = phase.sigma if self.noisy else 0.0
        return Rule(
            _kernels.LP if phase.method == "lp" else _kernels.FFT,
            _kernels.UNCLIPPED if phase.clip is None else _CLIPPING[phase.clipping],
            1.0 if phase.clip is None else phase.clip,
            phase.stabiliser,
            number(self.grid.dt),
            number(sigma * math.sqrt(2 * self.grid.dt / self.draws)),
            self.draws,
            self.reduction.folded if self.noisy else 0,
        )

    def start(self, first_path: int, paths: int) -> Chunk:
        """Paths at step 0."""
        thetas = aligned_zeros((paths, self.layout.size), self.layout.dtype)
        thetas[:] = self.records.origin
        return Chunk(first_path, 0, thetas, np.zeros((paths, 2, self.reduction.processes)))

    def scratch(self) -> _kernels.Scratch:
        """Work space for one thread."""
        # with or without noise, one compiled step loop for each kind of chain
        return self.layout.scratch(self.data, folds=self.reduction.name == "gram")

    def step_seconds(self) -> float:
        """Rough time of a step of one path, to cut work into calls."""
        samples, inputs = self.data.X.shape
        folding = 10 * (self.layout.inputs + 1) ** 3 if self.reduction.folded else 0
        # an activation that is called costs some 20 ns
        calls = 400 * samples * self.layout.width if self.data.phi else 0
        return (
            4 * samples * (inputs + 1) * self.layout.width + 50 * self.layout.size + folding + calls
        ) / _FLOPS + 1e-6

    def chunk_paths(self, paths: int, threads: int) -> int:
        """Paths a chunk: a call's worth, some chunks for each thread, and not too much memory."""
        a_call = int(_CALL_SECONDS / (self.step_seconds() * self.grid.steps))
        fitting = _CHUNK_BYTES // self.records.origin.nbytes
        return max(1, min(a_call, fitting, math.ceil(paths / (4 * threads))))

    def scratch_bytes(self) -> int:
        """Work space of a thread."""
        return sum(a.nbytes for a in self.scratch() if a is not None)

    def advance(self, chunk: Chunk, results: Results, scratch: _kernels.Scratch, stop: int) -> None:
        """Bring a chunk to step ``stop``, which no phase change lies before, and record on the way."""
        index = int(np.searchsorted(self.grid.phase_starts, chunk.step, side="right")) - 1
        self._call(chunk, results, scratch, stop, self.schedule.phases[index], stop == self.grid.steps)
        chunk.step = stop
        results.steps[chunk.paths] = stop

    def observe(self, chunk: Chunk, results: Results, scratch: _kernels.Scratch) -> None:
        """Record the chunk's states as they are, at the record of its step."""
        self._call(chunk, results, scratch, chunk.step, self.schedule.phases[0], True)
        self.watch(chunk, results)

    def _call(
        self, chunk: Chunk, results: Results, scratch: _kernels.Scratch, stop: int, phase: Phase, last: bool
    ) -> None:
        rows = chunk.paths
        advance = _kernels.advance_collapsed if self.reduction.name == "collapsed" else _kernels.advance
        advance(
            chunk.thetas,
            chunk.complements,
            results.diverged[rows],
            chunk.first_path,
            chunk.step,
            stop,
            last,
            np.uint64(self.key[0]),
            np.uint64(self.key[1]),
            self.data,
            self.rule(phase),
            scratch,
            self.records,
            results.scalars[rows],
            results.neurons[rows],
        )

    @property
    def place(self) -> str:
        """What it runs on: rounding differs elsewhere."""
        return "cpu"

    def states(self, chunk: Chunk) -> np.ndarray:
        """The chunk's states, brought to where they can be read."""
        return chunk.thetas

    def watch(self, chunk: Chunk, results: Results) -> None:
        """Evaluate the watchers if the chunk stands on a record."""
        r = int(np.searchsorted(self.records.steps, chunk.step))
        if not self.watchers or r == self.records.steps.size or self.records.steps[r] != chunk.step:
            return
        for p, theta in enumerate(self.states(chunk)):
            path = chunk.first_path + p
            if results.diverged[path] < 0:
                W, v = self.reduction.net(*self.layout.unpack(theta))
                # a path about to diverge says so by its outputs
                with np.errstate(over="ignore", invalid="ignore"):
                    for watcher in self.watchers:
                        results.watched[watcher.name][path, r] = watcher(W, v)

    def stops(self, step: int) -> int:
        """The next step at which a call starting at ``step`` has to return."""
        limits = [self.grid.steps, *(s for s in self.grid.phase_starts if s > step)]
        if self.watchers:
            limits += [int(s) for s in self.records.steps if s > step][:1]
        return min(limits)


def _hidden_scale(schedule: Schedule, grid: Grid, method: str) -> np.ndarray:
    """Standard deviation, over each record interval, of what moves by noise alone in such phases."""
    variance = np.zeros(len(grid.record_steps))
    for phase, first, steps in zip(schedule, grid.phase_starts, grid.phase_steps, strict=True):
        if phase.method == method:
            variance += 2 * phase.sigma**2 * grid.dt * np.clip(grid.record_steps - first, 0, steps)
    return np.sqrt(np.diff(variance, prepend=0.0))


def reference_path(chain: Chain) -> np.ndarray:
    """States of a noiseless chain at the record steps, shape (m, size)."""
    states = aligned_zeros((len(chain.grid.record_steps), chain.layout.size), chain.layout.dtype)
    chunk, scratch = chain.start(0, 1), chain.scratch()
    results = Results.empty(1, len(states), chain.layout.width, False, ())
    with one_blas_thread():
        for r, record in enumerate(chain.grid.record_steps):
            while chunk.step < record:
                chain.advance(chunk, results, scratch, min(int(record), chain.stops(chunk.step)))
            states[r] = chain.states(chunk)[0]
    return states


def run(
    chain: Chain,
    results: Results,
    unfinished: Sequence[Chunk],
    *,
    threads: int,
    on_progress: Callable[[int], None],
    on_pause: Callable[[Sequence[Chunk]], None],
    pause_seconds: float,
) -> list[Chunk]:
    """Run every path of ``results`` that is not yet at the end.

    Parameters
    ----------
    unfinished : sequence of Chunk
        Paths that were under way when a run was interrupted; all others start anew.
    on_progress : callable
        Told of every ``paths x steps`` done, from any thread.
    on_pause : callable
        Given the chunks in flight every ``pause_seconds``, with all threads at rest.

    Returns
    -------
    list of Chunk
        Empty, or the paths in flight when a KeyboardInterrupt stopped the run.
    """
    total = chain.grid.steps
    a_step = chain.step_seconds()
    waiting = [c for c in unfinished if c.step < total]
    under_way = {p for c in unfinished for p in range(c.paths.start, c.paths.stop)}
    new = [int(p) for p in np.flatnonzero(results.steps < total) if p not in under_way]
    fresh = [(g[0], len(g)) for g in _consecutive(new, chain.chunk_paths(len(results.steps), threads))]
    rest = threading.Event()
    scratches = threading.local()

    def work(chunk: Chunk) -> Chunk:
        if not hasattr(scratches, "one"):
            scratches.one = chain.scratch()
        steps = max(1, int(_CALL_SECONDS / (a_step * len(chunk.thetas))))
        while chunk.step < total:
            before = chunk.step
            chain.advance(chunk, results, scratches.one, min(before + steps, chain.stops(before)))
            chain.watch(chunk, results)
            on_progress((chunk.step - before) * len(chunk.thetas))
            # asked last, so that every turn gets somewhere
            if rest.is_set():
                break
        return chunk

    def next_chunk() -> Chunk | None:
        if waiting:
            return waiting.pop()
        if fresh:
            chunk = chain.start(*fresh.pop(0))
            chain.watch(chunk, results)
            return chunk
        return None

    def drain(running: set[Future[Chunk]]) -> None:
        rest.set()
        wait(running)
        waiting.extend(c for c in (f.result() for f in running) if c.step < total)
        rest.clear()

    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        running: set[Future[Chunk]] = set()
        paused = time.monotonic()
        try:
            while True:
                while len(running) < threads and (chunk := next_chunk()) is not None:
                    running.add(pool.submit(work, chunk))
                if not running:
                    return []
                done, running = wait(running, timeout=pause_seconds, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                if time.monotonic() - paused >= pause_seconds:
                    drain(running)
                    running = set()
                    on_pause(waiting)
                    paused = time.monotonic()
        except KeyboardInterrupt:
            rest.set()
            with shielded():
                drain(running)
            return waiting
        finally:
            # whatever ended it, the pool waits for its threads
            rest.set()


def _consecutive(paths: Sequence[int], size: int) -> list[list[int]]:
    """Cut sorted path indices into runs of consecutive ones, at most ``size`` long."""
    groups: list[list[int]] = []
    for path in paths:
        if groups and len(groups[-1]) < size and groups[-1][-1] + 1 == path:
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def ensemble_bytes(chain: Chain, paths: int, per_neuron: bool, threads: int) -> float:
    """Memory that a run holds at its peak."""
    records = len(chain.grid.record_steps)
    rows = _kernels.SCALARS + len(chain.watchers)
    results = paths * records * 8 * (rows + _kernels.NEURON_ROWS * chain.layout.width * per_neuron)
    itemsize = np.dtype(chain.layout.dtype).itemsize
    reference = records * chain.layout.size * itemsize
    states = chain.chunk_paths(paths, threads) * chain.layout.size * itemsize
    # and once more for the reference path, and for what it starts from
    in_flight = threads * states + (threads + 1) * chain.scratch_bytes()
    return 1.2 * results + reference + in_flight


def check_threads(threads: int | None) -> int:
    """Number of threads to use."""
    return available_threads() if threads is None else _validate.integer("threads", threads, 1)
