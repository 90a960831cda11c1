"""Accuracy lost by planning the share of the budget, and by fixed rules.

The loss is the test accuracy below that of the share that was best in hindsight, in points, as in the table
of the same title: means over the seeds with two standard errors. (a) By task, over all budgets. (b) By
budget, over all tasks. Over everything, {best} loses least ({best_loss} points) and {worst} most
({worst_loss}); the fixed rule that loses least is {fixed} ({fixed_loss}).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output, wording
from figures.study import regret, studies
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

# apart from the colours of methods
PLANS = tuple(colour for colour in plots.CYCLE if colour != plots.SKY)
# of shares of probing
METHOD = {0.0: "fft", 1.0: "lp"}
EVERY = {"task": "all tasks", "budget": "all budgets"}


def compute(quick: bool = False) -> xr.Dataset:
    """Compute means and standard errors by task and budget, over all tasks, and over all budgets."""
    import xarray as xr

    of = {"task": list(regret.TASKS)}
    values = regret.lost(regret.accuracies().sel(of), regret.planned().share.sel(of))
    tasks = [EVERY["task"], *regret.TASKS]
    budgets = {**{f"ε = {e:g}": [e] for e in values.epsilon.values}, EVERY["budget"]: values.epsilon.values}
    rows = []
    for task in tasks:
        part = values if task == EVERY["task"] else values.sel(task=[task])
        cells = [regret.mean_and_error(part.sel(epsilon=list(chosen))) for chosen in budgets.values()]
        rows.append(xr.concat(cells, "budget"))
    data = xr.concat(rows, "task").assign_coords(task=tasks, budget=list(budgets))
    for name in map(str, data.data_vars):
        data[name].attrs = {"long_name": f"accuracy lost: {name}".replace("_", " "), "units": "1"}
    return data


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    found: Any = data.sel(EVERY)
    fixed = found.sel(rule=[rule for rule in found.rule.values if rule in regret.RULES])
    quoted: dict[str, object] = {}
    for name, part, pick in (
        ("best", found, "idxmin"),
        ("worst", found, "idxmax"),
        ("fixed", fixed, "idxmin"),
    ):
        at = part.sel(rule=getattr(part["mean"], pick)("rule"))
        quoted[name] = at.rule.item()
        quoted[f"{name}_loss"] = wording.points(at["mean"], at.standard_error)
    return quoted


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
    """Plot losses by task (left) and by budget (right), with one row each and one dot per rule."""
    rules = [str(rule) for rule in data.rule.values if data.seeds.sel(rule=rule).max() > 0]
    shades = colours(rules)
    for ax, by in zip(axes, EVERY, strict=True):
        (other,) = set(EVERY) - {by}
        part = data.sel({other: EVERY[other]})
        for row, value in enumerate(part[by].values):
            for place, rule in enumerate(rules):
                at = 100 * part.sel({by: value, "rule": rule})[["mean", "standard_error"]]
                ax.errorbar(
                    at["mean"],
                    -row + 0.7 * (0.5 - (place + 0.5) / len(rules)),
                    xerr=2 * at.standard_error,
                    color=shades[rule][0],
                    markerfacecolor=shades[rule][1],
                    marker="s" if rule in regret.RULES else "o",
                    markersize=3.5,
                    linewidth=0.8,
                    linestyle="",
                    label=rule if row == 0 else None,
                )
        names = [studies.title(value) for value in part[by].values]
        ax.set_yticks([-row for row in range(len(names))], names)
        ax.tick_params(axis="y", length=0)
        for row in range(1, len(names)):
            ax.axhline(0.5 - row, color="0.9", linewidth=0.5, zorder=0)
        ax.axvline(0, color="0.5", linewidth=0.7)
        ax.set(
            ylim=(0.5 - len(names), 0.5), xlabel="points of accuracy lost", title=f"by {by}, {EVERY[other]}"
        )
    handles, labels = axes[0].get_legend_handles_labels()
    axes[0].figure.legend(handles, labels, loc="outside lower center", ncols=3)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 4.6),
        panels=(1, 2),
        reads=regret.READS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
