"""What following plans costs, and how true the accuracies are that they expect.

Left: accuracy lost by plans and by the five fixed shares, each share by its mean over the measured seeds,
against the best of these means; mean over tasks and budgets, with the standard error over the seeds of the
plans; on the six tasks that the planner was designed on, and on six that it was not. Plans with the last
layer are of the tasks that have one. Right: the accuracy that a plan expects
of the share that it recommends, and the measured mean of that share; a point is a task and budget, mean over
the seeds, of plans from private features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret
from figures.tables.tab_tasks import SHOWN
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

STYLES = {"six new tasks": (plots.PURPLE, "o"), "six earlier tasks": (plots.GOLD, "s")}
SOURCE = "private features"


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses by group and rule, and expected and measured accuracies by task and budget."""
    found, plans = regret.accuracies(), regret.planned()
    values = regret.lost_by_means(found, plans.share).sel(rule=list(SHOWN))
    means = regret.by_group(lambda tasks: regret.mean_and_error(values.sel(task=tasks)))
    data: Any = means[["mean", "standard_error"]].sel(group=list(STYLES))
    own = plans.sel(source=SOURCE, drop=True)
    places = own.share.fillna(0.0)
    pairs = {
        "expected": own.accuracy.sel(lp_share=places, drop=True),
        "measured": found.mean("seed").sel(share=places, drop=True),
    }
    for name, pair in pairs.items():
        data[name] = pair.where(own.share.notnull()).mean("seed")
    return regret.described(data, "accuracy", plans)


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot losses (left), and expected against measured accuracies (right)."""
    left, right = axes.ravel()
    for place, (group, (colour, marker)) in enumerate(STYLES.items()):
        at, y = data.sel(group=group), [k + 0.24 * (place - 0.5) for k in range(len(SHOWN))]
        style = {"color": colour, "marker": marker, "markersize": 4, "linestyle": ""}
        left.errorbar(at["mean"], y, xerr=at.standard_error, capsize=1.5, linewidth=0.8, label=group, **style)
        tasks = data.sel(task=list(regret.GROUPS[group]))
        right.plot(tasks.measured.values.ravel(), tasks.expected.values.ravel(), alpha=0.7, **style)
    left.axvline(0, color="0.6", linewidth=0.6)
    left.set_yticks(range(len(SHOWN)), SHOWN)
    left.invert_yaxis()
    left.set(xlabel="accuracy lost", xticks=[0, 0.01, 0.02, 0.03])
    left.legend(loc="upper center", bbox_to_anchor=(0.4, 1.16), ncols=2)
    right.plot([0, 1], [0, 1], color="0.6", linewidth=0.6, zorder=0)
    right.set(xlim=(0.1, 1), ylim=(0.1, 1), xlabel="measured accuracy", ylabel="expected by the plan")


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(__file__, compute, draw, size=(6.6, 2.8), panels=(1, 2), reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
