"""Private linear probing forecast without a trial, against DP-SGD.

(a) The expected training loss along steps of Poisson batches (8'c, new), and the mean of {paths} simulated
runs (band of two standard errors), on random ReLU features of digits. The diffusion (5a', new) has no
sampling noise and is too low. (b, c) The loss and the accuracy on held-out samples that
`bounds.probing_forecast` predicts from the features, for the learning rate, number of steps, batch and
clipping norm that it chooses (lines), and those of DP-SGD through Opacus with these settings (points, means
of {seeds} runs, bars of two standard errors). The settings clip {clipped} of the gradients at most. Sources:
{sources}.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from figures.study.study_forecast import FILE, digits
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

WIDTH, SAMPLES, RATE, STEPS = 48, 500, 1 / 16, 200
LABELS = {"test_loss": "test loss per sample", "test_accuracy": "test accuracy"}
SETTINGS: output.Settings = {"paths": (32, 512)}


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses along the steps: simulated, and expected."""
    import xarray as xr

    import bounds
    from langevin import Problem, Schedule, Weights, euler_maruyama

    A, y, *_ = digits(WIDTH, SAMPLES)
    problem = Problem(A, np.eye(10)[y], "linear", "square")
    weights = Weights(np.eye(WIDTH), np.zeros((WIDTH, 10)))
    largest = bounds.lp_stability(problem, weights, sample_rate=RATE).largest_dt
    dt = largest / 2
    schedule = Schedule.lp(time=STEPS * dt, sigma=0.02, sample_rate=RATE)
    times = dt * np.arange(STEPS + 1)
    paths = output.chosen(SETTINGS, quick)["paths"]
    run: Any = euler_maruyama(problem, weights, schedule, dt=dt, paths=paths, rng=0, times=times)
    full = Schedule.lp(time=STEPS * dt, sigma=0.02)
    loss = run.loss / SAMPLES
    chain = bounds.lp_expected_loss(problem, weights, schedule, times, dt=dt)
    diffusion = bounds.lp_expected_loss(problem, weights, full, times)
    data = xr.Dataset(
        {
            "chain": ("step", chain.upper / SAMPLES),
            "diffusion": ("step", diffusion.upper / SAMPLES),
            "run": ("step", loss.mean("path").values),
            "run_error": ("step", loss.std("path", ddof=1).values / math.sqrt(paths)),
        },
        {"step": np.arange(STEPS + 1)},
    )
    meanings = {
        "chain": "expected training loss per sample, of the chain with batches (8'c)",
        "diffusion": "expected training loss per sample, of the diffusion (5a')",
        "run": "mean training loss per sample of simulated runs",
        "run_error": "standard error of the mean training loss per sample",
    }
    for name, meaning in meanings.items():
        data[name].attrs = {"long_name": meaning, "units": "loss"}
    data.step.attrs = {"long_name": "steps of DP-SGD", "units": "1"}
    return data


def collect(data: xr.Dataset) -> xr.Dataset:
    """Add the committed forecasts and runs."""
    from langevin.store import files

    return data.assign(files.load(output.ROOT / FILE).data_vars)


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    sources = [
        f"{source} ({samples:,} samples, {features:,} features)"
        for source, samples, features in zip(
            data.source.values, data.samples.values, data.features.values, strict=True
        )
    ]
    return {
        "paths": wording.counts(data)["paths"],
        "seeds": data.sizes["seed"],
        "clipped": f"{100 * float(data.clipped.mean('seed').max()):.1f} %",
        "sources": wording.listed(sources),
    }


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot the loss along the steps, and forecasts over budgets."""
    left, middle, right = axes.flat
    low, high = data.run - 2 * data.run_error, data.run + 2 * data.run_error
    left.fill_between(data.step, low, high, color=plots.METHODS["lp"], alpha=0.3, linewidth=0)
    left.plot(data.step, data.chain, color=plots.METHODS["lp"], label="8'(c)")
    left.plot(
        data.step, data.diffusion, color=plots.OTHER, linestyle=":", label="diffusion, no sampling noise"
    )
    left.plot(data.step, data.run, color=plots.darker(plots.METHODS["lp"]), linestyle=":", label="simulated")
    left.set(xlabel="step", ylabel="training loss per sample", title="digits, Poisson batches")
    for ax, name in ((middle, "test_loss"), (right, "test_accuracy")):
        for k, source in enumerate(data.source.values):
            at = data.sel(source=source)
            error = at[name].std("seed", ddof=1) / math.sqrt(at.sizes["seed"])
            ax.plot(
                data.epsilon,
                at[f"forecast_{name}"],
                color=plots.CYCLE[k],
                label=str(source).replace(", ", ",\n"),
            )
            ax.errorbar(
                data.epsilon,
                at[name].mean("seed"),
                2 * error,
                color=plots.CYCLE[k],
                marker="o",
                markersize=3,
                linestyle="",
                capsize=2,
            )
        ax.set(xscale="log", xlabel=r"privacy budget $\varepsilon$", ylabel=LABELS[name])
        ax.set_xticks(data.epsilon.values, [f"{epsilon:g}" for epsilon in data.epsilon.values])
        ax.minorticks_off()
    middle.plot([], [], "k-", label="forecast")
    middle.errorbar([], [], [], color="k", marker="o", markersize=3, linestyle="", capsize=2, label="DP-SGD")
    middle.set_title("held-out loss")
    right.set_title("held-out accuracy")
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.24)}
    left.legend(**below)
    middle.legend(handles=middle.get_legend_handles_labels()[0][-2:], **below)
    right.legend(**below)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 3.2),
        panels=(1, 3),
        thumbnail=2,
        settings=SETTINGS,
        reads=[FILE],
        collect=collect,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
