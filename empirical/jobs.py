"""Cells of a grid, computed in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from empirical.recipe import Recipe
from empirical.records import Cell
from empirical.setting import Setting
from langevin._engine import deaf_children
from langevin._spawn import require_importable_main

# measures, or the error that there was instead
Outcome = dict[str, float] | str
Compute = Callable[[Setting, Recipe, int], dict[str, float]]


def outcomes(
    cells: Iterable[Cell], compute: Compute, *, workers: int, late: Callable[[], bool]
) -> Iterator[tuple[Cell, Outcome]]:
    """Compute cells, each independently of the others; none is started once it is ``late``.

    Parameters
    ----------
    cells : iterable of Cell
        Begun in this order; they may end in another.
    compute : callable
        Importable, where there are several workers.
    workers : int
        Processes; 1: this one.
    late : callable

    Yields
    ------
    tuple of Cell and (dict or str)

    Raises
    ------
    ValueError
        If several workers could not import the script that calls this.
    """
    queue = deque(cells)
    if workers > 1:
        require_importable_main("take workers=1")
    if workers == 1:
        while queue and not late():
            cell = queue.popleft()
            yield cell, _attempt(compute, cell)
    while queue and not late():
        died = []
        for cell, outcome in _session(queue, compute, workers, late):
            if outcome is None:
                died.append(cell)
            else:
                yield cell, outcome
        # alone, so that a cell that kills its process does not take others with it
        for cell in died:
            for _, outcome in _session(deque([cell]), compute, 1, lambda: False):
                yield cell, outcome or "its process died: killed, or out of memory"


def _session(
    queue: deque[Cell], compute: Compute, workers: int, late: Callable[[], bool]
) -> Iterator[tuple[Cell, Outcome | None]]:
    """Work on a queue until it is empty, or late, or a process died: then None for all that were at work."""
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start)
    running: dict[Future[Outcome], Cell] = {}
    alive = True
    try:
        while True:
            while alive and queue and len(running) < workers and not late():
                cell = queue.popleft()
                try:
                    # until it can end without a traceback, a worker hears of no interrupt on the terminal
                    with deaf_children():
                        running[pool.submit(_attempt, compute, cell)] = cell
                except BrokenProcessPool:
                    queue.appendleft(cell)
                    alive = False
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                try:
                    outcome = future.result()
                except BrokenProcessPool:
                    alive, outcome = False, None
                yield cell, outcome
    finally:
        pool.shutdown(wait=alive and not running, cancel_futures=True)


def _start() -> None:
    # an interrupt on the terminal ends a worker without a traceback of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Leave no worker behind where the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _attempt(compute: Compute, cell: Cell) -> Outcome:
    try:
        return compute(cell.setting, cell.recipe, cell.seed)
    except Exception as error:  # whatever it is, the other cells go on
        return f"{type(error).__name__}: {error}"
