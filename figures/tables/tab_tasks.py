"""Accuracy lost on each task, by planning the share of the budget and by fixed rules.

The loss is by means over the seeds, of the table of regret, over all budgets; the first six tasks are those
that the planner was designed on. The last columns are what plans lose more than the fixed rule that is best
on the task: by means, and by seed with its standard error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

SHOWN = (*regret.PLANS, *regret.RULES)


def compute(quick: bool = False) -> xr.Dataset:
    """Compute means and standard errors by task, and what plans lose more than the best fixed rule."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned()
    values, by_means = regret.lost(found, plans.share), regret.lost_by_means(found, plans.share)
    rules = list(regret.RULES)
    rows = []
    for task in values.task.values:
        row: Any = regret.mean_and_error(by_means.sel(task=[task]))
        best = rules[int(np.nanargmin(row["mean"].sel(rule=rules).values))]
        row["more"] = row["mean"] - row["mean"].sel(rule=best, drop=True)
        part = values.sel(task=[task])
        more = regret.mean_and_error(part - part.sel(rule=best, drop=True))
        row["more_by_seed"], row["more_by_seed_error"] = more["mean"], more.standard_error
        rows.append(row.expand_dims(task=[task]))
    data: Any = xr.concat(rows, "task")
    return regret.described(data, "accuracy lost", plans)


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per task and one column per rule."""
    from empirical.studies.tables import Table, number

    rows = []
    for task in data.task.values:
        part = data.sel(task=task)
        cells = [number(float(part["mean"].sel(rule=rule)), np.nan) for rule in SHOWN]
        for plan in regret.PLANS:
            own = part.sel(rule=plan)
            cells.append(number(float(own.more), np.nan, signed=True))
            cells.append(number(float(own.more_by_seed), float(own.more_by_seed_error), signed=True))
        rows.append([str(task), *cells])
    heads = [f"{plan}, less best rule{how}" for plan in regret.PLANS for how in ("", ", by seed")]
    return Table(["accuracy lost", *SHOWN, *heads], rows)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
