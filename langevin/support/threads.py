"""How many threads to use, and keeping BLAS on one."""

from __future__ import annotations

import functools
import os
import sys
from contextlib import AbstractContextManager

from threadpoolctl import ThreadpoolController

from langevin.support import validate


def available_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> AbstractContextManager[object]:
    """Keep BLAS on one thread, because paths run in parallel."""
    return _libraries(len(sys.modules)).limit(limits=1, user_api="blas")


@functools.lru_cache(maxsize=1)
def _libraries(modules: int) -> ThreadpoolController:
    """Find the loaded libraries, which takes milliseconds: again only if modules, which load them, came."""
    return ThreadpoolController()


def check_threads(threads: int | None) -> int:
    """Number of threads to use."""
    return available_threads() if threads is None else validate.integer("threads", threads, 1)
