"""The budget: how much of it probing needs in theory, and which share works best.

(a) Data and features that meet the assumptions, at fixed noise. A budget is then equivalent to time, so the
share that aligns every head before full fine-tuning (3.4 and 5.1, re-derived) grows as epsilon decreases.
Shares above 1 are not attainable. The zeroth-order flow aligns the heads in less time. The share with the
least loss is a different question: full fine-tuning from the start is best, or as good within errors, at
every budget, both for the diffusion and for DP-SGD with Poisson sampling. (b) The final loss as a function of
the share (bars of two standard errors), with the sandwich bounds (4b, new) of its zeroth-order approximation;
noise lowers the loss of full fine-tuning below them. (c) Test accuracy of real DP-SGD in percent, by budget
and share: the mean over the {tasks} tasks of the study, whose features do not meet the assumptions. A star
marks the best share of each budget: {best}. Rings mark the share that is best as simulated by the planner
with the body's last layer; it is {lost} points behind at most.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from figures.study import regret
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

SAMPLES, DIM, WIDTH, HEAD = 32, 8, 64, 0.05
SIGMA, CLIP, DELTA = 0.5, 0.5, 1e-3
EPSILONS = (0.3, 0.6, 1.0, 2.0, 4.0)
DRAWN = (0.6, 2.0)
STEPS, RATE = 400, 0.25
SETTINGS: output.Settings = {
    "shares": (5, 9),
    "budgets": (2, 5),
    "paths": (16, 400),
    "steps": (100, STEPS),
}
SOURCE = "private, last layer"


def compute(quick: bool = False) -> xr.Dataset:
    """Simulate final losses for several budgets and shares, and compute the shares that align every head."""
    import xarray as xr

    import bounds
    from langevin import Schedule, collapsed_features, orthogonally_separable, zeroth_order

    shares = np.linspace(0, 1, output.chosen(SETTINGS, quick)["shares"])
    epsilons = EPSILONS[1::2] if quick else EPSILONS
    problem = orthogonally_separable(SAMPLES, DIM, spread=0.1, angle=180, rng=0)
    weights = collapsed_features(problem, WIDTH, head_scale=HEAD, rng=0)
    aligned = bounds.alignment_time(problem, weights, clip=CLIP)
    flow = zeroth_order(
        problem, weights, Schedule.lp(time=aligned.time, clip=CLIP), observables=["misaligned"]
    )
    last = float(flow.time[np.flatnonzero(flow.misaligned.values > 0)[-1] + 1])
    rows = []
    for epsilon in epsilons:
        start = Schedule.fft(time=1.0, sigma=SIGMA, clip=CLIP)
        time = bounds.calibrate(start, "time", epsilon=epsilon, delta=DELTA).duration
        rows.append(_losses(problem, weights, time, shares, quick))
    data: Any = xr.concat(rows, "epsilon").assign_coords(epsilon=list(epsilons), side=["lower", "upper"])
    data["minimum"] = aligned.time / data.time
    data["flow"] = last / data.time
    return _described(
        data,
        minimum="share that aligns every head, by theory (3.4, 5.1)",
        flow="share that aligns every head in the zeroth-order flow",
    )


def collect(data: xr.Dataset) -> xr.Dataset:
    """Add the accuracies of the study's tasks, and the shares that the planner simulates as best."""
    tasks = list(regret.TASKS)
    found = (
        regret.accuracies().sel(task=tasks).mean(("seed", "task")).rename(epsilon="budget", share="lp_share")
    )
    plans = regret.planned().accuracy.sel(source=SOURCE, task=tasks).drop_vars("source")
    data = data.assign(accuracy=found, behind=100 * (found.max("lp_share") - found))
    data["planned"] = plans.mean(("seed", "task")).idxmax("lp_share").rename(epsilon="budget")
    return _described(
        data,
        accuracy="measured test accuracy, mean over tasks and seeds",
        behind="measured accuracy below that of the best share of the same budget, in points",
        planned="share with the highest accuracy over all tasks, simulated by the planner",
    )


def _described(data: xr.Dataset, **meanings: str) -> xr.Dataset:
    for name, meaning in meanings.items():
        data[name].attrs = {"long_name": meaning, "units": "1"}
    return data


