"""Accuracy lost by planning the share of the budget, and by fixed rules.

The loss is the test accuracy below that of the share that was best in hindsight: for each task and budget,
the share with the highest mean over all other seeds. Values are means over the seeds, tasks and budgets, with
standard errors over the seeds; "by means" replaces each seed's accuracy by the mean over the seeds and
hindsight by the best of these means. A plan comes from `empirical.plan_share`, with the features of the
training rows or of the public part; "last layer" means that the layer below is given too, on the tasks that
have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table


def compute(quick: bool = False) -> xr.Dataset:
    """Compute means and standard errors by group of tasks and budget, over all budgets, and by means."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned()
    values, by_means = regret.lost(found, plans.share), regret.lost_by_means(found, plans.share)
    rows: list[xr.Dataset] = []
    for name, tasks in regret.GROUPS.items():
        part = values.sel(task=list(tasks))
        cells = [regret.mean_and_error(part.sel(epsilon=[e])) for e in part.epsilon.values]
        cells += [regret.mean_and_error(part), regret.mean_and_error(by_means.sel(task=list(tasks)))]
        budgets = [*(f"ε = {e:g}" for e in part.epsilon.values), "all budgets", "by means"]
        row = xr.concat(cells, "budget").assign_coords(budget=budgets)
        ahead = regret.ahead(part)
        row["ahead"], row["ahead_error"] = ahead["mean"], ahead.standard_error
        rows.append(row.expand_dims(group=[name]))
    data = xr.concat(rows, "group")
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"accuracy lost: {name}".replace("_", " "), "units": "1"}
    return data


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and rule and one column per budget."""
    from empirical.studies.tables import Table, number

    rows = []
    for group in data.group.values:
        first = str(group)
        for rule in data.rule.values:
            part = data.sel(group=group, rule=rule)
            if not (tasks := int(part.tasks.max())):
                continue
            cells = [
                number(float(m), float(e)) for m, e in zip(part["mean"], part.standard_error, strict=True)
            ]
            rows.append([first, str(rule), *cells, str(tasks)])
            first = ""
    return Table(["accuracy lost", "rule", *map(str, data.budget.values), "tasks"], rows, labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
