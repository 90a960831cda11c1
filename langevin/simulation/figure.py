"""A run, or a comparison of methods, as a figure: drawn from what is saved, and nothing else."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.model.schedule import Phase
from langevin.simulation import facts, saved, words
from langevin.store import atomic
from langevin.support import plots
from langevin.support.plots import End, label_ends, method_of

if TYPE_CHECKING:
    import xarray as xr

# the thinner lines on top, where lines coincide
_SHARES = {"dead": 3.0, "misaligned": 2.0, "distorted": 1.2}
_LARGEST_DRAWN = 1e300
_DISTANCE = "squared distance\nto the zeroth order"
_LOSS = "training loss (sum over samples)"
_STYLES = (":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 3)))
# of the run and of the zeroth-order path
_NOISY = "diffusion: mean and 90 % of paths"
_ZEROTH = "zeroth order: without noise"
_BAND = "proved bounds of the zeroth order"
_PHASE = "full fine-tuning begins"
_PHASES = "the next phase begins"


def plot(run: xr.Dataset) -> np.ndarray:
    """Draw a run: its loss, its distance to the zeroth-order path, and the state of its neurons.

    A run that the command saved has bounds and the zeroth-order path in its figure, too; a comparison
    (``--compare``) is drawn with its methods in one panel.

    Parameters
    ----------
    run : xarray.Dataset
        From `langevin.euler_maruyama` or `langevin.zeroth_order`, or loaded from a saved file.

    Returns
    -------
    ndarray of matplotlib.axes.Axes
        The panels; ``axes[0].figure`` is the figure.

    Examples
    --------
    >>> from langevin import Schedule, collapsed_features, euler_maruyama, orthogonally_separable, plot
    >>> problem = orthogonally_separable(samples=20, dim=5, rng=0)
    >>> weights = collapsed_features(problem, width=8, rng=0)
    >>> schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.2, sigma=0.1, clip=1.0)
    >>> axes = plot(euler_maruyama(problem, weights, schedule, dt=0.01, paths=3, rng=0))
    >>> [ax.get_ylabel() for ax in axes[::2]]
    ['training loss (sum over samples)', 'share of neurons']
    """
    import matplotlib.pyplot as plt

    if "loss" not in run or "time" not in run.dims:
        raise ValueError(
            f"run must have a loss over time, got {', '.join(map(str, run.data_vars)) or 'nothing'}"
        )
    # room between the labels of a panel and the next panel
    with plt.style.context(plots.STYLE | {"figure.constrained_layout.w_pad": 0.1}):
        found = {method: _drawable(part) for method, part in saved.split(run).items()}
        panels = _compared(found) if saved.DIM in run.dims else _single(*found.popitem())
        figure, axes = plt.subplots(1, len(panels), figsize=(3.3 * len(panels), 3.2), squeeze=False)
        for ax, panel in zip(axes[0], panels, strict=True):
            ax.set(xlabel="diffusion time", xlim=(0, float(run.time[-1]) or None))
            panel(ax)
        plots.letters(axes[0])
        _key(figure, axes[0])
        figure.suptitle(_title(run), fontsize=7.5)
    return axes[0]


def draw(run: xr.Dataset, path: Path) -> None:
    """Draw a run into a file.

    Raises
    ------
    OSError
        If the file cannot be written; an old one stays.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure = plot(run)[0].figure
    try:
        with atomic.replacing(path) as temporary, plt.style.context(plots.STYLE):
            figure.savefig(temporary)
    finally:
        plt.close(figure)


Panel = Callable[[Any], Any]


