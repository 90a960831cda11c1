"""Computes the cells of a sweep on Dask: this process alone talks to the store."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin import _install, _validate
from langevin._engine import Deferred, available_threads, deaf_children, one_blas_thread, shielded
from langevin._record import versions
from langevin._spawn import require_importable_main
from langevin.sweeps import store
from langevin.sweeps.grid import Grid
from langevin.sweeps.store import Outcome, Place, SweepStore
from langevin.sweeps.workers import Batch, Task, compute

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client, Future, LocalCluster

# a task takes about so long, unless one cell takes longer
_TASK_SECONDS = 0.5
# and has at most so many cells, and so many bytes of results
_TASK_CELLS, _TASK_BYTES = 1000, 2**24
# share of the time of this process that may go into writing, where there is more to do
_WRITING = 0.1
# how often workers are counted
_COUNT_SECONDS = 5.0

_GONE = "the scheduler is gone, and with it what was under way; what is finished is kept"

Progress = Callable[[int, int], None]


class SweepError(Exception):
    """The sweep cannot go on: the scheduler is gone, or workers cannot compute cells."""


def run_sweep(
    grid: Grid,
    out: str | Path,
    *,
    workers: int | None = None,
    threads: bool = False,
    scheduler: str | None = None,
    progress: Progress | None = None,
    dashboard: Callable[[str], None] | None = None,
) -> xr.Dataset:
    """Compute what is left of a sweep, and return it from its store.

    A cell is computed once: the same call goes on where it was, and a grid with more values computes what is
    new. Cells that failed are recorded with their error, do not stop the others, and are tried again by the
    next call. Results depend neither on the number nor on the kind of workers, nor on interruptions.

    Parameters
    ----------
    grid : Grid
    out : path
        Store, ending in ``.zarr``; new, or of this grid or a smaller one.
    workers : int, optional
        Here, one thread each; by default as many as there are processors.
    threads : bool
        Threads of this process in place of processes, which import the script that starts them: it must be a
        file, and call this under ``if __name__ == "__main__":``.
    scheduler : str, optional
        Address of Dask's scheduler, such as ``tcp://10.0.0.1:8786``, whose workers compute. They need the
        same packages, and the files that the grid names at the same paths; the store they do not need.
    progress : callable, optional
        Called with the number of cells done and of all.
    dashboard : callable, optional
        Called with the address of Dask's dashboard.

    Returns
    -------
    xarray.Dataset
        Lazily from the store. Over the swept parameters, and within a cell over time and the like: what was
        recorded; ``status``, 1 where finished, 2 where failed; and ``error``.

    Raises
    ------
    StoreError
        If the store is in use, of another sweep, damaged, cannot be written, or has no room.
    MemoryError
        If a cell for each worker does not fit into memory.
    SweepError
        If the scheduler or all its results are lost; what is finished is kept.
    ValueError, TypeError
        On bad arguments; also where worker processes could not import the script that calls this.

    Examples
    --------
    >>> import tempfile
    >>> from langevin.sweeps import SIMULATIONS
    >>> fixed = {"samples": 8, "dim": 3, "width": 8, "time": 0.1, "dt": 0.01, "paths": 2}
    >>> grid = Grid(SIMULATIONS, {"sigma": [0.0, 0.5], "seed": {"count": 3}}, fixed)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = run_sweep(grid, f"{folder}/sweep.zarr", workers=1, threads=True).load()
    >>> dict(run.loss.sizes), (run.status == 1).all().item()
    ({'sigma': 2, 'seed': 3, 'time': 11}, True)
    """
    import xarray as xr

    if scheduler is not None and (workers is not None or threads):
        raise ValueError(
            f"scheduler must be left out with workers or threads, got {scheduler!r}: it has its own"
        )
    count = available_threads() if workers is None else _validate.integer("workers", workers, 1)
    with contextlib.closing(SweepStore(out, grid)) as kept:
        left = kept.left()
        store.require_room(kept.path, len(left), kept.layout)
        if len(left):
            if scheduler is None and not threads:
                require_importable_main("take threads=True")
            needed = max(kept.grid.kind.memory(v, kept.grid.record) for v in kept.grid.combinations())
            if scheduler is None:
                _validate.memory(
                    count * needed,
                    f"a cell for each of {count} workers",
                    "take fewer workers, or record less of each cell",
                )
            with _logging_kept(), one_blas_thread(), _client(count, threads, scheduler) as client:
                if dashboard is not None and client.dashboard_link:
                    dashboard(client.dashboard_link)
                _Sweep(kept, client, left, progress).work()
        path = kept.path
    return xr.open_zarr(path, chunks=None, consolidated=False)


class _Sweep:
    """Sends batches to workers, a few ahead of them, and writes what comes back."""

    def __init__(self, kept: SweepStore, client: Client, left: np.ndarray, progress: Progress | None) -> None:
        grid = kept.grid
        self.kept, self.client, self.progress = kept, client, progress
        self.left = left
        self.next = 0
        self.axes = list(grid.sweep.values())
        self.task = Task(
            grid.kind,
            grid.record,
            kept.layout,
            grid.values([0] * len(grid.sweep)),
            tuple(grid.sweep),
            kept.path.resolve(),
            versions(*grid.kind.packages),
        )
        self.running: dict[Future, Batch] = {}
        self.arrived: queue.SimpleQueue[Future] = queue.SimpleQueue()
        # cells whose worker died, to be tried once more, alone in their task
        self.again: deque[Place] = deque()
        self.suspects: set[Place] = set()
        self.pending: dict[Place, Outcome] = {}
        self.done = grid.cells - len(left)
        self.cell_seconds: float | None = None
        self.write_seconds = 0.0
        self.written = self.counted = -math.inf
        self.workers = 1

    def work(self) -> None:
        """Compute all cells that are left."""
        try:
            while self._submit() or self.running:
                self._receive()
            self._write()
        except BaseException:
            with shielded():
                self._abandon()
            raise

    def _submit(self) -> bool:
        """Keep two tasks for each worker on their way; whether there are any."""
        if time.monotonic() - self.counted > _COUNT_SECONDS:
            self.workers = max(1, sum(self._ask(self.client.nthreads).values()))
            self.counted = time.monotonic()
        while len(self.running) < 2 * self.workers:
            places = self._take()
            if not places:
                break
            swept = [tuple(a[i] for a, i in zip(self.axes, place, strict=True)) for place in places]
            batch = Batch(self.task, places, swept)
            future = self.client.submit(compute, batch, pure=False)
            self.running[future] = batch
            future.add_done_callback(self.arrived.put)
        return bool(self.running)

    def _take(self) -> list[Place]:
        if self.again:
            return [self.again.popleft()]
        size = 1
        if self.cell_seconds is not None:
            fair = math.ceil((len(self.left) - self.next) / (2 * self.workers))
            small = _TASK_BYTES // max(1, self.kept.layout.cell_bytes)
            timely = int(_TASK_SECONDS / max(self.cell_seconds, 1e-9))
            size = max(1, min(fair, small, timely, _TASK_CELLS))
        some = self.left[self.next : self.next + size]
        self.next += len(some)
        places = np.transpose(np.unravel_index(some, self.kept.grid.shape))
        return [tuple(place) for place in places.tolist()]

    def _receive(self) -> None:
        """Wait for results, and write those that have waited long enough."""
        due = self.written + self.write_seconds / _WRITING
        wait = max(0.0, due - time.monotonic()) if self.pending else _COUNT_SECONDS
        futures = []
        with contextlib.suppress(queue.Empty):
            futures.append(self.arrived.get(timeout=wait))
            while True:
                futures.append(self.arrived.get_nowait())
        self._collect(futures)
        if self.pending and time.monotonic() >= due:
            self._write()

    def _collect(self, futures: list[Future]) -> None:
        from distributed import KilledWorker

        finished = {future.key: future for future in futures if future.status == "finished"}
        # a result whose worker dies now is computed again, which may fail
        results = self._ask(lambda: self.client.gather(finished, errors="skip")) if finished else {}
        for future in futures:
            batch = self.running.pop(future)
            found = results.get(future.key)
            if found is not None:
                outcomes, seconds = found
                self._keep(batch, outcomes)
                one = seconds / len(outcomes)
                self.cell_seconds = one if self.cell_seconds is None else 0.5 * (self.cell_seconds + one)
            elif future.status == "error":
                error = self._ask(future.exception)
                if not isinstance(error, KilledWorker):
                    raise SweepError(
                        f"workers cannot compute cells: {type(error).__name__}: {error}"
                    ) from error
                self._suspect(batch)
            elif future.status == "cancelled":
                raise SweepError(_GONE)
            else:
                # the worker that had the result died
                self.again.extend(batch.places)

    def _suspect(self, batch: Batch) -> None:
        """Try the cells of a worker that died once more, one by one: one may have taken the others along."""
        for place in batch.places:
            if place in self.suspects:
                self._keep(
                    Batch(self.task, [place], []), [({}, "its process died: killed, or out of memory")]
                )
            else:
                self.suspects.add(place)
                self.again.append(place)

    def _keep(self, batch: Batch, outcomes: list[Outcome]) -> None:
        self.pending.update(zip(batch.places, outcomes, strict=True))
        self.done += len(outcomes)
        if self.progress is not None:
            self.progress(self.done, self.kept.grid.cells)

    def _write(self) -> None:
        begun = time.monotonic()
        written, self.pending = self.pending, {}
        with Deferred():
            self.kept.write(written)
        self.written = time.monotonic()
        self.write_seconds = self.written - begun

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Ask the scheduler, which may be gone."""
        from concurrent.futures import CancelledError

        try:
            return question()
        except (CancelledError, OSError, TimeoutError) as error:
            raise SweepError(f"{_GONE} ({error})") from error

    def _abandon(self) -> None:
        """Keep what has arrived, and let the scheduler forget the rest."""
        with contextlib.suppress(store.StoreError):
            self._write()
        with contextlib.suppress(Exception):
            self.client.cancel(list(self.running), force=True)


