"""Accuracy lost on each task, by planning the share of the budget and by fixed rules.

The loss is that of the table of regret, over all budgets and seeds; the first six tasks are those that the
planner was designed on. The last columns are what plans lose more than the fixed rule that is best on the
task, paired by seed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

# not shown: variants of the first, which have a table of their own
_LEFT_OUT = ("private, no hedge", "private, public source", "public features")


def compute(quick: bool = False) -> xr.Dataset:
    """Compute means and standard errors by task, and what plans lose more than the best fixed rule."""
    import xarray as xr

    plans = regret.planned()
    values = regret.lost(regret.accuracies(), plans.share)
    rules = list(regret.RULES)
    rows = []
    for task in values.task.values:
        part = values.sel(task=[task])
        row: Any = regret.mean_and_error(part)
        best = rules[int(row["mean"].sel(rule=rules).argmin())]
        more = regret.mean_and_error(part - part.sel(rule=best, drop=True))
        row["more"], row["more_error"] = more["mean"], more.standard_error
        rows.append(row.expand_dims(task=[task]))
    data: Any = xr.concat(rows, "task")
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"accuracy lost: {name}".replace("_", " "), "units": "1"}
    data.attrs["machine"] = f"plans on {plans.attrs['machine']}; study on a processor"
    return data


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per task and one column per rule."""
    from empirical.studies.tables import Table, number

    shown = [str(rule) for rule in data.rule.values if rule not in _LEFT_OUT]
    plans = [rule for rule in shown if rule not in regret.RULES]

    def cells(task: str, names: list[str], value: str, error: str, signed: bool = False) -> list[str]:
        at = [data.sel(task=task, rule=name) for name in names]
        return [number(float(one[value]), float(one[error]), signed=signed) for one in at]

    rows = [
        [
            str(task),
            *cells(task, shown, "mean", "standard_error"),
            *cells(task, plans, "more", "more_error", signed=True),
        ]
        for task in data.task.values
    ]
    header = ["accuracy lost", *shown, *(f"{plan}, less best rule" for plan in plans)]
    return Table(header, rows)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
