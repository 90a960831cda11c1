"""What the hedge and public features change, and other choices from the simulations of the same plans.

Plans from private features judge shares by two worlds, one in which the features hide nothing and one in
which they hide directions, and take the largest share within one standard error of the best. Plans without
the hedge know the first world alone; with public features of the body's source, the second has no more hidden
than the body reached there. They have rows where such plans were made. The last three rows are other choices
from the simulations of the plan: the most accurate share, over both worlds or in one alone. Losses are those
of the table of regret; differences are from the plan, paired by seed, on the tasks that both exist for.
"Moved" is the fraction of plans in which the choice is another share.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

PLAN = "private features"
# names of other plans in this table
OTHERS = {"private, no hedge": "no hedge", "private, public source": "public source"}


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses of the plan and of others, their differences, and how often these differ, by group."""
    import xarray as xr

    found, plans = regret.accuracies(), regret.planned()
    names = {PLAN: "the plan"} | {source: name for source, name in OTHERS.items() if source in plans.source}
    given = plans.share.sel(source=list(names)).assign_coords(source=list(names.values()))
    choices: Any = xr.concat([given, regret.variants(plans.sel(source=PLAN))], "source")
    own, rules = choices.sel(source="the plan", drop=True), list(choices.source.values)
    kinds = {"lost": regret.lost(found, choices), "by means": regret.lost_by_means(found, choices)}
    # rules are compared on the plans that they have in common
    more = {
        kind: values.sel(rule=rules) - values.sel(rule="the plan", drop=True)
        for kind, values in kinds.items()
    }

    def of(tasks: list[str]) -> xr.Dataset:
        parts = [values.sel(task=tasks, rule=rules) for values in (*kinds.values(), *more.values())]
        data: Any = xr.concat([regret.mean_and_error(part) for part in parts], "kind")
        both = (own.notnull() & choices.notnull()).sel(task=tasks)
        moved = (choices != own).sel(task=tasks).where(both).mean(("task", "seed", "epsilon"))
        return data.assign(moved=moved.rename(source="rule"))

    data = regret.by_group(of).assign_coords(kind=[*kinds, "less the plan", "by means, less the plan"])
    return regret.described(data, "accuracy lost", plans)


def tabulate(data: xr.Dataset) -> Table:
    """Return a table with one row per group of tasks and choice."""
    from empirical.studies.tables import Table, number

    def cells(part: Any) -> list[str]:
        if not (tasks := int(part.tasks.max())):
            return []
        values = zip(part.kind.values, part["mean"], part.standard_error, strict=True)
        found = [number(float(m), float(e), signed="less" in str(kind)) for kind, m, e in values]
        found.append(f"{float(part.moved):.0%}")
        # the plan does not differ from itself
        own = [*found[:2], "", "", ""] if part.rule == "the plan" else found
        return [*own, str(tasks), str(int(part.seeds.max()))]

    header = ["hedge", "choice", *map(str, data.kind.values), "moved", "tasks", "fewest seeds"]
    return Table(header, regret.rows(data, "rule", cells), labels=2)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, tabulate, reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