@contextlib.contextmanager
def _logging_kept() -> Iterator[None]:
    """Leave logging as it was: Dask sets up its own once it is imported, and more for each cluster."""
    before = {name: (log.level, list(log.handlers), log.propagate) for name, log in _loggers().items()}
    try:
        yield
    finally:
        for name, log in _loggers().items():
            level, handlers, log.propagate = before.get(name, (logging.NOTSET, [], True))
            log.setLevel(level)
            log.handlers[:] = handlers


@contextlib.contextmanager
def _logging_from(level: int) -> Iterator[None]:
    """Hear from Dask of this level and above: where others have handlers, it would tell all that it does."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(max(before, level))
    try:
        yield
    finally:
        log.setLevel(before)


def _loggers() -> dict[str, logging.Logger]:
    """The root logger, and all of Dask's and of what it uses."""
    return {"": logging.root} | {
        name: log
        for name, log in logging.root.manager.loggerDict.items()
        if isinstance(log, logging.Logger) and name.partition(".")[0] in ("bokeh", "distributed", "tornado")
    }


@contextlib.contextmanager
def _client(count: int, threads: bool, scheduler: str | None) -> Iterator[Client]:
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(f"sweeps need Dask, which is not installed: {_install.command('sweep')}") from None
    cluster = None
    with _logging_from(logging.WARNING):
        try:
            if scheduler is None:
                # half a cluster cannot be closed; what keeps it from starting is raised
                with Deferred(), deaf_children(), _logging_from(logging.CRITICAL):
                    cluster = _cluster(count, threads)
            try:
                client = Client(scheduler if cluster is None else cluster, set_as_default=False)
            except (OSError, ValueError) as error:
                raise SweepError(f"scheduler {scheduler} cannot be reached: {error}") from error
            try:
                yield client
            finally:
                with shielded():
                    client.close()
        finally:
            if cluster is not None:
                with shielded():
                    cluster.close()


def _cluster(count: int, threads: bool) -> LocalCluster:
    from dask import config
    from distributed import LocalCluster

    # a worker that dies again while it is started anew would be given up after so long
    config.set({"distributed.deploy.lost-worker-timeout": "365 days"})
    try:
        # nothing listens beyond this machine; a port that is free
        return LocalCluster(
            n_workers=1 if threads else count,
            threads_per_worker=count if threads else 1,
            processes=not threads,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
            memory_limit=0 if threads else "auto",
        )
    except RuntimeError as error:
        raise SweepError(f"workers could not be started: {error.__cause__ or error}") from error
