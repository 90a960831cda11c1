"""A run as a figure."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.store import atomic

if TYPE_CHECKING:
    import xarray as xr
from langevin.simulation.facts import SHARES, Subject, class_line

_NOISE, _ZEROTH = "#0072b2", "black"
_LARGEST_DRAWN = 1e300
_COLOURS = {"misaligned": "#d55e00", "distorted": "#009e73", "dead": "#cc79a7"}


def draw(subject: Subject, path: Path) -> None:
    """Draw loss, distance and neurons over time; bounds are shaded or dotted.

    Raises
    ------
    OSError
        If the file cannot be written; an old one stays.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    theory, times = subject.theory, subject.run.time.values
    # axes reach no further
    run, zeroth = (d.where(abs(d) < _LARGEST_DRAWN) for d in (subject.run, subject.zeroth))
    shares = [name for name in SHARES if name in run and name in zeroth]
    panels = 2 + bool(shares)
    figure, axes = plt.subplots(1, panels, figsize=(3.6 * panels, 3), layout="constrained")

    _quantiles(axes[0], run.loss)
    axes[0].plot(times, zeroth.loss, color=_ZEROTH, linestyle="--", label="zeroth order")
    axes[0].set(ylabel="training loss", yscale="log")
    _quantiles(axes[1], run.squared_distance)
    axes[1].set(ylabel=r"$\|\theta_t-\tilde\theta_t\|^2$")
    if theory is not None:
        band = theory.zeroth_loss
        if band.valid.any():
            label = "its upper and lower bound"
            axes[0].fill_between(
                times, band.lower, band.upper, color="0.5", alpha=0.3, linewidth=0, label=label
            )
        for style, (name, band) in zip((":", "-.", "--"), theory.distance.items(), strict=False):
            if band.valid.any():
                axes[1].plot(times, band.upper, color=_ZEROTH, linestyle=style, label=name)
        top = float(run.squared_distance.max())
        axes[1].set(yscale="log", ylim=(max(top, 1e-300) * 1e-4 if np.isfinite(top) else None, None))
    for name in shares:
        axes[2].plot(times, run[name].mean("path"), color=_COLOURS[name], label=f"{name}, diffusion")
        axes[2].plot(times, zeroth[name], color=_COLOURS[name], linestyle="--", label=f"{name}, zeroth order")
    if shares:
        axes[2].set(ylabel="share of neurons", ylim=(-0.02, None))
    for ax in axes:
        ax.set_xlabel("diffusion time")
        for start in subject.schedule.starts[1:]:
            ax.axvline(start, color="0.6", linewidth=0.8)
        ax.legend(fontsize=6.5, frameon=False)
    problem = subject.problem
    classes = f"{class_line(problem)}; {problem.loss} loss\n" if problem.class_names else ""
    # two panels are too narrow for the phases in one line
    phases = (";\nthen " if len(axes) < 3 else "; then ").join(map(str, subject.schedule))
    figure.suptitle(f"{classes}{phases}", fontsize=8)
    try:
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, dpi=200)
    finally:
        plt.close(figure)


def _quantiles(ax: Any, values: xr.DataArray) -> None:
    # where no path is left there is nothing to draw
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        low, middle, high = values.quantile([0.05, 0.5, 0.95], "path").values
    ax.fill_between(values.time, low, high, color=_NOISE, alpha=0.25, linewidth=0)
    ax.plot(values.time, middle, color=_NOISE, label="diffusion: median, 90 % of paths")
