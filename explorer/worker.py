"""Computation on threads next to the server: the newest request counts, stale ones are dropped."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from explorer import limits
from explorer.views import DELTA, Views, draw
from langevin.simulation.config import Simulation
from langevin.support.threads import available_threads

# views that are kept for the next tab
_KEPT = 24

log = logging.getLogger(__name__)


class Request(NamedTuple):
    """What to show: a simulation, with the noise that a budget allows if one is given."""

    simulation: Simulation
    epsilon: float | None = None


class Answer(NamedTuple):
    """Views, or why there are none; ``last`` if no more is to come for this request."""

    simulation: Simulation
    views: Views | None
    failure: str
    last: bool


class Drawing(NamedTuple):
    """Which views: of a simulation, with few paths or all, of a file as it was last written."""

    simulation: Simulation
    quick: bool
    written: int


def drawing(simulation: Simulation, quick: bool) -> Drawing:
    """Name the views of a simulation, by the file's present version if it reads one."""
    written = 0
    if simulation.is_file:
        try:
            written = os.stat(simulation.data).st_mtime_ns
        except OSError:
            # the simulation says what is wrong with it
            written = -1
    return Drawing(simulation, quick, written)


@dataclass(eq=False)
class Workshop:
    """The threads of all sessions, and the views that were drawn last."""

    pool: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(max(2, available_threads()), "explorer")
    )
    _drawn: OrderedDict[Drawing, Future[Views]] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def known(self, simulation: Simulation, quick: bool = False) -> Views | None:
        """Return views that are kept; of a file, those of its present version."""
        key = drawing(simulation, quick)
        with self._lock:
            found = self._drawn.get(key)
            if found is None or not found.done():
                return None
            self._drawn.move_to_end(key)
            return found.result()

    def draw(self, simulation: Simulation, quick: bool) -> Views:
        """Return the views of a simulation: kept ones, those that another thread draws, or drawn here."""
        key, mine = drawing(simulation, quick), Future[Views]()
        with self._lock:
            found = self._drawn.setdefault(key, mine)
            self._drawn.move_to_end(key)
        if found is mine:
            try:
                views = draw(simulation, quick=quick)
            except BaseException as error:
                # at once, so that no other thread finds a failure
                with self._lock:
                    del self._drawn[key]
                    mine.set_exception(error)
            else:
                with self._lock:
                    mine.set_result(views)
                    self._forget()
        return found.result()

    def _forget(self) -> None:
        """Forget the oldest of what is done."""
        done = [key for key, task in self._drawn.items() if task.done()]
        for key in done[:-_KEPT]:
            del self._drawn[key]


class Newest:
    """The requests of one session: while one is computed, only the newest of the others waits.

    Parameters
    ----------
    workshop : Workshop
    deliver : callable
        Takes each `Answer`, on a thread of the workshop. A picture of few paths comes first, the rest after;
        once there is a newer request, no further answer to the old one is computed or delivered.
    """

    def __init__(self, workshop: Workshop, deliver: Callable[[Answer], None]) -> None:
        self._workshop, self._deliver = workshop, deliver
        self._lock = threading.Lock()
        self._waiting: Request | None = None
        self._busy = self._closed = False

    def ask(self, request: Request) -> None:
        """Compute a request as soon as possible, in place of all earlier ones."""
        with self._lock:
            self._waiting = request
            if self._busy or self._closed:
                return
            self._busy = True
        self._workshop.pool.submit(self._work)

    def close(self) -> None:
        """Drop everything."""
        with self._lock:
            self._closed, self._waiting = True, None

    def _work(self) -> None:
        while True:
            with self._lock:
                request, self._waiting = self._waiting, None
                if request is None:
                    self._busy = False
                    return
            try:
                self._answer(request)
            except Exception:
                # what cannot be delivered must not stop the next request
                log.exception("an answer was not delivered")

    def _answer(self, request: Request) -> None:
        for answer in self._answers(request):
            if self._stale():
                return
            self._deliver(answer)

    def _answers(self, request: Request) -> Iterator[Answer]:
        """Yield a picture of few paths and one of all, or why there is none."""
        simulation = request.simulation
        try:
            if request.epsilon is not None:
                simulation = limits.with_epsilon(simulation, request.epsilon, DELTA)
            for quick in (False,) if self._workshop.known(simulation) else (True, False):
                views = self._workshop.draw(simulation, quick)
                yield Answer(simulation, views, views.failure, last=not quick)
        # whatever it is, the page has to say it rather than wait for ever
        except Exception as error:
            expected = isinstance(error, ValueError | TypeError | MemoryError | ArithmeticError | OSError)
            said = str(error) if expected else f"{type(error).__name__}: {error}"
            yield Answer(simulation, None, said, last=True)

    def _stale(self) -> bool:
        with self._lock:
            return self._waiting is not None or self._closed
