"""A plan as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bounds.allocation.advice import Advice
from empirical.planning.comparison import standard_error
from empirical.planning.share_plan import SharePlan
from langevin.store import atomic
from langevin.support import plots

_SIMULATED, _CHOSEN, _GOOD, _THEORY = plots.OTHER, plots.GOLD, plots.PURPLE, "0.4"


def draw(plan: SharePlan, path: Path) -> None:
    """Plot accuracy and loss as functions of the share, with the theory for two classes.

    Raises
    ------
    OSError
        If the file cannot be written; an old one stays.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    with plt.style.context(plots.STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(7.2, 3.4))
        _draw(plan, figure, axes)
    try:
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, dpi=200)
    finally:
        plt.close(figure)


def _draw(plan: SharePlan, figure: Any, axes: Any) -> None:
    good, chosen = np.isin(plan.shares, plan.as_good), plan.recommended
    for ax, values, name in zip(
        axes, (plan.accuracy, plan.loss), ("held-out accuracy", "mean training loss"), strict=True
    ):
        mean = values.mean(1)
        error = plan.runs[plan.head].error if ax is axes[0] else standard_error(values)
        # from the largest mark at the bottom to the smallest on top: none hides another
        marks = {"marker": "o", "linestyle": "", "zorder": 3}
        ax.plot(plan.share, mean[chosen], color=_CHOSEN, markersize=13, label="recommended", **marks)
        ring = {"color": _GOOD, "markerfacecolor": "white", "markersize": 8.5}
        if ax is axes[0]:
            ax.plot(plan.shares[good], mean[good], label="not worse than the best", **ring, **marks)
        ax.errorbar(
            plan.shares,
            mean,
            error,
            color=_SIMULATED,
            marker="o",
            markersize=4,
            capsize=2,
            zorder=4,
            label="simulated",
        )
        ax.set(xlabel="share of the budget for linear probing", ylabel=name)
    if len(plan.theory) == 1:
        _draw_theory(axes, next(iter(plan.theory.values())))
    axes[0].set_ylim(top=min(1.005, axes[0].get_ylim()[1]))
    plots.letters(axes)
    entries: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3)
    figure.suptitle(f"epsilon {plan.epsilon:g}: recommended lp share {plan.share:g}")


def _draw_theory(axes: Any, advice: Advice) -> None:
    mean, _ = advice.minimum_share
    if mean <= 1:
        axes[0].axvline(mean, color=_THEORY, linestyle=":", label="aligns every head (3.4)")
    rows = advice.samples
    for name, band in advice.curves.items():
        if band.valid.any() and np.nanmin(band.upper) < advice.start:
            axes[1].fill_between(
                band.times,
                band.lower / rows,
                band.upper / rows,
                color=_THEORY,
                alpha=0.3,
                label=f"{name}, without noise, at probing's rate",
            )
