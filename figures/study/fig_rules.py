"""Accuracy lost on each task, by planning the share of the budget and by fixed rules.

The loss is that of the table of tasks: test accuracy below that of the share that was best in hindsight, by
means over the seeds and over all budgets, in points, with two standard errors. Left: the six tasks that the
planner was designed on. Right: six that it was not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from figures.study import regret, studies
from figures.tables import tab_tasks
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

# apart from the colours of methods
PLANS = tuple(colour for colour in plots.CYCLE if colour != plots.SKY)
# of shares of probing
METHOD = {0.0: "fft", 1.0: "lp"}
PANELS = ("six earlier tasks", "six new tasks")


def compute(quick: bool = False) -> xr.Dataset:
    """Compute means and standard errors by task."""
    return tab_tasks.compute(quick)[["mean", "standard_error"]].sel(rule=list(tab_tasks.SHOWN))


def colours(rules: list[str]) -> dict[str, tuple[Any, Any]]:
    """Return line and fill of each rule: those of its method, the larger the share of probing the darker."""
    found: dict[str, tuple[Any, Any]] = {}
    for rule in rules:
        share = regret.RULES.get(rule)
        if share is None:
            line, depth = PLANS[len(found) % len(PLANS)], 1.0
        else:
            line, depth = plots.METHODS[METHOD.get(share, "lp-fft")], share or 1.0
        found[rule] = line, plots.paler(line, depth)
    return found


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot one row per task and one dot per rule."""
    rules = [str(rule) for rule in data.rule.values]
    shades = colours(rules)
    for ax, group in zip(axes, PANELS, strict=True):
        tasks = regret.GROUPS[group]
        for place, rule in enumerate(rules):
            at = 100 * data.sel(task=list(tasks), rule=rule)
            ax.errorbar(
                at["mean"],
                [0.7 * (0.5 - (place + 0.5) / len(rules)) - row for row in range(len(tasks))],
                xerr=2 * at.standard_error,
                color=shades[rule][0],
                markerfacecolor=shades[rule][1],
                marker="s" if rule in regret.RULES else "o",
                markersize=3.5,
                linewidth=0.8,
                linestyle="",
                label=rule,
            )
        ax.set_yticks([-row for row in range(len(tasks))], [studies.title(task) for task in tasks])
        ax.tick_params(axis="y", length=0)
        for row in range(1, len(tasks)):
            ax.axhline(0.5 - row, color="0.9", linewidth=0.5, zorder=0)
        ax.axvline(0, color="0.5", linewidth=0.7)
        ax.set(ylim=(0.5 - len(tasks), 0.5), xlabel="points of accuracy lost", title=group)
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=4)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    size = (7.2, 4.2)
    return output.run(__file__, compute, draw, size=size, panels=(1, 2), reads=regret.READS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
