"""The best share of the budget for probing: simulated, and measured.

Dots: the share with the highest mean accuracy of real DP-SGD over the seeds, by task and budget; hollow: the
next best, joined by a line where the difference of the two is within two standard errors, paired by seed
({open} of {pairs} cases). Triangles: the best share as simulated by `empirical.plan_share`, in the mean over
the seeds, from the features of the private training images, with or without the body's last layer. The
simulation with the last layer is within one step of {step:g} of the measured share in {close} of {pairs}
cases. At epsilon {low:g} the measured share is larger than at epsilon {high:g} on {more} of {tasks} tasks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from figures.study import regret, studies
from figures.study.fig_rules import PLANS
from figures.tables import tab_shares
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

LAYER = "private, last layer"
MARKS = "^v"


def compute(quick: bool = False) -> xr.Dataset:
    """Collect the measured and simulated shares by task and budget."""
    import xarray as xr

    return tab_shares.collect(xr.Dataset())


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    shares = np.unique(data.measured)
    step = float(np.diff(shares).min())
    away = abs(data.simulated.sel(source=LAYER) - data.measured)
    return {
        "open": int((data.gain < 2 * data.gain_error).sum()),
        "pairs": data.measured.size,
        "step": step,
        "close": int((away <= step).sum()),
        "low": float(data.epsilon[0]),
        "high": float(data.epsilon[-1]),
        "more": int((data.measured[:, 0] > data.measured[:, -1]).sum()),
        "tasks": data.sizes["task"],
    }


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot one panel per budget, with one row per task."""
    sources = data.source.values
    for ax, epsilon in zip(axes.flat, data.epsilon.values, strict=True):
        at = data.sel(epsilon=epsilon)
        rows = -np.arange(data.sizes["task"]) + 0.22
        unsure = (at.gain < 2 * at.gain_error).values
        ends = at.measured.values[unsure], at.runner_up.values[unsure]
        ax.hlines(rows[unsure], *ends, color="0.3", linewidth=0.8, zorder=1)
        dots: dict[str, Any] = {"color": "black", "linestyle": "", "clip_on": False}
        ax.plot(at.runner_up, rows, "o", markerfacecolor="white", label="measured, next best", **dots)
        ax.plot(at.measured, rows, "o", label="measured, best", **dots)
        for place, source in enumerate(sources):
            ax.plot(
                at.simulated.sel(source=source),
                rows - 0.18 * (place + 1) - 0.05,
                MARKS[place % len(MARKS)],
                color=PLANS[place],
                markersize=3.5,
                clip_on=False,
                label=f"simulated, {source}",
            )
        for row in range(1, data.sizes["task"]):
            ax.axhline(0.5 - row, color="0.9", linewidth=0.5, zorder=0)
        ax.set(xlim=(-0.06, 1.06), ylim=(0.5 - data.sizes["task"], 0.5), yticks=[])
        ax.set(title=rf"$\varepsilon$ = {epsilon:g}", xlabel="share for probing")
        ax.set_xticks([0, 0.5, 1], ["0", ".5", "1"])
    names = [studies.title(task) for task in data.task.values]
    axes.flat[0].set_yticks(-np.arange(len(names)), names)
    axes.flat[0].tick_params(axis="y", length=0)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    axes.flat[0].figure.legend(handles, labels, loc="outside lower center", ncols=3)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    budgets = regret.measured(regret.TASKS[0]).sizes["epsilon"]
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 3.6),
        panels=(1, budgets),
        reads=regret.READS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
