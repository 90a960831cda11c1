"""Chunks of paths on a pool of threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import numpy as np

from langevin.engine.chain import Chain
from langevin.engine.results import Chunk, Results
from langevin.support.signals import shielded
from langevin.support.threads import one_blas_thread

T = TypeVar("T")
R = TypeVar("R")


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
        Paths that were in progress when a run was interrupted; all others start again.
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


def each(work: Callable[[T, threading.Event], R], items: Sequence[T], threads: int) -> list[R]:
    """Call ``work`` on every item, on a pool of threads.

    Once its event is set, after an error or a KeyboardInterrupt, ``work`` should return soon: what it returns
    is no longer used.
    """
    rest = threading.Event()
    with one_blas_thread(), ThreadPoolExecutor(threads) as pool:
        running = [pool.submit(work, item, rest) for item in items]
        try:
            return [future.result() for future in running]
        finally:
            rest.set()
            for future in running:
                future.cancel()


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
    """Split sorted path indices into runs of consecutive indices, at most ``size`` long."""
    groups: list[list[int]] = []
    for path in paths:
        if groups and len(groups[-1]) < size and groups[-1][-1] + 1 == path:
            groups[-1].append(path)
        else:
            groups.append([path])
    return groups
