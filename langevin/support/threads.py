"""How many threads to use, and keeping BLAS on one."""

from __future__ import annotations

import os

from threadpoolctl import threadpool_limits

from langevin.support import validate


def available_threads() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_blas_thread() -> threadpool_limits:
    """Keep BLAS on one thread, because paths run in parallel."""
    return threadpool_limits(1, user_api="blas")


def check_threads(threads: int | None) -> int:
    """Number of threads to use."""
    return available_threads() if threads is None else validate.integer("threads", threads, 1)
