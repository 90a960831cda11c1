"""Measure cells per second of a sweep by number of workers, and the overhead of a cell.

``python -m benchmarks.sweep`` prints a table and saves it in ``benchmarks/results``. With ``--quick``
nothing is saved.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import environment
from benchmarks.harness.tables import brief, keep, table
from langevin.sweeps import SIMULATIONS, Grid, run_sweep
from langevin.sweeps.store import SweepStore

# name: fixed parameters
CELLS: dict[str, dict[str, Any]] = {
    "minimal": {"samples": 4, "dim": 2, "width": 4, "time": 0.1, "dt": 0.01, "paths": 1},
    "small": {"samples": 32, "dim": 8, "width": 128, "time": 0.5, "dt": 1e-3, "paths": 16},
}
# number of workers; threads of one process, or processes
PLACES = ((1, True), (2, True), (1, False), (2, False))
MILLION = 10**6


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short trial run: nothing is saved")
    quick = parser.parse_args().quick
    record: dict[str, Any] = {
        "machine": environment.describe(),
        "cases": [measure(name, fixed, quick) for name, fixed in CELLS.items()],
        "million": million(10**3 if quick else MILLION),
    }
    text = tables(record)
    print(text)
    if not quick:
        keep(f"sweep-{brief(environment.processor())}", record, text)


def measure(name: str, fixed: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Measure the seconds per cell of the bare function and of sweeps."""
    few = Grid(SIMULATIONS, {"seed": {"count": 3}}, fixed)
    bare, processor = map(
        np.median,
        zip(
            *[timed(lambda i=i: few.kind.compute(few.values((i % 3,)), few.record)) for i in range(13)][3:],
            strict=True,
        ),
    )
    # seconds of work for one worker
    count = 8 if quick else max(20, min(2000, int(4 / bare)))
    case: dict[str, Any] = {
        "cells": name,
        "count": count,
        "bare": float(bare),
        "bare processor": float(processor),
    }
    case["sweeps"] = []
    for workers, threads in PLACES:
        begun: list[float] = []
        used: list[float] = []
        grid = Grid(SIMULATIONS, {"seed": {"count": count}}, fixed)
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            run_sweep(
                grid,
                Path(folder, "s.zarr"),
                workers=workers,
                threads=threads,
                # called when the workers have started
                dashboard=lambda _, begun=begun: begun.append(time.perf_counter()),
                progress=partial(_note, begun, used),
            ).close()
        case["sweeps"].append(
            {
                "workers": workers,
                "threads": threads,
                "start and first cell": begun[1] - started,
                # from the first cell on: before it, processes compile or load compiled code
                "seconds": (begun[-1] - begun[1]) / (count - 1),
                # of this process: all work with threads; sending, collecting and writing with processes
                "processor": (used[-1] - used[0]) / (count - 1),
            }
        )
    return case


def _note(begun: list[float], used: list[float], done: int, of: int) -> None:
    begun.append(time.perf_counter())
    used.append(time.process_time())


def timed(call: Any) -> tuple[float, float]:
    """Return wall time and processor time, in seconds; other load affects the latter less."""
    begun, used = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - begun, time.process_time() - used


def million(cells: int) -> dict[str, Any]:
    """Measure the overhead of a grid of ``cells`` cells: to check, to open, to write, to reopen."""
    side = round(cells ** (1 / 3))
    spread = {"from": 0.1, "to": 1.0, "count": side}
    sweep = {"sigma": spread, "clip": spread, "seed": {"count": side}}
    begun = time.perf_counter()
    grid = Grid(SIMULATIONS, sweep, CELLS["small"])
    checked = time.perf_counter() - begun
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "s.zarr")
        begun = time.perf_counter()
        kept = SweepStore(path, grid)
        left = kept.left()
        opened = time.perf_counter() - begun
        places = np.transpose(np.unravel_index(left[: 10**4], grid.shape)).tolist()
        random = np.random.default_rng(0)
        row = {name: random.standard_normal(v.shape) for name, v in kept.layout.variables.items()}
        begun = time.perf_counter()
        # as often as results would arrive
        for first in range(0, len(places), 1000):
            kept.write({tuple(place): (row, None) for place in places[first : first + 1000]})
        written = (time.perf_counter() - begun) / len(places)
        kept.status[...] = 0
        kept.close()
        begun = time.perf_counter()
        kept = SweepStore(path, grid)
        kept.left()
        again = time.perf_counter() - begun
        kept.close()
        chunks = {
            n: int(np.prod([-(-s // c) for s, c in zip(grid.shape, kept._chunk, strict=True)])) for n in row
        }
    return {
        "cells": grid.cells,
        "check": checked,
        "open": opened,
        "write, per cell": written,
        "open again": again,
        "files per variable": next(iter(chunks.values())),
        "bytes per cell": kept.layout.cell_bytes,
    }


def _named(workers: int, threads: bool) -> str:
    one, several = ("thread", "threads") if threads else ("process", "processes")
    return f"{workers} {one if workers == 1 else several}"


def tables(record: dict[str, Any]) -> str:
    """Return the tables of throughput and overhead, and of the grid of a million cells."""
    rows = []
    for case in record["cases"]:
        for sweep in case["sweeps"]:
            each, workers = sweep["seconds"], sweep["workers"]
            overhead = sweep["processor"] - (case["bare processor"] if sweep["threads"] else 0.0)
            rows.append(
                [
                    f"{case['cells']}: {1e3 * case['bare']:.3g} ms alone, "
                    f"{1e3 * case['bare processor']:.3g} of the processor",
                    _named(workers, sweep["threads"]),
                    f"{1 / each:.3g}",
                    f"{1e3 * overhead:.2g}",
                    f"{case['bare'] / each / workers:.2f}",
                    f"{sweep['start and first cell']:.2g}",
                ]
            )
    header = [
        "cells",
        "workers",
        "cells/s",
        "overhead per cell, processor ms",
        "efficiency",
        "s to the first cell",
    ]
    many = record["million"]
    lines = [[name, f"{value:.3g}"] for name, value in many.items()]
    machine = record["machine"]
    return (
        f"# Sweeps on {machine['processor']}, {machine['started']}\n\n"
        f"{machine['processors_used']} processors; load at the start {machine['load'][0]}\n\n"
        f"{table(header, rows)}\n\nOverhead of a grid of many small cells, in seconds\n\n"
        f"{table(['', ''], lines)}"
    )


if __name__ == "__main__":
    main()
