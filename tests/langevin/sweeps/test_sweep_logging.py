"""Sweeps leave logging unchanged, and do not pass Dask's messages to other handlers."""

import contextlib
import logging
from collections.abc import Callable, Iterator

import pytest

from langevin.sweeps import Grid, cluster, run_sweep
from tests.langevin.engine.toy import TOYS


class Kept(logging.Handler):
    """All messages."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record)


@pytest.fixture
def sweep(tmp_path, monkeypatch) -> Iterator[Callable[[], list[str]]]:
    """Run a sweep where the root logger has a handler, as in a notebook, and Dask was not imported yet."""
    handler = Kept()
    dask = logging.getLogger("distributed")
    # Dask adds no handlers where there are others
    monkeypatch.setattr(logging.root, "handlers", [handler])
    monkeypatch.setattr(dask, "handlers", [])
    monkeypatch.setattr(dask, "propagate", True)
    monkeypatch.setattr(dask, "level", logging.INFO)
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]

    def work() -> list[str]:
        run_sweep(Grid(TOYS, {"a": [1.0, 2.0]}), tmp_path / "s.zarr", workers=1, threads=True)
        return [record.name for record in handler.messages if record.name.startswith("distributed")]

    yield work
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]


def state() -> dict[str, tuple[int, list[logging.Handler], bool]]:
    return {name: (log.level, list(log.handlers), log.propagate) for name, log in cluster.loggers().items()}


def test_nothing_is_told_and_loggers_are_as_they_were(sweep):
    before = state()
    assert sweep() == []
    assert {name: state()[name] for name in before} == before
    assert all(state()[name] == (logging.NOTSET, [], True) for name in state().keys() - before)


def test_as_dask_has_it_much_is_told_and_changed(sweep, monkeypatch):
    monkeypatch.setattr(cluster, "logging_from", lambda level: contextlib.nullcontext())
    monkeypatch.setattr(cluster, "logging_kept", contextlib.nullcontext)
    before = state()
    assert "distributed.scheduler" in sweep()
    assert state() != before
