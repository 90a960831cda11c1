"""Feature quality during private fine-tuning, and why it declines.

Glyphs of new classes, an MLP pre-trained on other classes, and {steps} steps of DP-SGD at the learning rates
tuned in docs/study; means of {seeds} seeds, bands of one standard error. Above: nearest-neighbour accuracy of
the features, with that of raw pixels and of a random network ({random}), and similarity to the pre-trained
features. At epsilon {low:g} DP-FFT changes the accuracy by {fft} points and DP-LP-FFT by {lp_fft}; its
fine-tuning also has a rate {slower} times smaller. Below: the decline by cause. The same noise with a zero
head costs {noise} points. The random head without noise changes it by {head}, and at {scale:g} times the
default scale by {large}. So noise distorts the features here. The paper's account, in which a random head
first distorts the features and training then repairs them, is not observed: without noise (at the rates of
epsilon {high:g}) features improve from the start, and with the large head after a dip that is no larger than
its standard error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output, wording
from figures.study.study_features import FILE, LARGE, TUNED
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

METHODS = {name: (f"DP-{plots.NAMES[name]}", plots.METHODS[name]) for name in ("fft", "lp-fft", "lp")}
CAUSES = {
    "total": ("DP-FFT", plots.METHODS["fft"], "-"),
    "from_noise": ("noise, zero head", plots.PURPLE, "--"),
    "from_head": ("head, no noise", plots.GOLD, "-."),
    "interaction": ("both together", "0.55", ":"),
    "from_training": ("training alone", plots.OTHER, (0, (1, 1))),
}
NOISELESS = {
    "fft, zero head, no noise": ("zero head", plots.PURPLE, ":"),
    "fft, no noise": ("default head", plots.METHODS["fft"], "-"),
    "fft, large head, no noise": (f"head x {LARGE:g}", plots.GOLD, "-."),
    "lp-fft, large head, no noise": (f"head x {LARGE:g}, LP first", plots.METHODS["lp-fft"], "--"),
}
HEADS = {"default": "", "large": ", large head"}
# a random network this close below raw pixels is drawn
NEAR = 0.1


def compute(
    quick: bool = False, *, file: str = FILE, tuned: str = TUNED, neither: str | None = None
) -> xr.Dataset:
    """Compute means over seeds with standard errors, and changes since the start by cause.

    There is no quick version: the measurements are read from the study. ``neither`` names a run for the
    argument of `empirical.causes`.
    """
    import xarray as xr

    from empirical import causes
    from langevin.store import files

    runs = files.load(output.ROOT / file)
    count = runs.sizes["seed"] ** 0.5
    rates = files.load(output.ROOT / tuned).lr.sel(epsilon=runs.epsilon.values[0])
    slower = float(rates.sel(arm="fft") / rates.sel(arm="lp-fft 0.5"))
    about = {"machine": runs.attrs["machine"], "seeds": runs.sizes["seed"], "slower": slower}
    data = xr.Dataset(attrs=about)
    change = runs.knn_accuracy - runs.knn_accuracy.isel(step=0, drop=True)
    change.attrs = {"long_name": "change of the nearest-neighbour accuracy since the start", "units": "1"}
    for name, values in {**runs.data_vars, "change": change}.items():
        meaning = values.attrs["long_name"]
        data[name] = values.mean("seed").assign_attrs(long_name=meaning, units="1")
        error = values.std("seed", ddof=1) / count
        data[f"{name}_error"] = error.assign_attrs(long_name=f"standard error of: {meaning}", units="1")

    def caused(end: str, epsilon: float) -> xr.Dataset:
        at = runs.sel(epsilon=epsilon)
        rest = None if neither is None else at.sel(run=neither, drop=True)
        return causes(*(at.sel(run=name, drop=True) for name in _controls(end)), neither=rest)

    parts = [
        xr.concat([caused(end, epsilon) for epsilon in runs.epsilon.values], runs.epsilon)
        for end in HEADS.values()
    ]
    found = xr.concat(parts, "head", combine_attrs="override").assign_coords(head=list(HEADS))
    return data.merge(found)


def _controls(end: str) -> tuple[str, str, str]:
    """Return the names of a run, of the same run with a zero head, and of the same run without noise."""
    return f"fft{end}", "fft, zero head", f"fft{end}, no noise"


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    low, high = data.epsilon.values[[0, -1]]
    end = data.isel(step=-1).sel(epsilon=low)

    def change(run: str, name: str = "change", sign: int = 1, **at: Any) -> str:
        part = end.sel(run=run, **at) if run else end.sel(**at)
        return wording.points(sign * part[name], part[f"{name}_error"], signed=sign > 0)

    return {
        "steps": int(data.step[-1]),
        "seeds": data.attrs["seeds"],
        "random": f"{float(data.baseline.sel(kind='random')):.2f}",
        "low": float(low),
        "high": float(high),
        "fft": change("fft"),
        "lp_fft": change("lp-fft"),
        "slower": f"{data.attrs['slower']:.1f}",
        "noise": change("", "from_noise", -1, head="default"),
        "head": change("", "from_head", head="default"),
        "scale": LARGE,
        "large": change("", "from_head", head="large"),
    }


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot quality over steps (above) and its change by cause (below)."""
    steps = data.step.values
    low, high = data.epsilon.values[[0, -1]]

    def band(ax: Any, mean: Any, error: Any, colour: str, **style: Any) -> None:
        ax.fill_between(steps, mean - error, mean + error, color=colour, alpha=0.25, linewidth=0)
        ax.plot(steps, mean, color=colour, **style)

    kinds = data.baseline.to_series()
    for ax, epsilon in zip(axes[0, :2], (low, high), strict=True):
        for name, (label, colour) in METHODS.items():
            at, style = data.sel(epsilon=epsilon, run=name), {"lp": (0, (1, 1))}.get(name, "-")
            band(ax, at.knn_accuracy, at.knn_accuracy_error, colour, label=label, linestyle=style)
        ax.axhline(kinds["pixels"], color="black", linewidth=0.8, linestyle="--", label="raw pixels")
        if kinds["pixels"] - kinds["random"] < NEAR:
            ax.axhline(kinds["random"], color="black", linewidth=0.8, linestyle=":", label="random network")
        else:  # far below the axis
            ax.plot([], [], " ", label=f"random network: {kinds['random']:.2f}")
        ax.set(title=f"$\\varepsilon$ = {epsilon:g}", ylabel="nearest-neighbour accuracy")
    below: dict[str, Any] = {"loc": "upper left", "bbox_to_anchor": (-0.35, -0.1), "columnspacing": 1.0}
    axes[0, 0].legend(ncols=2, **below)
    for epsilon, style in ((low, "-"), (high, "--")):
        for name, (_, colour) in METHODS.items():
            at = data.sel(epsilon=epsilon, run=name)
            band(axes[0, 2], at.cka, at.cka_error, colour, linestyle=style)
        axes[0, 2].plot([], [], color="0.3", linestyle=style, label=f"$\\varepsilon$ = {epsilon:g}")
    axes[0, 2].set(title="similarity to the pre-trained", ylabel="CKA")
    axes[0, 2].legend(ncols=2, **below)
    for ax, head in zip(axes[1, :2], data["head"].values, strict=True):
        at = data.sel(epsilon=low, head=head)
        for name, (label, colour, style) in CAUSES.items():
            if name not in at:
                continue
            band(ax, at[name], at[f"{name}_error"], colour, linestyle=style, label=label)
        words = "default head" if head == "default" else f"head x {LARGE:g}"
        ax.set(title=f"$\\varepsilon$ = {low:g}, {words}", ylabel="change of accuracy, by cause")
    below["bbox_to_anchor"] = (-0.35, -0.22)
    axes[1, 0].legend(ncols=2, **below)
    for name, (label, colour, style) in NOISELESS.items():
        at = data.sel(epsilon=high, run=name)
        band(axes[1, 2], at.change, at.change_error, colour, linestyle=style, label=label)
    axes[1, 2].set(title="without noise", ylabel="change of accuracy")
    axes[1, 2].legend(ncols=2, **below)
    for ax in axes.flat:
        ax.set(xlim=(0, steps[-1]), xlabel="step" if ax in axes[1] else None)
    for ax in axes[1]:
        ax.axhline(0, color="0.6", linewidth=0.6, zorder=0)
    for row in ((0, 0), (1, 0)):
        first, second = axes[row], axes[row[0], 1]
        lows, highs = zip(first.get_ylim(), second.get_ylim(), strict=True)
        for ax in (first, second):
            ax.set_ylim(min(lows), max(highs))


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 5.0),
        panels=(2, 3),
        reads=[FILE, TUNED],
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
