"""The budget: how much of it probing needs in theory, and which share works best.

Left: data and features that meet the assumptions, at fixed noise. A budget is then equivalent to time, so
the share that aligns every head before full fine-tuning (3.4 and 5.1, re-derived) grows as epsilon
decreases. Shares above 1 are not attainable. The zeroth-order flow aligns the heads in less time. The share
with the least loss is a different question: full fine-tuning from the start is best, or as good within
errors, at every budget, both for the diffusion and for DP-SGD with Poisson sampling. Middle: the final loss
as a function of the share, with the sandwich bounds (4b, new) of its zeroth-order approximation; noise
lowers the loss of full fine-tuning below them. Right: test accuracy of real DP-SGD by budget and share, mean
over the six tasks of the study, whose features do not meet the assumptions, in points below the best share
(star). Rings mark the share that is best as simulated by the planner with the body's last layer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from figures.study import regret
from langevin.support import streams

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
    found = regret.accuracies().mean(("seed", "task")).rename(epsilon="budget", share="lp_share")
    plans = regret.planned().accuracy.sel(source=SOURCE, drop=True)
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


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot minimum and best shares, utility curves, and the tasks."""
    left, middle, right = ax.flat
    left.axhspan(1, 10, color="0.9", linewidth=0)
    left.text(0.97, 0.97, "not attainable", transform=left.transAxes, fontsize=6, ha="right", va="top")
    left.plot(data.epsilon, data.minimum, "k--", label="aligns all heads, theory")
    left.plot(data.epsilon, data.flow, color="0.5", label="aligns all heads, flow")
    for k, (name, size, label) in enumerate((("loss", 6, "diffusion"), ("dpsgd", 3, "DP-SGD"))):
        best = data[name].idxmin("share")
        of = f"least loss, {label}"
        left.plot(
            data.epsilon,
            best,
            color=f"C{k}",
            marker="os"[k],
            markersize=size,
            linestyle="",
            label=of,
        )
    left.set(xscale="log", ylim=(-0.02, 5), ylabel="share of the budget for probing")
    left.set_yscale("symlog", linthresh=0.1, linscale=0.5)
    left.set_yticks([0, 0.1, 1], ["0", "0.1", "1"])
    for k, epsilon in enumerate(DRAWN):
        part = data.sel(epsilon=epsilon)
        low, high = part.sandwich
        label = rf"$\varepsilon={epsilon:g}$"
        bounds = "zeroth order, between its bounds" if k == 0 else None
        middle.fill_between(data.share, low, high, color=f"C{k}", alpha=0.25, linewidth=0, label=bounds)
        middle.errorbar(data.share, part.loss, 2 * part.error, color=f"C{k}", label=f"diffusion, {label}")
        middle.errorbar(
            data.share,
            part.dpsgd,
            2 * part.dpsgd_error,
            color=f"C{k}",
            linestyle=":",
            marker=".",
            label=f"DP-SGD, {label}",
        )
    middle.set(xlabel="share of the budget for probing", ylabel="final loss per sample", yscale="log")
    left.set_xlabel(r"privacy budget $\varepsilon$")
    left.set_xticks(data.epsilon.values, [f"{budget:g}" for budget in data.epsilon.values])
    left.minorticks_off()
    for a in (left, middle):
        a.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=1, fontsize=6)
    draw_map(right, data)


def draw_map(ax: Any, data: xr.Dataset) -> None:
    """Plot accuracy over budget and share as a map, with the best shares."""
    behind = data.behind.transpose("lp_share", "budget")
    ax.imshow(behind, origin="lower", cmap="Purples", vmin=0, vmax=10, aspect="auto")
    places = range(behind.sizes["budget"])
    for (i, j), points in np.ndenumerate(behind.values):
        ax.text(j, i - 0.3, f"{points:.1f}", ha="center", va="center", fontsize=6)
    best = behind.argmin("lp_share").values
    ax.plot(places, best + 0.12, "k*", linestyle="", markersize=5, label="best, measured")
    planned = [0.12 + int(np.argmin(abs(behind.lp_share.values - share))) for share in data.planned.values]
    ring: Any = {"marker": "o", "markerfacecolor": "none", "markersize": 9, "linestyle": ""}
    ax.plot(places, planned, color="black", label="best, simulated", **ring)
    ax.set_xticks(places, [f"{budget:g}" for budget in behind.budget.values])
    ax.set_yticks(range(behind.sizes["lp_share"]), [f"{share:g}" for share in behind.lp_share.values])
    ax.set(xlabel=r"privacy budget $\varepsilon$", ylabel="share of the budget for probing")
    ax.set_title("points of accuracy lost")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=6)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 3.4),
        panels=(1, 3),
        reads=regret.READS,
        collect=collect,
        settings=SETTINGS,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
