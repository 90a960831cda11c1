"""Computes the cells of a sweep; only this process accesses the store."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.support import validate
from langevin.support.signals import Deferred, shielded
from langevin.support.threads import available_threads
from langevin.sweeps import store
from langevin.sweeps.grid import Grid, Kind, Layout, Values
from langevin.sweeps.jobs import Finished, Jobs, Outcome, Pool
from langevin.sweeps.store import Place, SweepStore

if TYPE_CHECKING:
    import xarray as xr

# share of this process's time that may go into writing while cells are computed
_WRITING = 0.1
# most cells that are sent to a worker together
_TOGETHER = 1000
_ALONE = threading.Lock()

Progress = Callable[[int, int], None]


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
    """Compute the unfinished cells of a sweep, and return it from its store.

    A cell is computed once: the same call resumes an interrupted sweep, and a grid with more values computes
    only the new cells. Cells that fail are recorded with their error, do not stop the others, and are tried
    again by the next call. Results depend neither on the number and kind of workers nor on interruptions.

    Parameters
    ----------
    grid : Grid
    out : path
        Store, ending in ``.zarr``; new, or of this grid or a smaller one.
    workers : int, optional
        Workers on this machine, one thread each; by default as many as there are processors.
    threads : bool
        Use threads of this process instead of processes. Processes import the script that starts them: it
        must be a file, and call this under ``if __name__ == "__main__":``.
    scheduler : str, optional
        Address of a Dask scheduler, such as ``tcp://10.0.0.1:8786``, whose workers compute. They need the
        same packages, and the files that the grid names at the same paths, but no access to the store.
    progress : callable, optional
        Called with the number of finished cells and of all cells.
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
            f"scheduler={scheduler!r} has its own workers: remove it, or remove workers and threads"
        )
    count = available_threads() if workers is None else validate.integer("workers", workers, 1)
    pool = Pool(count, threads=threads, scheduler=scheduler, dashboard=dashboard)
    with contextlib.closing(SweepStore(out, grid)) as kept, pool:
        left = kept.left()
        store.require_room(kept.path, len(left), kept.layout)
        if len(left) and scheduler is None:
            needed = max(kept.grid.kind.memory(v, kept.grid.record) for v in kept.grid.combinations())
            validate.memory(
                count * needed,
                f"a cell for each of {count} workers",
                "take fewer workers, or record less of each cell",
            )
        writer = _Writer(kept, progress, len(left))
        try:
            with pool.run(_jobs(kept, left)) as results:
                for finished in results:
                    writer.receive(finished)
            writer.write()
        except BaseException:
            with shielded(), contextlib.suppress(store.StoreError):
                writer.write()
            raise
        path = kept.path
    return xr.open_zarr(path, chunks=None, consolidated=False)


@dataclass(frozen=True)
class _Work:
    """Computes a cell from its swept values."""

    kind: Kind
    record: Any
    layout: Layout
    common: Values  # values of all parameters
    names: tuple[str, ...]  # of the swept ones
    out: Path

    def __call__(self, swept: tuple[Any, ...]) -> Outcome:
        values = self.kind.located(self.common | dict(zip(self.names, swept, strict=True)), self.out)
        with _ALONE if self.kind.alone else contextlib.nullcontext():
            found, error = self.kind.compute(values, self.record)
        for name, variable in self.layout.variables.items():
            if name not in found:
                raise ValueError(f"{name} is not among what was measured: {', '.join(found)}")
            if found[name].shape != variable.shape:
                raise ValueError(f"{name} has shape {found[name].shape}, the sweep keeps {variable.shape}")
        return found, error


def _jobs(kept: SweepStore, left: np.ndarray) -> Jobs:
    grid, layout = kept.grid, kept.layout
    common, axes = grid.values([0] * len(grid.sweep)), list(grid.sweep.values())
    work = _Work(grid.kind, grid.record, layout, common, tuple(grid.sweep), kept.path.resolve())

    def cells() -> Iterator[tuple[Place, Any]]:
        for some in np.array_split(left, math.ceil(len(left) / _TOGETHER)):
            for place in zip(*(i.tolist() for i in np.unravel_index(some, grid.shape)), strict=True):
                yield place, tuple(a[i] for a, i in zip(axes, place, strict=True))

    return Jobs(work, cells(), len(left), _TOGETHER, layout.cell_bytes, grid.kind.packages)


class _Writer:
    """Collects outcomes and writes them to the store, not too often."""

    def __init__(self, kept: SweepStore, progress: Progress | None, left: int) -> None:
        self.kept, self.progress = kept, progress
        self.done = kept.grid.cells - left
        self.pending: dict[Place, Outcome] = {}
        self.due = -math.inf

    def receive(self, finished: Finished) -> None:
        self.pending.update(finished)
        self.done += len(finished)
        if finished and self.progress is not None:
            self.progress(self.done, self.kept.grid.cells)
        if self.pending and time.monotonic() >= self.due:
            self.write()

    def write(self) -> None:
        begun = time.monotonic()
        written, self.pending = self.pending, {}
        with Deferred():
            self.kept.write(written)
        now = time.monotonic()
        self.due = now + (now - begun) / _WRITING
