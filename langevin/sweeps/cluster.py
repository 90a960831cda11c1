"""Connections to Dask: its workers on this machine, or a scheduler elsewhere; its logging and its signals."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from langevin.support import install
from langevin.support.signals import Deferred, deaf_children, shielded

if TYPE_CHECKING:
    from distributed import Client, LocalCluster


class SweepError(Exception):
    """The sweep cannot continue: the scheduler is gone, or workers cannot compute jobs."""


@contextlib.contextmanager
def client(count: int, threads: bool, scheduler: str | None) -> Iterator[Client]:
    """Connect to a scheduler, or start one with so many workers on this machine."""
    try:
        from distributed import Client
    except ImportError:
        raise ValueError(
            f"workers require Dask, which is not installed: {install.command('sweep')}"
        ) from None
    cluster = None
    with logging_from(logging.WARNING):
        try:
            if scheduler is None:
                # half a cluster cannot be closed; what prevents its start is raised
                with Deferred(), deaf_children(), logging_from(logging.CRITICAL):
                    cluster = _cluster(count, threads)
            try:
                connected = Client(scheduler if cluster is None else cluster, set_as_default=False)
            except (OSError, ValueError) as error:
                raise SweepError(f"cannot reach the scheduler {scheduler}: {error}") from error
            try:
                yield connected
            finally:
                with shielded():
                    connected.close()
        finally:
            if cluster is not None:
                with shielded():
                    cluster.close()


def _cluster(count: int, threads: bool) -> LocalCluster:
    from dask import config
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    config.set(
        {
            # otherwise a worker that dies again while it restarts is abandoned after this time
            "distributed.deploy.lost-worker-timeout": "365 days",
            # what a job leaves in caches would pause its worker for ever
            "distributed.worker.memory.pause": False,
        }
    )
    try:
        # only this machine can connect; the ports are free ones
        return LocalCluster(
            n_workers=1 if threads else count,
            threads_per_worker=count if threads else 1,
            processes=not threads,
            host="127.0.0.1",
            protocol="tcp://",
            dashboard_address="127.0.0.1:0",
            memory_limit=0 if threads else MEMORY_LIMIT // count,
        )
    except RuntimeError as error:
        raise SweepError(f"workers could not be started: {error.__cause__ or error}") from error


# --- logging ---------------------------------------------------------------------------------


def hush() -> None:
    """Silence Dask, also in its own processes, for a command that reports errors itself."""
    # its processes configure logging while they load, before they receive any configuration
    os.environ["DASK_LOGGING__DISTRIBUTED"] = "critical"
    # about slow disks, and about what a stopped worker leaves behind
    os.environ["PYTHONWARNINGS"] = "ignore:Creating scratch directories,ignore:resource_tracker"
    warnings.filterwarnings("ignore", "Creating scratch directories")
    # its loggers have levels of their own
    logging.disable()


@contextlib.contextmanager
def logging_kept() -> Iterator[None]:
    """Restore logging afterwards: Dask configures it when imported, and again for each cluster."""
    before = {name: (log.level, list(log.handlers), log.propagate) for name, log in loggers().items()}
    try:
        yield
    finally:
        for name, log in loggers().items():
            level, handlers, log.propagate = before.get(name, (logging.NOTSET, [], True))
            log.setLevel(level)
            log.handlers[:] = handlers


@contextlib.contextmanager
def logging_from(level: int) -> Iterator[None]:
    """Drop Dask's messages below a level, which would reach the handlers of others."""
    log = logging.getLogger("distributed")
    before = log.level
    log.setLevel(max(before, level))
    try:
        yield
    finally:
        log.setLevel(before)


def loggers() -> dict[str, logging.Logger]:
    """The root logger, and those of Dask and of the packages that it uses."""
    return {"": logging.root} | {
        name: log
        for name, log in logging.root.manager.loggerDict.items()
        if isinstance(log, logging.Logger) and name.partition(".")[0] in ("bokeh", "distributed", "tornado")
    }
