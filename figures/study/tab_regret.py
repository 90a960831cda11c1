"""Accuracy lost by planning the share of the budget, and by fixed rules.

The loss is the test accuracy below that of the share that was best in hindsight, on the tasks of the study:
for each task and budget, the share with the highest mean over all other seeds. Values are means over the
seeds and, in the first rows, over the tasks, with standard errors over the seeds. A plan comes from
`empirical.plan_share`, with the features of the training images or of the public part; "last layer" means
that the body's last layer is also given.
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
    """Compute means and standard errors by task and budget, over all tasks, and over all budgets."""
    import xarray as xr

    values = regret.lost(regret.accuracies(), regret.planned().share)
    every = [(["all tasks"], values), *(([task], values.sel(task=[task])) for task in values.task.values)]
    rows: list[xr.Dataset] = []
    for name, part in every:
        cells = [regret.mean_and_error(part.sel(epsilon=[e])) for e in part.epsilon.values]
        cells.append(regret.mean_and_error(part))
        budgets = [*(f"ε = {e:g}" for e in part.epsilon.values), "all budgets"]
        rows.append(xr.concat(cells, "budget").assign_coords(budget=budgets).expand_dims(task=name))
    data = xr.concat(rows, "task")
    found = regret.ahead(values)
    data["ahead"], data["ahead_error"] = found["mean"], found.standard_error
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"accuracy lost: {name}".replace("_", " "), "units": "1"}
    return data


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per task and rule and one column per budget."""
    from empirical.studies.tables import Table, number

    rows = []
    for task in data.task.values:
        for rule in data.rule.values:
            part = data.sel(task=task, rule=rule)
            if part.seeds.max() == 0:
                continue
            cells = [
                number(float(m), float(e)) for m, e in zip(part["mean"], part.standard_error, strict=True)
            ]
            first = str(task) if rule == data.rule.values[0] else ""
            rows.append([first, str(rule), *cells, f"{int(part.seeds.max())}"])
    return Table(["accuracy lost", "rule", *map(str, data.budget.values), "seeds"], rows, labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