def _single(method: str, run: xr.Dataset) -> list[Panel]:
    """Return the panels of one method."""
    colour = plots.METHODS.get(method, plots.OTHER)

    def loss(ax: Any) -> None:
        ax.set(ylabel=_LOSS, yscale=_scale(run.loss))
        if "zeroth_loss_lower" in run and bool(run.zeroth_loss_lower.notnull().any()):
            sides = (run.zeroth_loss_lower, run.zeroth_loss_upper)
            ax.fill_between(run.time, *sides, color="0.5", alpha=0.3, linewidth=0, label=_BAND)
        _curve(ax, run.loss, colour)
        if "zeroth_loss" in run:
            ax.plot(run.time, run.zeroth_loss, color=plots.OTHER, linestyle="--", label=_ZEROTH)

    def distance(ax: Any) -> None:
        ax.set(ylabel=_DISTANCE, yscale=_scale(run.squared_distance))
        mean = _curve(ax, run.squared_distance, colour)
        ends = [End(_last(mean), "simulated", colour)]
        for style, (name, upper) in zip(_STYLES, _bounds(run), strict=False):
            ax.plot(run.time, upper, color=plots.OTHER, linestyle=style)
            ends.append(End(_last(upper), name, plots.OTHER))
        top = float(run.squared_distance.max())
        if 0 < top < np.inf:
            ax.set_ylim(bottom=top * 1e-4)
        label_ends(ax, ends)

    def neurons(ax: Any) -> None:
        ends = []
        shown = [name for name in _SHARES if name in run]
        for place, name in enumerate(shown):
            colour = plots.SHARES[name]
            mean = _curve(ax, run[name], colour, _SHARES[name], band=False)
            if f"zeroth_{name}" in run:
                at = plots.dashes(place, len(shown))
                ax.plot(run.time, run[f"zeroth_{name}"], color=colour, linestyle=at, label=_ZEROTH)
            ends.append(End(_last(mean), name, colour))
        ax.set(ylabel="share of neurons", ylim=(-0.02, None))
        label_ends(ax, ends)

    panels = [loss]
    panels += [distance] if "squared_distance" in run and run.squared_distance.notnull().any() else []
    panels += [neurons] if any(name in run for name in _SHARES) else []
    return [lambda ax, fill=fill: (fill(ax), _phases(ax, run)) for fill in panels]


def _compared(runs: dict[str, xr.Dataset]) -> list[Panel]:
    """Return the panels of several methods: loss, and neurons where some method records them."""

    def panel(name: str, **axes: Any) -> Panel:
        def fill(ax: Any) -> None:
            ends = []
            for place, (method, run) in enumerate(runs.items()):
                _phases(ax, run)
                if name not in run:
                    continue
                colour = plots.METHODS[method]
                mean = _curve(ax, run[name], colour, plots.WIDTHS[method])
                if f"zeroth_{name}" in run:
                    style: Any = {"color": plots.darker(colour), "linewidth": 1, "label": _ZEROTH}
                    dashes = plots.dashes(place, len(runs))
                    ax.plot(run.time, run[f"zeroth_{name}"], linestyle=dashes, **style)
                ends.append(End(_last(mean), plots.NAMES[method], colour))
            ax.set(**axes)
            label_ends(ax, ends, size=8)

        return fill

    panels = [panel("loss", ylabel=_LOSS, yscale=_scale(*(run.loss for run in runs.values())))]
    for name, label in {"distorted": "distorted neurons", "misaligned": "misaligned heads"}.items():
        if any(name in run for run in runs.values()):
            panels.append(panel(name, ylabel=f"share of {label}", ylim=(-0.02, None)))
    distances = [run.squared_distance for run in runs.values() if "squared_distance" in run]
    if len(panels) == 1 and distances:
        panels.append(panel("squared_distance", ylabel=_DISTANCE, yscale=_scale(*distances)))
    return panels


def _drawable(run: xr.Dataset) -> xr.Dataset:
    """Return a run without numbers that axes do not reach."""
    numbers = [name for name, values in run.data_vars.items() if values.dtype.kind == "f"]
    return run.assign({name: run[name].where(abs(run[name]) < _LARGEST_DRAWN) for name in numbers})


