"""What probing first gains over full fine-tuning from the start, by task and budget.

Test accuracy of real DP-SGD less that of full fine-tuning, paired by seed: means of {seeds} seeds with two
standard errors. LP is probing alone, and LP-FFT probing with a share of the budget before full fine-tuning.
Each method is tuned with the same number of trials. At the smallest budget, epsilon {low:g}, some share of
probing gains more than two standard errors on {small} of {tasks} tasks; at the largest, epsilon {high:g}, on
{large}. The most that probing alone gains is {most} points ({most_at}), and the most that it loses {least}
({least_at}).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from figures.study import regret, studies
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

COLUMNS = 3


def compute(quick: bool = False) -> xr.Dataset:
    """Compute gains over full fine-tuning by task, share of probing and budget."""
    return gains(regret.accuracies().sel(task=list(regret.TASKS)))


def gains(found: xr.DataArray) -> xr.Dataset:
    """Return means over the seeds of accuracies less that of full fine-tuning, and their standard errors.

    Parameters
    ----------
    found : DataArray
        Accuracy by ``share``, ``seed`` and others.
    """
    import xarray as xr

    gain = (found - found.sel(share=0.0, drop=True)).drop_sel(share=0.0)
    # complete seeds alone have values
    error = gain.std("seed", ddof=1) / gain.count("seed") ** 0.5
    data = xr.Dataset({"gain": gain.mean("seed"), "error": error, "seeds": gain.count("seed").max()})
    data.seeds.attrs = {"long_name": "number of seeds", "units": "1"}
    data.gain.attrs = {"long_name": "test accuracy less that of full fine-tuning, mean", "units": "1"}
    data.error.attrs = {"long_name": "its standard error, paired by seed", "units": "1"}
    return data


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    clear = (data.gain > 2 * data.error).any("share").sum("task")
    quoted = {"seeds": int(data.seeds), "tasks": data.sizes["task"], **extremes(data)}
    for name, size, place in (("small", "low", 0), ("large", "high", -1)):
        quoted[name] = int(clear.isel(epsilon=place)) or "none"
        quoted[size] = float(data.epsilon[place])
    return quoted


def extremes(data: xr.Dataset) -> dict[str, object]:
    """Return the most that probing alone gains and loses, and where."""
    alone = data.sel(share=1.0, drop=True).stack(place=("task", "epsilon"))
    quoted: dict[str, object] = {}
    for name, place in (("most", alone.gain.argmax("place")), ("least", alone.gain.argmin("place"))):
        at = alone.isel(place=place)
        quoted[name] = wording.points(abs(at.gain), at.error)
        quoted[f"{name}_at"] = f"{studies.title(at.task.item())}, epsilon {at.epsilon.item():g}"
    return quoted


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot one panel per task, with one row per budget that was measured."""
    axes, shares = np.atleast_2d(axes), data.share.values
    bars = [100 * (data.gain + sign * 2 * data.error) for sign in (-1, 1)]
    handles = {}
    for ax, task in zip(axes.flat, data.task.values, strict=True):
        part = data.sel(task=task).dropna("epsilon", how="all", subset=["gain"])
        for row, epsilon in enumerate(part.epsilon.values):
            measured = [share for share in shares if part.gain.sel(epsilon=epsilon, share=share).notnull()]
            for place, share in enumerate(measured):
                at = 100 * part.sel(epsilon=epsilon, share=share)
                colour = plots.METHODS["lp" if share == 1 else "lp-fft"]
                handles[share] = ax.errorbar(
                    at.gain,
                    -row + 0.17 * ((len(measured) - 1) / 2 - place),
                    xerr=2 * at.error,
                    color=colour,
                    # the larger the share, the darker
                    markerfacecolor=plots.paler(colour, float(share)),
                    marker="s" if share == 1 else "o",
                    markersize=4,
                    linewidth=0.8,
                    linestyle="",
                    label="LP" if share == 1 else f"LP-FFT, share {share:g}",
                )
        ax.axvline(0, color=plots.METHODS["fft"])
        rows = part.sizes["epsilon"]
        ax.set_yticks([-row for row in range(rows)], [f"{epsilon:g}" for epsilon in part.epsilon.values])
        ax.set(title=studies.title(task), ylim=(0.5 - rows, 0.5))
        # room for the ends of the bars
        ax.set_xlim(float(bars[0].min()) - 0.2, float(bars[1].max()) + 0.2)
        for row in range(1, rows):
            ax.axhline(0.5 - row, color="0.9", linewidth=0.5, zorder=0)
    for ax in axes[-1]:
        ax.set_xlabel("points of accuracy above FFT")
    for ax in axes[:, 0]:
        ax.set_ylabel(r"privacy budget $\varepsilon$")
    (line,) = axes.flat[0].plot([], [], color=plots.METHODS["fft"], label="FFT")
    entries = [line, *(handles[share] for share in sorted(handles))]
    axes.flat[0].figure.legend(handles=entries, loc="outside lower center", ncols=len(entries))


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 5.0),
        panels=(-(-len(regret.TASKS) // COLUMNS), COLUMNS),
        reads=regret.READS[1:],
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
