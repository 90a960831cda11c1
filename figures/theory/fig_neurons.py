"""Neurons in the plane: a misaligned head distorts features, probing first aligns it.

Above: {neurons} ReLU neurons and two classes of samples (arrows). Each neuron is in the cone of its class, as
in Assumptions 3.1 and 3.2 of the paper; hollow neurons start with a head of the wrong sign. In DP-FFT such a
neuron moves away from its class until its head changes sign, and returns only in part (below, left: to {low}
of its pre-activation, then {end} at the end). In DP-LP-FFT the head changes sign while the features are
frozen, and from then on the zeroth-order flow distorts nothing. This agrees with Theorems 3.3 and 3.4 of the
paper. The lower bound and the probing time after which all heads are aligned are re-derived here and hold for
the zeroth-order flow. The flow satisfies both; many of the noisy paths (bands: the middle {middle} of
{paths}) fall below the bound. With the same noise, clipping and total time, both strategies spend the same
budget.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

    from langevin import Problem, Schedule, Weights

# in degrees: class means and samples around them; neurons around the mean of their class; signs of heads
MEANS, SPREAD, SAMPLES = {1: 22.5, -1: 157.5}, 8.0, 5
NEURONS, ALIGNED = (-33.0, -8.0, 12.0, 53.0), (-1, 1, 1, -1)
HEAD = 0.35
TIME, SHARE, SIGMA, CLIP, DT = 2.4, 0.4, 0.08, 1.0, 0.01
SHOWN = 3
SETTINGS: output.Settings = {"noisy paths": (16, 200)}
STRATEGY = {name: plots.method_colour(name) for name in ("DP-FFT", "DP-LP-FFT")}


def compute(quick: bool = False) -> xr.Dataset:
    """Compute paths of features and heads, of the zeroth-order flow and of the diffusion."""
    import xarray as xr

    import bounds
    from langevin import Schedule
    from langevin.engine import noise

    problem, weights = scene()
    found = bounds.distortion(problem, weights, clip=CLIP)
    noisy = dict(sigma=SIGMA, clip=CLIP)
    schedules = {
        "DP-FFT": Schedule.fft(time=TIME, **noisy),
        "DP-LP-FFT": Schedule.lp_fft(lp_time=SHARE * TIME, fft_time=(1 - SHARE) * TIME, **noisy),
    }
    key, paths = noise.key(0), output.chosen(SETTINGS, quick)["noisy paths"]
    parts = []
    for schedule in schedules.values():
        flow = walk(problem, weights, schedule)
        walks = [walk(problem, weights, schedule, key, path) for path in range(paths)]
        W, v = (np.stack([w[i] for w in walks]) for i in (0, 1))
        both = [(flow[0], flow[1]), (W, v)]
        measures = {}
        for name, (features, heads) in zip(("", "noisy_"), both, strict=True):
            z = _own_preactivation(problem, features, found.classes)
            some = found.misaligned
            relative = (z / z[..., :1, :])[..., some].mean(-1)
            head = (found.classes * heads)[..., some].mean(-1)
            over = ("time",) if not name else ("quantile", "time")
            for measure, values in (("preactivation", relative), ("head", head)):
                drawn = values if not name else np.quantile(values, [0.1, 0.5, 0.9], axis=0)
                measures[name + measure] = (over, drawn)
        parts.append(
            xr.Dataset(
                measures
                | {
                    "features": (("time", "neuron", "coordinate"), flow[0]),
                    "heads": (("time", "neuron"), flow[1]),
                    "noisy_features": (("path", "time", "neuron", "coordinate"), W[:SHOWN]),
                    "noisy_heads": (("path", "time", "neuron"), v[:SHOWN]),
                }
            )
        )
    data = xr.concat(parts, "strategy").assign_coords(
        strategy=list(schedules), time=DT * np.arange(parts[0].sizes["time"]), quantile=[0.1, 0.5, 0.9]
    )
    data["inputs"] = (("sample", "coordinate"), problem.X)
    data["labels"] = ("sample", problem.y)
    data["classes"] = ("neuron", found.classes)
    data["misaligned"] = ("neuron", found.misaligned)
    start = _own_preactivation(problem, weights.W, found.classes)
    data["guaranteed"] = ((), (1 - found.largest_drop / start)[found.misaligned].mean())
    data["alignment_time"] = ((), float(bounds.alignment_time(problem, weights, clip=CLIP).sharp))
    _describe(data, paths)
    return data


def scene() -> tuple[Problem, Weights]:
    """Return data and weights that satisfy Assumptions 3.1 and 3.2; every second neuron is misaligned."""
    from langevin import Problem, Weights

    X = np.concatenate([_unit(mean + np.linspace(-SPREAD, SPREAD, SAMPLES)) for mean in MEANS.values()])
    y = np.repeat([float(s) for s in MEANS], SAMPLES)
    # the second class mirrors the first
    W = np.concatenate([_unit(np.array(NEURONS) * s + (0 if s > 0 else 180)) for s in MEANS])
    v = np.concatenate([s * HEAD * np.array(ALIGNED, float) for s in MEANS])
    return Problem(X, y), Weights(W, v)


def walk(
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    key: tuple[int, int] | None = None,
    path: int = 0,
    dt: float = DT,
) -> tuple[np.ndarray, np.ndarray]:
    """Return features and heads along a path of `euler_maruyama`'s full chain, or of the flow without a key.

    Returns
    -------
    tuple of ndarray, shapes (steps + 1, h, d) and (steps + 1, h)
    """
    from langevin import Weights
    from langevin.engine import noise

    W, v = weights.W.copy(), weights.v.copy()
    kept = [(W, v)]
    for phase in schedule:
        for _ in range(round(phase.time / dt)):
            z = problem.X @ W.T
            norms = problem.gradient_norms(Weights(W, v), phase.method)
            clipped = 1.0 if phase.clip is None else phase.clip / np.maximum(norms, phase.clip)
            pull = -clipped * problem.residuals(problem.activate(z) @ v)
            move = v[:, None] * ((problem.slope(z) * pull[:, None]).T @ problem.X)
            step = pull @ problem.activate(z)
            shake = np.zeros_like(W), np.zeros_like(v)
            if key is not None:
                draws = noise.weight_noise(key, path, len(kept) - 1, *W.shape)
                shake = tuple(phase.sigma * np.sqrt(2 * dt) * draw for draw in draws)
            if phase.method == "fft":
                W = W + dt * move + shake[0]
            v = v + dt * step + shake[1]
            kept.append((W, v))
    features, heads = zip(*kept, strict=True)
    return np.stack(features), np.stack(heads)


def _unit(degrees: np.ndarray) -> np.ndarray:
    turn = np.radians(degrees)
    return np.stack([np.cos(turn), np.sin(turn)], axis=-1)


def _own_preactivation(problem: Problem, W: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Return the mean of ``w_j . x`` over the neuron's own class; shape (..., h)."""
    means = np.stack([problem.X[problem.y == s].mean(0) for s in classes])
    return (W * means).sum(-1)


