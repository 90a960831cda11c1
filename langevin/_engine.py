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

from langevin import _validate
from langevin._kernels import Records, Rule, Scratch
from langevin._layout import aligned_zeros
from langevin._observer import Observer
from langevin._results import Chunk, Results
from langevin._system import System
from langevin.reduced import Reduction, Request
from langevin.schedule import Grid, Phase, Schedule

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


@dataclass(frozen=True, eq=False)
class Chain(System):
    """What all paths of a run share: a system, its steps, records and noise.

    ``key`` is the noise's; ``draws`` the number of draws a step; without ``noisy`` all noise is left out,
    which gives the zeroth-order approximation on the same grid, to the last bit.
    """

    grid: Grid
    observer: Observer
    key: tuple[int, int]
    draws: int = 1
    noisy: bool = True

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
        scale = _hidden_scale(request.schedule, grid, reduction.hidden_method)
        records = observer.records._replace(complement_dim=reduction.hidden, complement_scale=scale)
        return cls(
            **vars(system), grid=grid, observer=replace(observer, records=records), key=key, draws=draws
        )

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

    def rule(self, phase: Phase) -> Rule:
        """A phase in the compiled code's form."""
        number = self.layout.dtype
        sigma = phase.sigma if self.noisy else 0.0
        return (
            super()
            .rule(phase)
            ._replace(
                dt=number(self.grid.dt),
                noise=number(sigma * math.sqrt(2 * self.grid.dt / self.draws)),
                draws=self.draws,
                folded=self.reduction.folded if self.noisy else 0,
            )
        )

    def step_seconds(self) -> float:
        """Rough time of a step of one path, to cut work into calls."""
        samples, inputs = self.data.X.shape
        folding = 10 * (self.layout.inputs + 1) ** 3 if self.reduction.folded else 0
        # an activation that is called costs some 20 ns
        calls = 400 * samples * self.layout.width if self.data.phi else 0
        return (
            4 * samples * (inputs + 1) * self.layout.width + 50 * self.layout.size + folding + calls
        ) / _FLOPS + 1e-6

    def steps_a_call(self, paths: int) -> int:
        """Steps of so many paths that a call into compiled code takes."""
        return max(1, int(_CALL_SECONDS / (self.step_seconds() * paths)))

    def chunk_paths(self, paths: int, threads: int) -> int:
        """Paths a chunk: a call's worth, some chunks for each thread, and not too much memory."""
        a_call = int(_CALL_SECONDS / (self.step_seconds() * self.grid.steps))
        fitting = _CHUNK_BYTES // self.origin.nbytes
        return max(1, min(a_call, fitting, math.ceil(paths / (4 * threads))))

    def advance(self, chunk: Chunk, results: Results, scratch: Scratch, stop: int) -> None:
        """Bring a chunk to step ``stop``, which no phase change lies before, and record on the way."""
        rows = chunk.paths
        phase = int(np.searchsorted(self.grid.phase_starts, chunk.step, side="right")) - 1
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
            self.data,
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
        """What it runs on: rounding differs elsewhere."""
        return "cpu"

    def states(self, chunk: Chunk) -> np.ndarray:
        """The chunk's states, brought to where they can be read."""
        return chunk.thetas

    def watch(self, chunk: Chunk, results: Results) -> None:
        """Evaluate the watchers if the chunk stands on a record."""
        r = self.observer.record_at(chunk.step)
        if self.observer.watchers and r is not None:
            self.observer.watch(r, chunk.first_path, self.states(chunk), results)

    def stops(self, step: int) -> int:
        """The next step at which a call starting at ``step`` has to return."""
        limits = [self.grid.steps, *(s for s in self.grid.phase_starts if s > step)]
        if self.observer.watchers:
            limits += [int(s) for s in self.records.steps if s > step][:1]
        return min(limits)


