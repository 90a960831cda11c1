"""A real backbone on real images: methods, shares, theory, and heads.

EfficientNet-Lite0 with ImageNet weights on {images:,} images of Fashion-MNIST, DP-SGD with {steps} steps,
each method tuned with the same {trials} trials per budget. (a) All of the network trains; means of {seeds}
seeds with standard errors. (b) Points of accuracy lost to the best share of probing (star), from full
fine-tuning (0) to probing alone (1). (c) The theory's two-layer network, whose first layer is the last
convolution, on frozen features: simulated by the engine (lines and bands), and as DP-SGD by torch (markers),
{two_seeds} seeds each, tuned separately; dashed, the forecast of probing from moments, new (8'(c)), with
square loss and steps and rate of its own choice. Theorems on the share say nothing here: their Assumption 3.2
fails. (d) Final accuracy by initial head at the same rates, of this network and of the small one in figure
`features`. At epsilon {low:g} probing reaches {below} points more than full fine-tuning of the whole network,
and {two_below} more than that of two layers.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from figures.study.study_features import FILE as SMALL
from figures.study.study_features import LARGE
from figures.study.study_real import FILE as TWO_LAYERS
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

GRID, FEATURES = "docs/study/lite0.nc", "docs/study/features-lite0.nc"
READS = (GRID, FEATURES, SMALL, TWO_LAYERS)
# label, colour, marker and line of each arm
ARMS: dict[str, tuple[str, str, str, str]] = {
    "lp": ("DP-LP", plots.METHODS["lp"], "s", "-"),
    "fft": ("DP-FFT", plots.METHODS["fft"], "o", "-"),
    "lp-fft 0.5": ("DP-LP-FFT, share .5", plots.METHODS["lp-fft"], "^", "-"),
    "fft-drop": ("DP-FFT, rate drops", plots.METHODS["fft"], "v", ":"),
    "lora": ("LoRA", plots.GOLD, "D", "--"),
    "bitfit": ("BitFiT", plots.PURPLE, "P", "--"),
}
BOTH = ("lp", "fft", "lp-fft 0.5")
# runs of the study of features that differ in the head alone, and their tick
HEADS = {
    "fft, zero head": "zero",
    "fft": "Gauss.",
    "fft, large head": f"Gauss.\nx {LARGE:g}",
    "lp-fft": "LP first",
    "lp-fft, large head": f"x {LARGE:g},\nLP first",
}


def compute(quick: bool = False) -> xr.Dataset:
    """Means over seeds with standard errors; there is no quick version, as the studies are read."""
    import xarray as xr

    from langevin.store import files

    full, two, watched, small = (
        files.load(output.ROOT / name) for name in (GRID, TWO_LAYERS, FEATURES, SMALL)
    )
    data = xr.Dataset()
    _add(data, "full", full.test_accuracy.drop_vars(("method", "share")), "test accuracy, whole network")
    grid = full.test_accuracy.sel(arm=np.isin(full.method.values, ("fft", "lp-fft", "lp")))
    shares = grid.assign_coords(lp_share=("arm", grid.share.values)).swap_dims(arm="lp_share")
    means = shares.drop_vars(("arm", "method", "share")).sortby("lp_share").mean("seed")
    meaning = "accuracy behind that of the best share of probing, in points"
    data["behind"] = (100 * (means.max("lp_share") - means)).assign_attrs(long_name=meaning, units="1")
    of = two.test_accuracy.sel(arm=list(BOTH)).drop_vars(("method", "share"))
    _add(data, "two", of.rename(arm="of"), "test accuracy, two-layer network on frozen features")
    data["forecast"] = two.forecast
    for name, run in (("head", watched), ("small_head", small)):
        ends = run.test_accuracy.isel(step=-1).sel(run=list(HEADS))
        _add(data, name, ends.rename(epsilon=f"{name}_epsilon").drop_vars("step"), "test accuracy, by head")
    for name, run in (("full", full), ("two", two.sel(how="DP-SGD"))):
        less = run.test_accuracy.sel(arm="lp", drop=True) - run.test_accuracy.sel(arm="fft", drop=True)
        _add(data, f"{name}_below", less.drop_vars(("method", "share"), errors="ignore"), "probing less fft")
        data.attrs[f"{name}_seeds"] = run.sizes["seed"]
    data.attrs["machine"] = f"{two.attrs['machine']}; docs/study/lite0.nc on a GPU"
    data.attrs["trials"] = int(full.trials.max())
    data.attrs["steps"] = json.loads(full.attrs["recipe"])["steps"]
    data.attrs["setting"] = json.dumps(json.loads(full.attrs["setting"]))
    return data


def _add(data: xr.Dataset, name: str, values: xr.DataArray, meaning: str) -> None:
    """Add the mean over seeds and its standard error."""
    data[name] = values.mean("seed").assign_attrs(long_name=meaning, units="1")
    error = values.std("seed", ddof=1) / np.sqrt(values.count("seed"))
    data[f"{name}_error"] = error.assign_attrs(long_name=f"standard error of: {meaning}", units="1")


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    at = data.isel(epsilon=0)
    return {
        "images": json.loads(data.attrs["setting"])["images"],
        "steps": data.attrs["steps"],
        "trials": data.attrs["trials"],
        "seeds": data.attrs["full_seeds"],
        "two_seeds": data.attrs["two_seeds"],
        "low": float(at.epsilon),
        "below": wording.points(at.full_below, at.full_below_error, signed=True),
        "two_below": wording.points(at.two_below, at.two_below_error, signed=True),
    }


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot methods, shares, theory with simulation and practice, and heads."""
    (methods, shares), (theory, heads) = axes
    budgets = data.epsilon.values
    for arm, (label, colour, marker, line) in ARMS.items():
        at: Any = {"color": colour, "marker": marker, "linestyle": line, "markersize": 3.5, "capsize": 1.5}
        of = data.sel(arm=arm)
        methods.errorbar(budgets, of.full, of.full_error, label=label, linewidth=0.9, **at)
    methods.set(title="whole network", ylabel="test accuracy")
    draw_shares(shares, data)
    for arm in BOTH:
        label, colour, marker, _ = ARMS[arm]
        simulated, trained = (data.sel(how=how, of=arm) for how in ("simulation", "DP-SGD"))
        low, high = simulated.two - simulated.two_error, simulated.two + simulated.two_error
        theory.fill_between(budgets, low, high, color=colour, alpha=0.25, linewidth=0)
        theory.plot(budgets, simulated.two, color=colour, linewidth=0.9)
        theory.errorbar(
            budgets,
            trained.two,
            trained.two_error,
            color=colour,
            marker=marker,
            markersize=3.5,
            linestyle="",
            capsize=1.5,
        )
    theory.plot(budgets, data.forecast, color="black", linestyle="--", linewidth=0.9, label="LP, forecast")
    theory.plot([], [], color="0.4", linewidth=0.9, label="simulated")
    theory.plot([], [], color="0.4", marker="o", markersize=3.5, linestyle="", label="DP-SGD")
    theory.set(title="two layers on frozen features", ylabel="test accuracy")
    theory.legend(loc="lower right")
    for ax in (methods, theory):
        ax.set(xscale="log", xlabel=r"privacy budget $\varepsilon$")
        ax.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        ax.minorticks_off()
    draw_heads(heads, data)
    handles, labels = methods.get_legend_handles_labels()
    methods.figure.legend(handles, labels, loc="outside lower center", ncols=3)


