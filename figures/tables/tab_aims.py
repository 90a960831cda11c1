"""Whether plans meet their aims: accuracy lost in total, and compared with the best fixed share.

Losses are those of the table of regret, over all budgets and the tasks that a plan can be made for, with
standard errors over the seeds of the plans. The best fixed share is that with the least loss by means over
these tasks. Differences are paired: plan less best fixed share, negative where the plan loses less.
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

AIMS = dict(zip(regret.PLANS, (0.010, 0.005), strict=True))


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses by group of tasks and source, and differences from the best fixed share."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned()
    both = regret.lost(found, plans.share), regret.lost_by_means(found, plans.share)
    rules = list(regret.RULES)

    def of(tasks: list[str]) -> xr.Dataset:
        return xr.concat([row(source, tasks).expand_dims(source=[source]) for source in AIMS], "source")

    def row(source: str, tasks: list[str]) -> xr.Dataset:
        there = plans.share.sel(source=source, drop=True).reindex(seed=found.seed).notnull()
        lost, by_means = (part.where(there).sel(task=tasks) for part in both)
        means: Any = regret.mean_and_error(by_means)
        best = rules[int(np.nanargmin(means["mean"].sel(rule=rules).values))]
        values: dict[str, Any] = {
            "tasks": int(means.tasks.sel(rule=source)),
            "fewest": int(means.seeds.sel(rule=source)),
            "best": rules.index(best),
            "best_lost": float(means["mean"].sel(rule=best)),
        }
        for name, part in (("by_seed", lost), ("by_means", by_means)):
            own = part.sel(rule=source, drop=True)
            for kind, which in (("lost", own), ("more", own - part.sel(rule=best, drop=True))):
                at: Any = regret.mean_and_error(which)
                values[f"{kind}_{name}"] = float(at["mean"])
                values[f"{kind}_{name}_error"] = float(at.standard_error)
        return xr.Dataset(values)

    return regret.described(regret.by_group(of), "aims", plans)


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and source."""
    from empirical.studies.tables import Table, number

    rows = []
    for group in data.group.values:
        for source, aim in AIMS.items():
            part = data.sel(group=group, source=source)
            cells = {
                name: number(float(part[name]), float(part[f"{name}_error"]), signed=name.startswith("more"))
                for name in ("lost_by_seed", "lost_by_means", "more_by_seed", "more_by_means")
            }
            best = f"{list(regret.RULES)[int(part.best)]}: {float(part.best_lost):.3f}"
            first = f"{group}, {int(part.tasks)}"
            more = [cells["more_by_seed"], cells["more_by_means"]]
            lost = [cells["lost_by_seed"], cells["lost_by_means"]]
            rows.append([first, source, *lost, f"{aim:.3f}", best, *more, str(int(part.fewest))])
    header = ["tasks", "plan from", "lost", "by means", "aim", "best fixed share, by means"]
    return Table([*header, "plan less best", "by means", "fewest seeds"], rows, labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
