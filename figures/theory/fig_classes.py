"""Ten classes: a zero head distorts nothing without noise, a Gaussian head does.

Data and features that meet Assumptions 3.1' and 3.2', softmax loss, clipped (means of {sets} data sets and
heads, bands of one standard error). (a) At zeroth order, full fine-tuning with a Gaussian head distorts
neurons (3.3', new). A zero head distorts none: the answer of the theory for K classes (new) to the paper's
open question on the head. (b) With noise a zero head distorts neurons too: {zero} of them at the end, where a
Gaussian head distorts {gaussian}. Probing first distorts fewest ({probed}), because it also lengthens the
heads that the noise has to turn. (c) The loss at zeroth order of the first data set, between its bounds
(new): 4b'(a) for the zero head, where they nearly meet, and 4b'(b) for a Gaussian head that is {smaller:g}
times smaller, where they hold but soon say little. With the Gaussian head of (a) and (b) some neurons may
leave their cones, and no bound holds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

CLASSES, SAMPLES, DIM, WIDTH = 10, 50, 16, 100
TIME, PROBING, SIGMA, CLIP, DT = 2.0, 0.5, 0.1, 1.0, 2e-3
SMALL = 0.1
# label, colour, line style
RUNS = {
    "gaussian": ("Gaussian head", plots.METHODS["fft"], "-"),
    "probed": ("Gaussian head, probed first", plots.METHODS["lp-fft"], "-"),
    "zero": ("zero head", plots.PURPLE, "--"),
    "small": ("Gaussian head / 10", plots.GREY, ":"),
}
DISTORTING = ("gaussian", "probed", "zero")
BOUNDED = ("zero", "small")
SETTINGS: output.Settings = {"data sets": (2, 10), "paths of each": (4, 16)}


def compute(quick: bool = False) -> xr.Dataset:
    """Simulate flow and diffusion from each head, and bound the loss of the flow."""
    import xarray as xr

    import bounds
    from langevin import (
        Schedule,
        Weights,
        collapsed_features,
        euler_maruyama,
        orthogonally_separable,
        zero_head,
        zeroth_order,
    )

    seeds, paths = output.chosen(SETTINGS, quick).values()
    times = np.linspace(0, TIME, 51)
    parts, bands = [], []
    for seed in range(seeds):
        problem = orthogonally_separable(SAMPLES, DIM, classes=CLASSES, loss="softmax", rng=seed)
        drawn = collapsed_features(problem, WIDTH, rng=seed)
        heads = {"zero": zero_head(WIDTH, outputs=CLASSES), "small": SMALL * drawn.v}
        for name in RUNS:
            weights = Weights(drawn.W, heads.get(name, drawn.v))
            probing = PROBING if name == "probed" else 0.0
            schedule = Schedule.lp_fft(lp_time=probing, fft_time=TIME - probing, sigma=SIGMA, clip=CLIP)
            flow = zeroth_order(problem, weights, schedule, times=times)
            run = euler_maruyama(problem, weights, schedule, dt=DT, paths=paths, rng=seed, times=times).mean(
                "path"
            )
            both = {"flow_distorted": flow.distorted, "flow_loss": flow.loss, "distorted": run.distorted}
            part = xr.Dataset({key: values.drop_attrs() for key, values in both.items()})
            parts.append(part.expand_dims(run=[name], seed=[seed]))
            if seed == 0:
                band = bounds.sandwich(problem, weights, schedule, times)
                sides = np.where(band.valid, [band.lower, band.upper], np.nan)
                bands.append(xr.DataArray(sides, dims=("side", "time")))
    runs: Any = xr.combine_by_coords(parts).sel(run=list(RUNS))
    data = xr.Dataset(coords={"run": list(RUNS), "time": times, "side": ["lower", "upper"]})
    data["sandwich"] = xr.concat(bands, "run").assign_attrs(
        long_name="bounds of the zeroth-order loss, first data set", units="loss"
    )
    data["flow_loss"] = runs.flow_loss.isel(seed=0, drop=True).assign_attrs(
        long_name="training loss of the zeroth-order flow, first data set", units="loss"
    )
    for name, solver in (("flow_distorted", "zeroth-order flow"), ("distorted", "diffusion")):
        words = f"share of distorted neurons, {solver}, mean over {seeds} data sets and heads"
        data[name] = runs[name].mean("seed").assign_attrs(long_name=words, units="1")
        error = runs[name].std("seed", ddof=1) / seeds**0.5
        data[f"{name}_error"] = error.assign_attrs(long_name=f"standard error of: {words}", units="1")
    data.time.attrs = {"long_name": "diffusion time", "units": "time"}
    return data


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    end = data.distorted.isel(time=-1)
    shares = {name: wording.between(end.sel(run=name)) for name in DISTORTING}
    return {"sets": wording.counts(data)["data sets"], "smaller": 1 / SMALL, **shares}


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot distortion at zeroth order and with noise, and the loss between its bounds."""
    left, middle, right = axes.flat
    time = data.time.values
    for ax, values in ((left, "flow_distorted"), (middle, "distorted")):
        for name in DISTORTING:
            label, colour, style = RUNS[name]
            mean, error = data[values].sel(run=name), data[f"{values}_error"].sel(run=name)
            ax.fill_between(time, mean - error, mean + error, color=colour, alpha=0.2, linewidth=0)
            ax.plot(time, mean, color=colour, linestyle=style, label=label)
        ax.set(ylim=(-0.02, 0.55), ylabel="share of distorted neurons")
    for name in BOUNDED:
        label, colour, style = RUNS[name]
        at = data.sel(run=name)
        right.fill_between(time, *at.sandwich, color=colour, alpha=0.25, linewidth=0)
        right.plot(time, at.flow_loss, color=colour, linestyle=style, label=label)
    left.set_title("zeroth order")
    middle.set_title(rf"diffusion, $\sigma$ = {SIGMA:g}")
    right.set(yscale="log", ylim=(0.1, 300), ylabel="training loss (sum over samples)")
    right.set_title("zeroth order, bounds")
    for ax in axes.flat:
        ax.set(xlim=(0, TIME), xlabel="diffusion time")
    draw_key(left.figure)


def draw_key(figure: Any) -> None:
    """Explain lines and shades below the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    runs: Any = RUNS.values()
    lines: list[Any] = [Line2D([], [], color=c, linestyle=s, label=text) for text, c, s in runs]
    lines.append(Patch(color=plots.GREY, alpha=0.3, linewidth=0, label="between the bounds (c)"))
    figure.legend(handles=lines, loc="outside lower center", ncols=len(lines))


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 3.0),
        panels=(1, 3),
        thumbnail=1,
        settings=SETTINGS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