def _curve(
    ax: Any, values: xr.DataArray, colour: str, width: float = 1.5, *, band: bool = True
) -> xr.DataArray:
    """Draw and return the mean of paths, with the middle 90 % of them; dashed, a run without paths."""
    if "path" not in values.dims:
        ax.plot(values.time, values, color=colour, linewidth=width, linestyle="--", label=_ZEROTH)
        return values
    mean = values.mean("path")
    if values.sizes["path"] > 1 and band:
        # where no path is left there is nothing to draw
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            low, high = values.quantile([0.05, 0.95], "path").values
        ax.fill_between(values.time, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.plot(values.time, mean, color=colour, linewidth=width, label=_NOISY)
    return mean


def _scale(*values: xr.DataArray) -> str:
    """Return a logarithmic scale where there is something to draw on it."""
    return "log" if any(bool((array > 0).any()) for array in values) else "linear"


def _phases(ax: Any, run: xr.Dataset) -> None:
    """Mark the starts of the later phases."""
    phases = saved.describe(run)[0]
    known = method_of(phase["method"] for phase in phases) == "lp-fft" and len(phases) == 2
    label = _PHASE if known else _PHASES
    for start in np.cumsum([phase["time"] for phase in phases])[:-1]:
        ax.axvline(start, color="0.6", linewidth=0.8, linestyle=(0, (1, 1)), zorder=0, label=label)


def _last(values: xr.DataArray) -> float:
    """Return the last value that is a number."""
    found = values.values[np.isfinite(values.values)]
    return float(found[-1]) if found.size else 0.0


def _bounds(run: xr.Dataset) -> list[tuple[str, xr.DataArray]]:
    """Return the bounds on the distance that hold somewhere; those that coincide have a line in common."""
    if "squared_distance_upper" not in run:
        return []
    found: list[tuple[str, xr.DataArray]] = []
    for name in map(str, run.statement.values):
        upper = run.squared_distance_upper.sel(statement=name, drop=True)
        # at the start they all are 0
        if not upper[1:].notnull().any():
            continue
        same = [i for i, (_, other) in enumerate(found) if np.allclose(other, upper, 1e-2, 0, equal_nan=True)]
        if same:
            others, _ = found[same[0]]
            found[same[0]] = (f"{others}; {name}", upper)
        else:
            found.append((name, upper))
    return found


def _key(figure: Any, axes: Any) -> None:
    """Write below the panels what solid, dashed and shaded mean, of what is drawn."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    drawn = {label for ax in axes for label in ax.get_legend_handles_labels()[1]}
    handles = {
        _NOISY: (Patch(color=plots.OTHER, alpha=0.2, linewidth=0), Line2D([], [], color=plots.OTHER)),
        _ZEROTH: Line2D([], [], color=plots.OTHER, linestyle="--"),
        _BAND: Patch(color="0.5", alpha=0.3, linewidth=0),
        **dict.fromkeys((_PHASE, _PHASES), Line2D([], [], color="0.6", linewidth=0.8, linestyle=(0, (1, 1)))),
    }
    shown = {label: handle for label, handle in handles.items() if label in drawn}
    figure.legend(list(shown.values()), list(shown), loc="outside lower center", ncols=len(shown), fontsize=7)


def _title(run: xr.Dataset) -> str:
    """Say what was run; of a comparison, how the methods differ at the end."""
    if saved.DIM in run.dims:
        try:
            said = words.comparison(json.loads(run.attrs["report"])["methods"])
            return "\n".join(said).replace("+-", "±")
        except (KeyError, ValueError, TypeError):
            return ""
    phases, problem = saved.describe(run)
    names = problem.get("classes") or ()
    classes = f"{facts.class_line(names)}; {problem['loss']} loss\n" if names else ""
    # two phases per line
    said = [str(Phase(**phase)) for phase in phases]
    lines = ["; then ".join(said[k : k + 2]) for k in range(0, len(said), 2)]
    return classes + ";\nthen ".join(lines)