def _describe(data: xr.Dataset, paths: int) -> None:
    meanings = {
        "features": ("features w_j along the zeroth-order flow", "parameter"),
        "heads": ("heads v_j along the zeroth-order flow", "parameter"),
        "noisy_features": ("features w_j along paths of the diffusion", "parameter"),
        "noisy_heads": ("heads v_j along paths of the diffusion", "parameter"),
        "preactivation": ("own-class pre-activation of the misaligned neurons over that at the start", "1"),
        "head": ("s_j v_j, mean over the neurons that start misaligned", "parameter"),
        "inputs": ("samples x_i", "input"),
        "labels": ("labels y_i", "1"),
        "classes": ("class s_j whose cone a neuron starts in", "1"),
        "misaligned": ("whether s_j v_j < 0 at the start", "1"),
        "guaranteed": ("lower bound of the pre-activation, by bounds.distortion", "1"),
        "alignment_time": (
            "probing time after which all heads are aligned, by bounds.alignment_time",
            "time",
        ),
    }
    for name in ("preactivation", "head"):
        text, units = meanings[name]
        meanings["noisy_" + name] = (f"{text}: quantiles over {paths} paths of the diffusion", units)
    for name, (text, units) in meanings.items():
        data[name].attrs = {"long_name": text, "units": units}
    data.time.attrs = {"long_name": "diffusion time", "units": "time"}


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    whole = data.preactivation.sel(strategy="DP-FFT")
    outer = data["quantile"].values[[0, -1]]
    return {
        "neurons": data.sizes["neuron"],
        "low": wording.between(whole.min("time")),
        "end": wording.between(whole.isel(time=-1)),
        "middle": f"{100 * (outer[1] - outer[0]):.0f} %",
        "paths": wording.counts(data)["noisy paths"],
    }


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot neurons in the plane (above), own-class pre-activation and heads over time (below)."""
    for ax, strategy in zip(axes[0], data.strategy.values, strict=True):
        part = data.sel(strategy=strategy)
        draw_plane(ax, data, strategy)
        for neuron in range(data.sizes["neuron"]):
            colour = plots.CLASSES[int(data.classes[neuron])]
            bad = bool(data.misaligned[neuron])
            for path in range(SHOWN):
                x, y = part.noisy_features.values[path, :, neuron].T
                ax.plot(x, y, color=colour, linewidth=0.4, alpha=0.5)
            x, y = part.features.values[:, neuron].T
            ax.plot(x, y, color="black", linewidth=1.2, linestyle="-")
            fill = "white" if bad else colour
            ax.plot(x[0], y[0], "o", color=colour, markerfacecolor=fill, markersize=5, zorder=4)
            ax.plot(x[-1], y[-1], "s", color="black", markersize=3, zorder=4)
    draw_labels(axes[0, 0], data.sel(strategy=data.strategy[0]))
    draw_curves(axes[1], data)


def draw_labels(ax: Any, part: xr.Dataset) -> None:
    """Name what is drawn in a plane, next to one of each: text, its place, and that of what it names."""
    start, end = part.features.values[0], part.features.values[-1]
    right, wrong, middle = (np.flatnonzero(part.classes == s)[k] for s, k in ((1, 1), (1, 3), (-1, 2)))
    labels = (
        ("starts with a head\nof the wrong sign", (1.25, 1.0), start[wrong]),
        ("starts with a head\nof the right sign", (0.04, -0.76), start[right]),
        ("zeroth-order flow", (1.5, -0.45), end[right]),
        (f"{SHOWN} noisy paths", (-1.45, 0.95), part.noisy_features.values[0, -1, middle]),
        ("samples", (-0.3, -0.2), part.inputs.values[part.labels.values < 0].mean(0) / 2),
    )
    line = {"arrowstyle": "-", "linewidth": 0.5, "color": "0.4", "shrinkB": 3}
    for text, place, named in labels:
        ax.annotate(text, named, place, fontsize=6.5, ha="center", va="center", arrowprops=line)


def draw_curves(axes: Any, data: xr.Dataset) -> None:
    """Plot own-class pre-activation and heads of the misaligned neurons, with the theory's bounds."""
    axes[0].get_gridspec().set_height_ratios([1.5, 1])
    for ax, name in zip(axes, ("preactivation", "head"), strict=True):
        for strategy, colour in STRATEGY.items():
            part = data.sel(strategy=strategy)
            low, _, high = part["noisy_" + name].values
            ax.fill_between(data.time, low, high, color=colour, alpha=0.2, linewidth=0)
            ax.plot(data.time, part[name], color=colour)
        ax.axvline(SHARE * TIME, color="0.6", linewidth=0.7, linestyle=":")
        ax.set(xlabel="diffusion time", xlim=(0, TIME))
    dashed = dict(color="black", linewidth=0.9, linestyle="--")
    axes[0].axhline(data.guaranteed, **dashed)
    axes[0].set_ylabel("own-class pre-activation\nof misaligned neurons, / start")
    axes[1].axhline(0, color="0.4", linewidth=0.7)
    axes[1].axvline(data.alignment_time, **dashed)
    axes[1].set_ylabel("$s_j v_j$ of neurons\nthat start misaligned")
    axes[1].text(
        float(data.alignment_time) - 0.04,
        0.97,
        "all heads\naligned,\nbound",
        ha="right",
        va="top",
        transform=axes[1].get_xaxis_transform(),
        fontsize=6.5,
    )
    for ax, name, shift in zip(axes, ("preactivation", "head"), (0.03, 0.02), strict=True):
        last = data[name].isel(time=-1)
        for strategy, colour in STRATEGY.items():
            place = TIME, float(last.sel(strategy=strategy)) + shift
            ax.text(*place, strategy, color=plots.darker(colour), fontsize=7, ha="right")
    axes[0].text(0.02, float(data.guaranteed) - 0.02, "lower bound, DP-FFT", fontsize=6.5, va="top")


