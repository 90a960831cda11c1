"""Independent jobs, computed in this process or by Dask's workers: the engine of every grid.

A job that fails or kills its process does not stop the others. Who receives the results stores them.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import queue
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from threadpoolctl import threadpool_limits

from langevin.engine.record import versions
from langevin.support.signals import shielded
from langevin.support.spawn import require_importable_main
from langevin.support.threads import one_blas_thread
from langevin.sweeps import cluster
from langevin.sweeps.cluster import SweepError

if TYPE_CHECKING:
    from distributed import Client, Future

# of a job: its results by name, and its error if they are missing or incomplete
Outcome = tuple[dict[str, Any], str | None]
# a key, and the argument of the work
Job = tuple[Any, Any]
Finished = list[tuple[Any, Outcome]]
Results = Generator[Finished, None, None]
Late = Callable[[], bool]

DIED = "its process died: killed, or out of memory"
_GONE = "the scheduler is gone, and with it all unfinished work; finished work is kept"
# duration of a task, unless a single job takes longer
_TASK_SECONDS = 0.5
# most bytes of its results
_TASK_BYTES = 2**24
# time between two counts of the workers, and longest wait for results
_COUNT_SECONDS, _WAIT_SECONDS = 5.0, 0.2
# characters of an error message
_LONGEST = 2000


@dataclass(frozen=True)
class Jobs:
    """What to compute: ``work`` of each argument. Work that raises an exception has failed."""

    work: Callable[[Any], Outcome]  # importable by workers
    left: Iterable[Job]  # in the order of their start; all keys differ
    count: int
    together: int = 1  # most jobs of a task, whose results arrive together
    nbytes: int = 8  # of a job's results
    packages: tuple[str, ...] = ()  # whose versions affect the results


class Pool:
    """Where jobs are computed. Workers start with the first job and end with the context.

    Parameters
    ----------
    workers : int or None
        Workers on this machine with one thread each; None: this process, without Dask.
    threads : bool
        Workers are threads of this process instead of processes.
    scheduler : str, optional
        Address of a Dask scheduler whose workers replace those on this machine.
    dashboard : callable, optional
        Called with the address of Dask's dashboard.
    instead : str
        How to do without worker processes, for error messages.
    """

    def __init__(
        self,
        workers: int | None,
        *,
        threads: bool = False,
        scheduler: str | None = None,
        dashboard: Callable[[str], None] | None = None,
        instead: str = "pass threads=True",
    ) -> None:
        self._here = workers is None and scheduler is None
        self._how = (workers or 0, threads, scheduler)
        self._dashboard, self._instead = dashboard, instead
        self._open = contextlib.ExitStack()
        self._client: Client | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)

    def run(self, jobs: Jobs, late: Late | None = None) -> contextlib.closing[Results]:
        """Iterate over lists of finished jobs as they arrive; a list may be empty.

        Parameters
        ----------
        jobs : Jobs
        late : callable, optional
            No job starts once it returns True.

        Raises
        ------
        SweepError
            If the scheduler is lost, or workers cannot compute jobs.
        ValueError
            If worker processes cannot import the calling script.
        """
        if self._here or not jobs.count:
            return contextlib.closing(_compute_here(jobs, late))
        return contextlib.closing(_Dispatcher(self._started(), jobs, late).results())

    def _started(self) -> Client:
        if self._client is None:
            _, threads, scheduler = self._how
            if scheduler is None and not threads:
                require_importable_main(self._instead)
            self._open.enter_context(cluster.logging_kept())
            self._open.enter_context(one_blas_thread())
            self._client = self._open.enter_context(cluster.client(*self._how))
            if self._dashboard is not None and self._client.dashboard_link:
                self._dashboard(self._client.dashboard_link)
        return self._client


# --- on a worker -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Jobs that are sent as one task."""

    work: Callable[[Any], Outcome]
    arguments: list[Any]
    packages: tuple[str, ...]
    versions: dict[str, str]  # of these and of what all results depend on


def compute(batch: Batch) -> tuple[list[Outcome], float]:
    """Compute jobs one after the other, with one BLAS thread; also return the seconds that it took."""
    begun = time.perf_counter()
    here = versions(*batch.packages)
    for name, version in batch.versions.items():
        if here[name] != version:
            raise RuntimeError(f"a worker has {name} {here[name]}, not {version}: install that there")
    # not undone, as other threads of this process may compute jobs by then
    threadpool_limits(1, user_api="blas")
    return [_attempt(batch.work, argument) for argument in batch.arguments], time.perf_counter() - begun


def _attempt(work: Callable[[Any], Outcome], argument: Any) -> Outcome:
    try:
        found, error = work(argument)
    except Exception as failure:  # any failure; the other jobs continue
        found, error = {}, f"{type(failure).__name__}: {failure}"
    return found, None if error is None else error[:_LONGEST]