def _losses(problem: Any, weights: Any, time: float, shares: np.ndarray, quick: bool) -> xr.Dataset:
    """Compute final losses at one budget: diffusion, DP-SGD, and sandwich bounds at zeroth order."""
    import xarray as xr

    import bounds
    from empirical import run_schedule
    from langevin import Schedule, euler_maruyama

    _, _, paths, steps = output.chosen(SETTINGS, quick).values()
    dt = time / steps
    found: dict[str, list[float]] = {"loss": [], "error": [], "dpsgd": [], "dpsgd_error": []}
    for share in shares:
        lp = round(share * steps)
        schedule = Schedule.lp_fft(lp_time=lp * dt, fft_time=(steps - lp) * dt, sigma=SIGMA, clip=CLIP)
        settings: dict[str, Any] = dict(dt=dt, paths=paths, rng=1, times=[schedule.duration])
        runs = {
            "": euler_maruyama(problem, weights, schedule, **settings),
            "dpsgd": run_schedule(problem, weights, schedule, sample_rate=RATE, **settings),
        }
        for name, run in runs.items():
            ends = run.loss.values[:, -1] / problem.samples
            found[name or "loss"].append(ends.mean())
            found[f"{name}_error".strip("_")].append(ends.std(ddof=1) / math.sqrt(len(ends)))
    curve = bounds.utility_curve(
        problem, weights, sigma=SIGMA, clip=CLIP, time=time, shares=shares, bounds=("sandwich",)
    )
    empty = np.full(len(shares), np.nan)
    band = curve.curves.get("sandwich")
    sides = [empty, empty] if band is None else [band.lower, band.upper]
    data = xr.Dataset(
        {
            **{name: ("share", values, {"units": "loss"}) for name, values in found.items()},
            "sandwich": (("side", "share"), np.array(sides) / problem.samples, {"units": "loss"}),
            "time": ((), time, {"units": "diffusion time"}),
        },
        {"share": shares},
    )
    return data


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    best = data.accuracy.idxmax("lp_share").values
    pairs = zip(best, data.budget.values, strict=True)
    lost = data.behind.sel(lp_share=data.planned, method="nearest")
    return {
        "tasks": len(regret.TASKS),
        "best": wording.listed(f"{share:g} at epsilon {budget:g}" for share, budget in pairs),
        "lost": f"{float(lost.max()):.1f}",
    }


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot minimum and best shares, utility curves, and the tasks."""
    draw_shares(ax[0], data)
    draw_losses(ax[1], data)
    draw_map(ax[2], data)


def draw_shares(ax: Any, data: xr.Dataset) -> None:
    """Plot the shares that align all heads, and those of least loss, over the budget."""
    ax.axhspan(1, 10, color="0.9", linewidth=0)
    ax.text(0.97, 0.97, "not attainable", transform=ax.transAxes, fontsize=6.5, ha="right", va="top")
    ax.plot(data.epsilon, data.minimum, "k--", label="aligns all heads, theory")
    ax.plot(data.epsilon, data.flow, color="0.5", label="aligns all heads, flow")
    dots: dict[str, Any] = {"color": plots.PURPLE, "linestyle": "", "clip_on": False}
    ax.plot(
        data.epsilon,
        data.loss.idxmin("share"),
        marker="o",
        markersize=7,
        markerfacecolor="none",
        label="least loss, diffusion",
        **dots,
    )
    ax.plot(data.epsilon, data.dpsgd.idxmin("share"), marker="x", label="least loss, DP-SGD", **dots)
    ax.set(xscale="log", ylim=(-0.02, 5), ylabel="share of the budget for probing", title="share by budget")
    ax.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    ax.set_yticks([0, 0.1, 1], ["0", "0.1", "1"])
    ax.set_xlabel(r"privacy budget $\varepsilon$")
    ax.set_xticks(data.epsilon.values, [f"{budget:g}" for budget in data.epsilon.values])
    ax.minorticks_off()
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2))


def draw_losses(ax: Any, data: xr.Dataset) -> None:
    """Plot the final loss over the share, for two budgets."""
    for epsilon, colour in zip(DRAWN, plots.LEVELS[::2], strict=True):
        part = data.sel(epsilon=epsilon)
        ax.fill_between(data.share, *part.sandwich, color=colour, alpha=0.4, linewidth=0.4)
        ax.errorbar(data.share, part.loss, 2 * part.error, color=colour, label=rf"$\varepsilon={epsilon:g}$")
        ax.errorbar(data.share, part.dpsgd, 2 * part.dpsgd_error, color=colour, linestyle=":", marker=".")
    ax.plot([], [], color=plots.OTHER, label="diffusion")
    ax.plot([], [], color=plots.OTHER, linestyle=":", marker=".", label="DP-SGD")
    ax.fill_between([], [], [], color="0.7", linewidth=0, label="between the bounds")
    ax.set(xlabel="share of the budget for probing", ylabel="final loss per sample", yscale="log")
    ax.set_title("loss by share")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.0)


def draw_map(ax: Any, data: xr.Dataset) -> None:
    """Plot accuracy over budget and share as a map, with the best shares."""
    behind = data.behind.transpose("lp_share", "budget")
    image = ax.imshow(behind, origin="lower", cmap="Purples", vmin=0, aspect="auto")
    # the darkest colour is one on which black is read
    image.set_clim(0, 2 * float(behind.max()))
    bar = ax.figure.colorbar(image, ax=ax, pad=0.03, aspect=30)
    bar.ax.set_ylim(0, float(behind.max()))
    bar.set_label("points below the best share of the budget", fontsize=7)
    places = range(behind.sizes["budget"])
    best = behind.argmin("lp_share").values
    for (i, j), accuracy in np.ndenumerate(data.accuracy.transpose(*behind.dims).values):
        weight = "bold" if i == best[j] else "normal"
        ax.text(j, i - 0.28, f"{100 * accuracy:.1f}", ha="center", va="center", fontsize=6, weight=weight)
    ax.plot(places, best + 0.14, "k*", linestyle="", markersize=5, label="best, measured")
    planned = [0.14 + int(np.argmin(abs(behind.lp_share.values - share))) for share in data.planned.values]
    ring: Any = {"marker": "o", "markerfacecolor": "none", "markersize": 9, "linestyle": ""}
    ax.plot(places, planned, color="black", label="best, simulated", **ring)
    ax.set_xticks(places, [f"{budget:g}" for budget in behind.budget.values])
    ax.set_yticks(range(behind.sizes["lp_share"]), [f"{share:g}" for share in behind.lp_share.values])
    ax.set(xlabel=r"privacy budget $\varepsilon$", ylabel="share of the budget for probing")
    ax.set_title("accuracy of DP-SGD, %")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, columnspacing=1.0)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.6, 3.4),
        panels=(1, 3),
        reads=regret.READS,
        collect=collect,
        thumbnail=2,
        settings=SETTINGS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