def draw_plane(ax: Any, data: xr.Dataset, title: str, reach: float = 2.0) -> None:
    """Plot cones and samples."""
    angles = np.degrees(np.arctan2(*data.inputs.values.T[::-1]))
    for s, colour in plots.CLASSES.items():
        own, other = angles[data.labels.values == s], angles[data.labels.values != s]
        # w . x_i > 0 on its own class and < 0 on the other
        turns = np.linspace(0, 360, 3601)
        products = np.cos(np.radians(turns[:, None] - np.concatenate([own, other])))
        signs = np.concatenate([np.ones(len(own)), -np.ones(len(other))])
        inside = np.radians(turns[(products * signs > 0).all(1)])
        inside = np.sort(np.where(inside > np.pi, inside - 2 * np.pi, inside) if s == 1 else inside)
        x, y = 3 * np.cos(inside), 3 * np.sin(inside)
        ax.fill(np.concatenate([[0], x]), np.concatenate([[0], y]), color=colour, alpha=0.1, linewidth=0)
        ax.text(
            0.97 * s * reach,
            -0.85,
            f"cone of class {s:+d}",
            color=colour,
            ha="right" if s > 0 else "left",
            fontsize=6.5,
        )
        for x, y in data.inputs.values[data.labels.values == s]:
            ax.annotate("", (x, y), (0, 0), arrowprops=dict(arrowstyle="->", color=colour, lw=0.6, alpha=0.7))
    ax.set(xlim=(-reach, reach), ylim=(-0.9, 1.2), aspect="equal", title=title, xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set_visible(False)


def animate(axes: Any, data: xr.Dataset, progress: float) -> None:
    """Plot neurons at one time with their past, hollow while misaligned, and the curves at that time."""
    k = round(progress * (data.sizes["time"] - 1))
    now = float(data.time[k])
    draw_curves(axes[1], data)
    for ax in axes[1]:
        ax.axvline(now, color="black", linewidth=1.5)
    for ax, strategy in zip(axes[0], data.strategy.values, strict=True):
        part = data.sel(strategy=strategy)
        probing = strategy == "DP-LP-FFT" and now < SHARE * TIME
        draw_plane(
            ax, data, f"{strategy}, time {now:.2f}: {'head alone trains' if probing else 'all trains'}"
        )
        for neuron, s in enumerate(data.classes.values):
            colour = plots.CLASSES[int(s)]
            x, y = part.noisy_features.values[0, : k + 1, neuron].T
            ax.plot(x, y, color=colour, linewidth=0.5, alpha=0.6)
            x, y = part.features.values[: k + 1, neuron].T
            ax.plot(x, y, color="black")
            fill = colour if s * part.heads.values[k, neuron] >= 0 else "white"
            ax.plot(x[-1], y[-1], "o", color=colour, markerfacecolor=fill, markersize=6)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(8.6, 5.0),
        panels=(2, 2),
        animate=animate,
        settings=SETTINGS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