def draw_shares(ax: Any, data: xr.Dataset) -> None:
    """Plot points lost to the best share of probing as a map."""
    behind = data.behind.transpose("lp_share", "epsilon")
    ax.imshow(behind, origin="lower", cmap="Purples", vmin=0, vmax=10, aspect="auto")
    for (i, j), points in np.ndenumerate(behind.values):
        ax.text(j, i - 0.25, f"{points:.1f}", ha="center", va="center", fontsize=6)
    places = range(behind.sizes["epsilon"])
    ax.plot(places, behind.argmin("lp_share").values + 0.15, "k*", linestyle="", markersize=5)
    ax.set_xticks(places, [f"{budget:g}" for budget in behind.epsilon.values])
    ax.set_yticks(range(behind.sizes["lp_share"]), [f"{share:g}" for share in behind.lp_share.values])
    ax.set(xlabel=r"privacy budget $\varepsilon$", ylabel="share of probing", title="points of accuracy lost")


def draw_heads(ax: Any, data: xr.Dataset) -> None:
    """Plot final accuracy by head, of the real and of the small network."""
    kinds = (("head", "Lite0, Fashion-MNIST", plots.PURPLE), ("small_head", "MLP, glyphs", "0.55"))
    for name, label, colour in kinds:
        epsilons = data[f"{name}_epsilon"].values
        for k, (epsilon, marker) in enumerate(zip(epsilons, "o^", strict=False)):
            at = data.sel({f"{name}_epsilon": epsilon}).sel(run=list(HEADS))
            ax.errorbar(
                np.arange(len(HEADS)) + 0.12 * (2 * k - 1) + (0.06 if name == "head" else -0.06),
                at[name],
                at[f"{name}_error"],
                color=colour,
                marker=marker,
                markersize=3.5,
                linestyle="",
                capsize=1.5,
                label=f"{label}, $\\varepsilon$ = {epsilon:g}",
            )
    ax.set_xticks(range(len(HEADS)), list(HEADS.values()))
    bottom, top = ax.get_ylim()
    # room for the legend
    ax.set(title="initial head", ylabel="test accuracy", ylim=(bottom - 0.4 * (top - bottom), top))
    ax.legend(loc="lower left")


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__, compute, draw, size=(7.2, 5.4), panels=(2, 2), reads=READS, caption=caption, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
