"""Accuracy lost by planning the share of the budget, and by fixed rules.

The loss is the test accuracy below that of the share that was best in hindsight: for each task and budget,
the share with the highest mean over all other seeds. Values are means over the seeds, tasks and budgets, with
standard errors over the seeds; "by means" replaces each seed's accuracy by the mean over the seeds and
hindsight by the best of these means. A plan comes from `empirical.plan_share`, with the features of the
training rows; "last layer" means that the layer below is given too, on the tasks that have one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table


def compute(quick: bool = False) -> xr.Dataset:
    """Compute means and standard errors by group of tasks and budget, over all budgets, and by means."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned().sel(source=list(regret.PLANS))
    values, by_means = regret.lost(found, plans.share), regret.lost_by_means(found, plans.share)

    def of(tasks: list[str]) -> xr.Dataset:
        part = values.sel(task=tasks)
        cells = [regret.mean_and_error(part.sel(epsilon=[e])) for e in part.epsilon.values]
        cells += [regret.mean_and_error(part), regret.mean_and_error(by_means.sel(task=tasks))]
        budgets = [*(f"ε = {e:g}" for e in part.epsilon.values), "all budgets", "by means"]
        data = xr.concat(cells, "budget").assign_coords(budget=budgets)
        ahead = regret.ahead(part)
        data["ahead"], data["ahead_error"] = ahead["mean"], ahead.standard_error
        return data

    return regret.described(regret.by_group(of), "accuracy lost", plans)


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and rule and one column per budget."""
    from empirical.studies.tables import Table, number

    def cells(part: Any) -> list[str]:
        if not (tasks := int(part.tasks.max())):
            return []
        return [
            *(number(float(m), float(e)) for m, e in zip(part["mean"], part.standard_error, strict=True)),
            str(tasks),
        ]

    header = ["accuracy lost", "rule", *map(str, data.budget.values), "tasks"]
    return Table(header, regret.rows(data, "rule", cells), labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