def _compute_here(jobs: Jobs, late: Late | None) -> Results:
    for key, argument in jobs.left:
        if late is not None and late():
            return
        with one_blas_thread():
            outcome = _attempt(jobs.work, argument)
        yield [(key, outcome)]


# --- with Dask -------------------------------------------------------------------------------


class _Dispatcher:
    """Sends batches of jobs to Dask's workers, a few ahead of them, and receives the results."""

    def __init__(self, client: Client, jobs: Jobs, late: Late | None) -> None:
        self.client, self.jobs, self.late = client, jobs, late
        self.unsent, self.left = jobs.count, iter(jobs.left)
        self.versions = versions(*jobs.packages)
        self.running: dict[Future, list[Job]] = {}
        self.arrived: queue.SimpleQueue[Future] = queue.SimpleQueue()
        # jobs whose worker died, to be repeated alone in their task
        self.again: deque[Job] = deque()
        self.suspects: set[Any] = set()
        self.job_seconds: float | None = None
        self.counted, self.workers = -math.inf, 1

    def results(self) -> Results:
        try:
            while self._submit():
                yield self._receive()
        except BaseException:
            with shielded(), contextlib.suppress(Exception):
                self.client.cancel(list(self.running), force=True)
            raise

    def _submit(self) -> bool:
        """Keep tasks ahead of each worker; return whether any are running."""
        if time.monotonic() - self.counted > _COUNT_SECONDS:
            self.workers = max(1, sum(self._ask(self.client.nthreads).values()))
            self.counted = time.monotonic()
        # a task that waits behind another might start late
        ahead = self.workers * (2 if self.late is None else 1)
        while len(self.running) < ahead and not (self.late is not None and self.late()):
            some = self._take()
            if not some:
                break
            arguments = [argument for _, argument in some]
            batch = Batch(self.jobs.work, arguments, self.jobs.packages, self.versions)
            future = self.client.submit(compute, batch, pure=False)
            self.running[future] = some
            future.add_done_callback(self.arrived.put)
        return bool(self.running)

    def _take(self) -> list[Job]:
        if self.again:
            return [self.again.popleft()]
        size = 1
        if self.job_seconds is not None:
            fair = math.ceil(self.unsent / (2 * self.workers))
            small = _TASK_BYTES // max(1, self.jobs.nbytes)
            timely = int(_TASK_SECONDS / max(self.job_seconds, 1e-9))
            size = max(1, min(fair, small, timely, self.jobs.together))
        some = list(itertools.islice(self.left, size))
        self.unsent -= len(some)
        return some

    def _receive(self) -> Finished:
        futures = []
        with contextlib.suppress(queue.Empty):
            futures.append(self.arrived.get(timeout=_WAIT_SECONDS))
            while True:
                futures.append(self.arrived.get_nowait())
        finished = {future.key: future for future in futures if future.status == "finished"}
        # a result whose worker dies now is computed again, which may fail
        results = self._ask(lambda: self.client.gather(finished, errors="skip")) if finished else {}
        # failures wait, as they may end all, until what has arrived is stored
        first = [future for future in futures if future.key in results] or futures
        for future in futures:
            if future not in first:
                self.arrived.put(future)
        return [one for future in first for one in self._outcomes(future, results.get(future.key))]

    def _outcomes(self, future: Future, result: tuple[list[Outcome], float] | None) -> Finished:
        from distributed import KilledWorker

        batch = self.running.pop(future)
        if result is not None:
            outcomes, seconds = result
            one = seconds / len(outcomes)
            self.job_seconds = one if self.job_seconds is None else 0.5 * (self.job_seconds + one)
            return [(key, outcome) for (key, _), outcome in zip(batch, outcomes, strict=True)]
        if future.status == "cancelled":
            raise SweepError(_GONE)
        if future.status != "error":
            # the worker that held the result died
            self.again.extend(batch)
            return []
        error = self._ask(future.exception)
        if not isinstance(error, KilledWorker):
            raise SweepError(f"workers cannot compute jobs: {type(error).__name__}: {error}") from error
        # repeated alone, as one job may have killed the process of all
        self.again.extend(job for job in batch if job[0] not in self.suspects)
        dead: Finished = [(key, ({}, DIED)) for key, _ in batch if key in self.suspects]
        self.suspects.update(key for key, _ in batch)
        return dead

    def _ask(self, question: Callable[[], Any]) -> Any:
        """Ask the scheduler, which may be gone."""
        from concurrent.futures import CancelledError

        try:
            return question()
        except (CancelledError, OSError, TimeoutError) as error:
            raise SweepError(f"{_GONE} ({error})") from error
