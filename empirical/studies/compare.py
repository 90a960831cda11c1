"""A grid of fine-tunings, as the command asks for it."""

from __future__ import annotations

import argparse
import json
import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from langevin.store import rescue
from langevin.support.command import fail

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.arms import Grid
from empirical.studies.single import about
from empirical.studies.talk import print_report, progress_bar, refusing


def run_grid_command(args: argparse.Namespace, command: argparse.ArgumentParser) -> int:
    """Run the grid that the command asks for, and return its exit status."""
    from langevin.store.errors import StoreError

    with refusing(StoreError):
        from empirical.networks.weights import WeightsError
        from empirical.studies import options
        from empirical.studies.arms import TUNING, Grid
        from empirical.studies.cells import Records, RecordsError
        from empirical.studies.grid import run_grid
        from langevin.support.options import values
        from langevin.sweeps import SweepError
        from langevin.sweeps.cluster import hush

        setting = options.setting_of(args)
        if args.bodies is None:
            setting = replace(setting, bodies=f"{args.cells}.bodies")
        recipe = options.recipe_of(args)
        methods = dict.fromkeys("fft" if label == "fft-drop" else label for label in args.methods)
        options.refuse_idle(args, *(replace(recipe, method=m, lp_share=None) for m in methods))
        ranges: dict[str, Any] = dict(zip(("lowest", "highest"), args.lr_range, strict=True))
        if args.lp_lr_range is not None:
            ranges |= dict(zip(("lp_lowest", "lp_highest"), args.lp_lr_range, strict=True))
        grid = Grid(setting, recipe, **values(Grid, args), **ranges)
        out = options.target_of(args, "grid")
    with refusing(StoreError, RecordsError, SweepError, WeightsError, FloatingPointError):
        # what is wrong with all cells is wrong with the first
        Records(args.cells).close()
        task = setting.task(0)
        setting.network(0)
        for samples in {len(task.train), len(setting.task(TUNING, tuning=True).train)}:
            for arm in grid.arms:
                for epsilon in grid.epsilons:
                    grid.candidates(arm, epsilon)[0].history(samples)
        started = time.perf_counter()
        if args.workers > 1:
            hush()
        with progress_bar(args, "cells") as cells:
            run = run_grid(
                grid, cells=args.cells, workers=args.workers, time_limit=args.time_limit, progress=cells
            )
    run.attrs["command"] = json.dumps(vars(args))
    saved, failure = rescue.save(run, out)
    said = {
        **about(setting, task),
        "results": None if run.test_accuracy.isnull().all() else (_numbers if args.json else _tables)(run),
        "tuning": run.attrs["tuning"],
        **_caveats(grid, run),
        "seconds": round(time.perf_counter() - started, 2),
        "saved": str(saved),
    }
    print_report(args, said)
    if run.attrs["failed"]:
        failure = f"{run.attrs['failed']} of {grid.cells} cells failed: {run.attrs['errors']}"
    return fail(command, failure) if failure else 0


def _references(run: xr.Dataset) -> list[str]:
    """Return the arms that the others are compared with."""
    return [arm for arm in ("lp", "fft") if arm in run.arm.values and run.sizes["arm"] > 1]


def _tables(run: xr.Dataset) -> str:
    from empirical.studies import tables

    shown = [tables.table(run), *(tables.table(run, arm) for arm in _references(run))]
    along = [method for method in run.method.values if method in ("lp", "lp-fft", "fft")]
    if "lp-fft" in along and len(along) > 1:
        shown.append(tables.shares_table(run))
    notes = ["mean ± standard error over seeds; differences are paired", "*: not 0, at 5 % for a whole table"]
    return "\n\n".join([*(table.text() for table in shown), "; ".join(notes)])


def _numbers(run: xr.Dataset) -> list[dict[str, Any]]:
    """Return the tables as plain data."""
    from empirical.studies import tables

    found = {"test accuracy": tables.summary(run)}
    found |= {f"less that of {arm}": tables.paired(run, arm) for arm in _references(run)}
    numbers = []
    for arm in run.arm.values:
        for epsilon in run.epsilon.values:
            at = {"arm": str(arm), "epsilon": _json(epsilon)}
            for name, values in found.items():
                if name.endswith(f" {arm}"):
                    continue
                one = values.sel(arm=arm, epsilon=epsilon)
                at[name] = {"mean": _json(one["mean"]), "standard error": _json(one.standard_error)}
            numbers.append(at)
    return numbers


def _json(value: Any) -> float | str | None:
    """Convert a number for JSON; "inf" and None replace what it does not support."""
    number = float(value)
    return round(number, 6) if math.isfinite(number) else None if math.isnan(number) else str(number)


def _caveats(grid: Grid, run: xr.Dataset) -> dict[str, Any]:
    edges = [
        f"{arm} at epsilon {epsilon:g}"
        for arm in run.arm.values
        for epsilon in run.epsilon.values
        if run.edge.sel(arm=arm, epsilon=epsilon)
    ]
    said: dict[str, Any] = {}
    if edges:
        said["rate at an end"] = f"of --lr-range, take a wider one: {'; '.join(edges)}"
    if run.attrs["left"]:
        said["left"] = f"{run.attrs['left']} of {grid.cells} cells: repeat the command to resume"
    return said
