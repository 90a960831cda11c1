"""How many threads to use, and keeping BLAS on one."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from threadpoolctl import ThreadpoolController

from langevin.support import validate

_P = ParamSpec("_P")
_T = TypeVar("_T")
_most: ContextVar[int | None] = ContextVar("most threads", default=None)


def available_threads() -> int:
    """Return the number of processors that this process may use, or the limit of `at_most`."""
    most = _most.get()
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return count if most is None else min(count, most)


@contextlib.contextmanager
def at_most(threads: int) -> Iterator[None]:
    """Limit what this thread's calls take to be available, for one of several workers of a machine."""
    before = _most.set(threads)
    try:
        yield
    finally:
        _most.reset(before)


def aside(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> Future[_T]:
    """Start a call on a thread of its own; an interrupt, or the end of the process, does not wait for it."""
    found = Future[_T]()

    def work() -> None:
        try:
            found.set_result(function(*args, **kwargs))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return found


def one_blas_thread() -> contextlib.AbstractContextManager[object]:
    """Keep BLAS on one thread, because paths run in parallel."""
    return _libraries(len(sys.modules)).limit(limits=1, user_api="blas")


@functools.lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """Find the loaded libraries, which takes milliseconds: again only if modules, which load them, came."""
    return ThreadpoolController()


def check_threads(threads: int | None) -> int:
    """Number of threads to use."""
    return available_threads() if threads is None else validate.integer("threads", threads, 1)
