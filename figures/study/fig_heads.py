"""Initialisation of the new head: small, large, zero, or class prototypes.

Above: full fine-tuning of data and features that meet Assumptions 3.1 and 3.2 (means of {sets} data sets,
bands of one standard error). Without noise, a zero head or a head of class prototypes distorts no neuron. A
Gaussian head does, and for longer the larger it is, as the theory predicts for misaligned heads. Noise causes
distortion with every head, least with prototypes. The loss decreases fastest with the largest head, which
distorts most. Below: DP-SGD on digits rotated by 20 degrees, where each head is tuned with the same trials
({seeds} seeds, standard errors; the noise of the prototypes costs a tenth of the zCDP budget). At epsilon
{low:g} full fine-tuning gains {zero} points of accuracy with a zero head and {prototype} with prototypes,
paired by seed, which offsets the gain of probing first. At larger budgets no head improves on the default by
more than the standard error. The large head costs {large} points at epsilon {low:g}, and {large_probed} with
probing first. This is an answer to an open question of the paper, new here, on one small task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output, wording
from figures.study.studies import FOLDER, paths
from langevin.support import plots, streams

if TYPE_CHECKING:
    import numpy as np
    import xarray as xr

    from langevin import Problem

# study, label, colour and line style
HEADS: dict[str, tuple[str, str, str, str]] = {
    "small": ("heads-small", "Gaussian / 4", plots.LEVELS[0], "-"),
    "default": ("digits-rotated", "Gaussian", plots.LEVELS[1], "-"),
    "large": ("heads-large", "Gaussian x 4", plots.LEVELS[2], "-"),
    "zero": ("heads-zero", "zero", plots.GOLD, "--"),
    "prototype": ("heads-prototype", "prototypes", plots.CYCLE[3], "-."),
}
ARMS = {"lp": ("DP-LP", "s"), "fft": ("DP-FFT", "o"), "lp-fft 0.5": ("DP-LP-FFT", "^")}
EPSILONS = (0.3, 1.0, 3.0)
SAMPLES, DIM, WIDTH = 32, 8, 64
TIME, SIGMA, CLIP, DT = 0.5, 0.2, 1.0, 1e-3
SETTINGS: output.Settings = {"data sets": (2, 20), "paths of each": (4, 16)}
READS = paths(study for study, *_ in HEADS.values())


def compute(quick: bool = False) -> xr.Dataset:
    """Simulate loss and distortion by head."""
    import numpy as np
    import xarray as xr

    from langevin import (
        Schedule,
        Weights,
        collapsed_features,
        euler_maruyama,
        orthogonally_separable,
        zeroth_order,
    )

    seeds, count = output.chosen(SETTINGS, quick).values()
    times = np.linspace(0, TIME, 51)
    parts = []
    for seed in range(seeds):
        problem = orthogonally_separable(SAMPLES, DIM, rng=seed)
        W = collapsed_features(problem, WIDTH, rng=seed).W
        for head in HEADS:
            weights = Weights(W, start(head, problem, W, seed))
            schedule = Schedule.fft(time=TIME, sigma=SIGMA, clip=CLIP)
            common: dict[str, Any] = dict(dt=DT, times=times, reduce="none")
            flow = zeroth_order(problem, weights, schedule, **common)
            run = euler_maruyama(problem, weights, schedule, paths=count, rng=seed, **common)
            names = ["loss", "distorted", "misaligned"]
            both = xr.Dataset(
                {f"flow_{name}": flow[name].drop_attrs() for name in names}
                | {name: run[name].mean("path").drop_attrs() for name in names}
            )
            parts.append(both.expand_dims(head=[head], seed=[seed]))
    runs: Any = xr.combine_by_coords(parts).sel(head=list(HEADS))
    data = xr.Dataset(coords={"head": list(HEADS)})
    meanings = {
        "loss": ("training loss", "loss"),
        "distorted": ("share of neurons whose own-class pre-activation is below its start", "1"),
        "misaligned": ("share of neurons with a misaligned head", "1"),
    }
    for name, (meaning, units) in meanings.items():
        for prefix, solver in (("", "diffusion"), ("flow_", "zeroth-order flow")):
            values = runs[prefix + name]
            words = f"{meaning}, {solver}, mean over {seeds} data sets and heads"
            data[prefix + name] = values.mean("seed").assign_attrs(long_name=words, units=units)
            error = values.std("seed", ddof=1) / seeds**0.5
            words = f"standard error of: {words}"
            data[f"{prefix}{name}_error"] = error.assign_attrs(long_name=words, units=units)
    data.time.attrs = {"long_name": "diffusion time", "units": "time"}
    return data


def collect(data: xr.Dataset) -> xr.Dataset:
    """Add the accuracies of the committed studies by head."""
    import xarray as xr

    from empirical import summary
    from langevin.store import files

    found = []
    for study, *_ in HEADS.values():
        grid = files.load(output.ROOT / FOLDER / f"{study}.nc").sel(arm=list(ARMS), epsilon=list(EPSILONS))
        found.append(grid[["test_accuracy"]].drop_vars(("method", "share")))
    grids: Any = xr.concat(found, data["head"])
    data.attrs["seeds"] = grids.sizes["seed"]
    accuracy, gain = summary(grids), summary(grids - grids.sel(head="default", drop=True))
    words = "mean test accuracy, DP-SGD on rotated digits"
    data["accuracy"] = accuracy["mean"].assign_attrs(long_name=words, units="1")
    words = f"standard error of: {words}"
    data["accuracy_error"] = accuracy.standard_error.assign_attrs(long_name=words, units="1")
    words = "mean gain in test accuracy over the default head, paired by seed"
    data["gain"] = gain["mean"].assign_attrs(long_name=words, units="1")
    words = f"standard error of: {words}"
    data["gain_error"] = gain.standard_error.assign_attrs(long_name=words, units="1")
    return data


def start(head: str, problem: Problem, W: np.ndarray, seed: int) -> np.ndarray:
    """Return a head by its name in `HEADS`; the Gaussian heads of a seed differ only in scale."""
    from langevin import gaussian_head, prototype_head, zero_head

    if head == "zero":
        return zero_head(len(W))
    if head == "prototype":
        return prototype_head(problem, W)
    scale = {"small": 0.25, "default": 1.0, "large": 4.0}[head]
    return gaussian_head(len(W), scale * len(W) ** -0.5, rng=seed)


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    low = min(EPSILONS)

    def gain(head: str, arm: str, sign: int = 1) -> str:
        at = data.sel(head=head, arm=arm, epsilon=low)
        return wording.points(sign * at.gain, at.gain_error)

    return {
        "sets": wording.counts(data)["data sets"],
        "seeds": data.attrs["seeds"],
        "low": low,
        "zero": gain("zero", "fft"),
        "prototype": gain("prototype", "fft"),
        "large": gain("large", "fft", -1),
        "large_probed": gain("large", "lp-fft 0.5", -1),
    }


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot simulation where the theory applies (above) and DP-SGD on digits (below)."""
    time = data.time.values
    panels = (
        ("flow_distorted", "share of distorted neurons", "zeroth-order flow"),
        ("distorted", "share of distorted neurons", f"diffusion, $\\sigma$ = {SIGMA:g}"),
        ("loss", "training loss (sum over samples)", f"diffusion, $\\sigma$ = {SIGMA:g}"),
    )
    for ax, (name, label, title) in zip(axes[0], panels, strict=True):
        for head, (_, words, colour, style) in HEADS.items():
            at, error = data[name].sel(head=head), data[f"{name}_error"].sel(head=head)
            ax.fill_between(time, at - error, at + error, color=colour, alpha=0.2, linewidth=0)
            ax.plot(time, at, color=colour, linestyle=style, label=words)
        ax.set(xlim=(0, TIME), xlabel="diffusion time", ylabel=label, title=title)
    for ax in axes[0, :2]:
        ax.set_ylim(-0.02, 0.56)
    axes[0, 2].set_yscale("log")
    for ax, epsilon in zip(axes[1], EPSILONS, strict=True):
        for place, (arm, (label, marker)) in enumerate(ARMS.items()):
            at = data.sel(arm=arm, epsilon=epsilon)
            colour = plots.method_colour(label)
            for x in range(len(HEADS)):
                ax.errorbar(
                    x + 0.22 * (place - 1),
                    at.accuracy[x],
                    at.accuracy_error[x],
                    color=colour,
                    marker=marker,
                    markersize=3.5,
                    linestyle="",
                    capsize=1.5,
                    linewidth=0.8,
                )
            ax.plot([], [], color=colour, marker=marker, markersize=3.5, linestyle="", label=label)
        words = [label.replace("Gaussian", "Gauss.").replace(" ", "\n", 1) for _, label, *_ in HEADS.values()]
        words = [word.replace("prototypes", "proto-\ntypes") for word in words]
        ax.set_xticks(range(len(words)), words)
        ax.set(title=f"DP-SGD, digits, $\\varepsilon$ = {epsilon:g}", ylabel="test accuracy")
    heads, methods = (ax.get_legend_handles_labels() for ax in (axes[0, 0], axes[1, 0]))
    keys = [[*one, *other] for one, other in zip(heads, methods, strict=True)]
    axes[0, 0].figure.legend(*keys, loc="outside lower center", ncols=8, columnspacing=1.2)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 4.8),
        panels=(2, 3),
        settings=SETTINGS,
        reads=READS,
        collect=collect,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
