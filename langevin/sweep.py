"""The command ``python -m langevin.sweep``: a grid of simulations or of fine-tunings, on Dask."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langevin.support import options, signals, streams
from langevin.support.command import fail, missing

if TYPE_CHECKING:
    import xarray as xr

    from langevin.sweeps.grid import Grid, Kind
    from langevin.sweeps.run import Progress

PROGRAM = "python -m langevin.sweep"
# of different errors that the report shows
_ERRORS = 5


@dataclass(frozen=True)
class SweepOptions:
    """Options of ``python -m langevin.sweep``.

    Parameters
    ----------
    grid : str
        TOML file with kind = "simulate" or "finetune", and tables: sweep (lists of values), fixed, record.
    out : str or None
        folder.zarr (default: out in the grid, or runs/<name of the grid>.zarr).
    workers : int or None
        Number of local workers, one thread each (default: all processors).
    threads : bool
        Use threads of one process instead of processes.
    scheduler : str or None
        Address of a Dask scheduler whose workers compute: tcp://host:8786.
    check : bool
        Report what there is to do, and compute nothing.
    json : bool
        Print the report as JSON.
    quiet : bool
        Show no progress bar; suppress messages on stderr.
    """

    grid: str = field(metadata={"positional": True, "metavar": "grid.toml"})
    out: str | None = None
    workers: int | None = None
    threads: bool = False
    scheduler: str | None = field(default=None, metadata={"metavar": "ADDRESS"})
    check: bool = False
    json: bool = False
    quiet: bool = False


def parser() -> options.Parser:
    """Command line of sweeps."""
    p = options.Parser(
        PROGRAM,
        "[option ...] grid.toml",
        description="Compute all combinations of the parameters that grid.toml sweeps, each once, into one "
        "labelled Zarr store. Interrupted, or with more values, the same command computes what is left.",
        epilog="Exit status: 0 done, 1 failed or some cells failed (the others are saved), 2 wrong usage, "
        "130 or 143 interrupted (repeat the command to resume).",
    )
    p.add("sweep", (SweepOptions, "grid out"))
    p.add("workers", (SweepOptions, "workers threads scheduler"))
    p.add("output", (SweepOptions, "check json quiet"))
    return p


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit status."""
    command = parser()
    args, _ = command.parse(argv)
    started = time.perf_counter()

    out = None
    with signals.interruptible() as status:
        try:
            from langevin.store.errors import StoreError
            from langevin.sweeps import Grid, SweepError, run_sweep
            from langevin.sweeps.cluster import hush
            from langevin.sweeps.store import unfinished

            try:
                grid, named = Grid.read(args.grid, {"simulate": _simulations, "finetune": _finetunings})
                out = Path(args.out or named or f"runs/{Path(args.grid).stem}.zarr")
                left = unfinished(out, grid)
                if args.check:
                    return _print(args, _plan(grid, out, left))
                hush()
                with _bar(args, grid.cells) as (progress, dashboard):
                    run = run_sweep(
                        grid,
                        out,
                        workers=args.workers,
                        threads=args.threads,
                        scheduler=args.scheduler,
                        progress=progress,
                        dashboard=dashboard,
                    )
            except ImportError as error:
                command.error(missing(error))
            except (ValueError, TypeError, MemoryError) as error:
                command.error(str(error))
            except StoreError as error:
                # of a disk that fills, less of what was asked for
                if "could not be written" in str(error):
                    return fail(command, str(error))
                command.error(str(error))
            except SweepError as error:
                return fail(command, f"{error}; repeat the command to resume")
            said = _report(run, grid, left, time.perf_counter() - started)
            said["saved"] = str(out)
            _print(args, said)
            lost = said["cells"] - said["finished"]
            return fail(command, f"{lost} of {said['cells']} cells failed") if lost else 0
        except KeyboardInterrupt:
            there = out is not None and out.exists()
            kept = (
                f"what is finished is in {out}: repeat the command to resume"
                if there
                else "nothing has been started"
            )
            print(f"\ninterrupted; {kept}", file=sys.stderr)
            return status()


def _simulations() -> Kind:
    from langevin.sweeps import SIMULATIONS

    return SIMULATIONS


def _finetunings() -> Kind:
    from empirical.studies.sweeps import FINETUNINGS

    return FINETUNINGS


def _plan(grid: Grid, out: Path, left: int) -> dict[str, Any]:
    from langevin.sweeps.store import cells_bytes, require_room

    layout = grid.kind.layout(grid)
    require_room(out, left, layout)
    return {
        "kind": grid.kind.name,
        "sweep": dict(zip(grid.dims, grid.shape, strict=True)),
        "record": {name: dict(zip(v.dims, v.shape, strict=True)) for name, v in layout.variables.items()},
        "cells": grid.cells,
        "left": left,
        "mebibytes before compression": round(cells_bytes(grid.cells, layout) / 2**20, 3),
        "out": str(out),
    }


def _report(run: xr.Dataset, grid: Grid, left: int, seconds: float) -> dict[str, Any]:
    import numpy as np

    from langevin.sweeps.store import FAILED, FINISHED

    status, errors = run.status.values, run.error.values
    failed = np.argwhere(status == FAILED)
    texts: dict[str, str] = {}
    for place in failed:
        labels = ", ".join(
            f"{dim} = {run[dim].values[i]}" for dim, i in zip(run.status.dims, place, strict=True)
        )
        texts.setdefault(str(errors[tuple(place)]), labels)
        if len(texts) == _ERRORS:
            break
    return {
        "kind": grid.kind.name,
        "sweep": dict(zip(map(str, run.status.dims), status.shape, strict=True)),
        "cells": status.size,
        "finished": int((status == FINISHED).sum()),
        "failed": len(failed),
        "errors": [f"{text} (at {labels})" for text, labels in texts.items()] or None,
        "computed": left,
        "seconds": round(seconds, 2),
    }


def _print(args: argparse.Namespace, said: dict[str, Any]) -> int:
    said = {name: value for name, value in said.items() if value is not None}
    if args.json:
        print(json.dumps(said, indent=2, allow_nan=False))
        return 0
    for name, value in said.items():
        words = value if isinstance(value, list) else [_words(value)]
        print(f"{name + ':':<10} " + ("\n" + " " * 11).join(words))
    return 0


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(of)}" for name, of in value.items())
    return str(value)


@contextlib.contextmanager
def _bar(args: argparse.Namespace, cells: int) -> Iterator[tuple[Progress, Any]]:
    """A progress bar, and a line with the address of Dask's dashboard, on a terminal only."""
    from tqdm import tqdm

    hidden = args.quiet or not sys.stderr.isatty()
    with tqdm(total=cells, unit="cell", disable=hidden, leave=False, file=sys.stderr) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        def dashboard(address: str) -> None:
            if not hidden:
                bar.write(f"dashboard: {address}", file=sys.stderr)

        yield progress, dashboard


if __name__ == "__main__":
    streams.run(main)