def _hidden_scale(schedule: Schedule, grid: Grid, method: str) -> np.ndarray:
    """Standard deviation, over each record interval, of what moves by noise alone in such phases."""
    variance = np.zeros(len(grid.record_steps))
    for phase, first, steps in zip(schedule, grid.phase_starts, grid.phase_steps, strict=True):
        if phase.method == method:
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
    results = Results.empty(1, len(states), chain.layout.width, False, ())
    with one_blas_thread():
        # the states come first: nothing runs beyond the last record
        for state, theta in zip(states, follow(chain, results), strict=False):
            state[:] = theta
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
    queue = _Queue(chain, results, unfinished, threads, on_progress)
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        running: set[Future[Chunk]] = set()
        paused = time.monotonic()
        try:
            while True:
                while len(running) < threads and (chunk := queue.pop()) is not None:
                    running.add(pool.submit(queue.work, chunk))
                if not running:
                    return []
                done, running = wait(running, timeout=pause_seconds, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                if time.monotonic() - paused >= pause_seconds:
                    queue.drain(running)
                    running = set()
                    on_pause(queue.waiting)
                    paused = time.monotonic()
        except KeyboardInterrupt:
            queue.rest.set()
            with shielded():
                queue.drain(running)
            return queue.waiting
        finally:
            # whatever ended it, the pool waits for its threads
            queue.rest.set()


class _Queue:
    """Chunks that wait for a thread, and what a thread does with one.

    Attributes
    ----------
    waiting : list of Chunk
        Those under way; all others have not started.
    rest : Event
        Asks threads to stop after the present call.
    """

    def __init__(
        self,
        chain: Chain,
        results: Results,
        unfinished: Sequence[Chunk],
        threads: int,
        on_progress: Callable[[int], None],
    ) -> None:
        self._chain, self._results, self._on_progress = chain, results, on_progress
        self.waiting = [c for c in unfinished if c.step < chain.grid.steps]
        under_way = {p for c in unfinished for p in range(c.paths.start, c.paths.stop)}
        new = [int(p) for p in np.flatnonzero(results.steps < chain.grid.steps) if p not in under_way]
        self._fresh = _consecutive(new, chain.chunk_paths(len(results.steps), threads))
        self.rest, self._scratches = threading.Event(), threading.local()

    def pop(self) -> Chunk | None:
        """Take a chunk that is under way, or start one."""
        if self.waiting:
            return self.waiting.pop()
        if not self._fresh:
            return None
        paths = self._fresh.pop(0)
        chunk = self._chain.start(paths[0], len(paths))
        self._chain.watch(chunk, self._results)
        return chunk

    def work(self, chunk: Chunk) -> Chunk:
        """Bring a chunk to its end, or to where threads are asked to rest."""
        chain = self._chain
        if not hasattr(self._scratches, "one"):
            self._scratches.one = chain.scratch()
        steps = chain.steps_a_call(len(chunk.thetas))
        while chunk.step < chain.grid.steps:
            before = chunk.step
            stop = min(before + steps, chain.stops(before))
            chain.advance(chunk, self._results, self._scratches.one, stop)
            chain.watch(chunk, self._results)
            self._on_progress((chunk.step - before) * len(chunk.thetas))
            # asked last, so that every turn gets somewhere
            if self.rest.is_set():
                break
        return chunk

    def drain(self, running: set[Future[Chunk]]) -> None:
        """Wait until all threads rest, and take back their chunks."""
        self.rest.set()
        wait(running)
        self.waiting.extend(c for c in (f.result() for f in running) if c.step < self._chain.grid.steps)
        self.rest.clear()


def _consecutive(paths: Sequence[int], size: int) -> list[list[int]]:
    """Cut sorted path indices into runs of consecutive ones, at most ``size`` long."""
    groups: list[list[int]] = []
    for path in paths:
        if groups and len(groups[-1]) < size and groups[-1][-1] + 1 == path:
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups


def check_threads(threads: int | None) -> int:
    """Number of threads to use."""
    return available_threads() if threads is None else _validate.integer("threads", threads, 1)
