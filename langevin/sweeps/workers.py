"""What runs on workers: batches of cells."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from langevin._record import versions
from langevin.sweeps.grid import Kind, Layout, Values
from langevin.sweeps.store import Outcome

_ALONE = threading.Lock()
# of an error's text
_LONGEST = 2000


class OtherVersions(Exception):
    """A worker whose packages are not those of the sweep."""


@dataclass(frozen=True)
class Task:
    """What all cells of a sweep share."""

    kind: Kind
    record: Any
    layout: Layout
    common: Values  # values of all parameters
    names: tuple[str, ...]  # of those that are swept
    out: Path
    versions: dict[str, str]


@dataclass(frozen=True)
class Batch:
    """Some cells, and where they are."""

    task: Task
    places: list[tuple[int, ...]]
    swept: list[tuple[Any, ...]]  # the values of each


def compute(batch: Batch) -> tuple[list[Outcome], float]:
    """Compute cells one after the other, on one thread each; and the seconds that it took.

    Raises
    ------
    OtherVersions
        If bits might differ here.
    """
    task, begun = batch.task, time.perf_counter()
    here = versions(*task.kind.packages)
    for name, version in task.versions.items():
        if here[name] != version:
            raise OtherVersions(
                f"a worker has {name} {here[name]}, the sweep has {version}: install that there"
            )
    # not undone: it would be while other cells of the process are computed
    threadpool_limits(1, user_api="blas")
    outcomes = []
    for swept in batch.swept:
        values = task.kind.located(task.common | dict(zip(task.names, swept, strict=True)), task.out)
        if task.kind.alone:
            with _ALONE:
                outcomes.append(_attempt(task, values))
        else:
            outcomes.append(_attempt(task, values))
    return outcomes, time.perf_counter() - begun


def _attempt(task: Task, values: Values) -> Outcome:
    try:
        found, error = task.kind.compute(values, task.record)
        _require_layout(task.layout, found)
    except Exception as failure:  # whatever it is, the other cells go on
        return {}, f"{type(failure).__name__}: {failure}"[:_LONGEST]
    return found, None if error is None else error[:_LONGEST]


def _require_layout(layout: Layout, found: dict[str, Any]) -> None:
    for name, variable in layout.variables.items():
        if name not in found:
            raise ValueError(f"{name} is not among what was measured: {', '.join(found)}")
        if found[name].shape != variable.shape:
            raise ValueError(f"{name} has shape {found[name].shape}, the sweep keeps {variable.shape}")
