"""What the hedge changes: accuracy lost by other choices from the simulations of the same plans.

Plans from private features judge shares by two worlds, one in which the features hide nothing and one in
which they hide directions, and take the largest share within one standard error of the best. Other choices:
the most accurate share, over both worlds or in one alone. Losses are those of the table of regret. "Moved" is
the fraction of plans in which the choice is another share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

SOURCE = "private features"


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses of the plan and of other choices, and how often these differ, by group of tasks."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned().sel(source=[SOURCE])
    others = regret.variants(plans)
    names = [str(name).removeprefix(f"{SOURCE}: ") for name in others.source.values]
    choices: Any = xr.concat([plans.share, others.assign_coords(source=names)], "source")
    lost, by_means = (of(found, choices) for of in (regret.lost, regret.lost_by_means))
    own, rules = choices.sel(source=SOURCE, drop=True), [SOURCE, *names]
    rows = []
    for group, tasks in regret.GROUPS.items():
        parts = (part.sel(task=list(tasks), rule=rules) for part in (lost, by_means))
        row: Any = xr.concat([regret.mean_and_error(part) for part in parts], "kind")
        there = own.sel(task=list(tasks)).notnull()
        moved = (choices != own).sel(task=list(tasks)).where(there).mean(("task", "seed", "epsilon"))
        row["moved"] = moved.rename(source="rule")
        rows.append(row.expand_dims(group=[group]))
    data: Any = xr.concat(rows, "group").assign_coords(kind=["lost", "by means"])
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"accuracy lost: {name}".replace("_", " "), "units": "1"}
    data.attrs["machine"] = f"plans on {plans.attrs['machine']}; study on a processor"
    return data


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and choice."""
    from empirical.studies.tables import Table, number

    rows = []
    for group in data.group.values:
        first = str(group)
        for rule in data.rule.values:
            part = data.sel(group=group, rule=rule)
            cells = [
                number(float(m), float(e)) for m, e in zip(part["mean"], part.standard_error, strict=True)
            ]
            name = "the plan" if rule == SOURCE else str(rule)
            rows.append([first, name, *cells, f"{float(part.moved):.0%}"])
            first = ""
    return Table(["hedge", "choice", *map(str, data.kind.values), "moved"], rows, labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
