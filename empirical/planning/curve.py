"""Plans over a range of one setting: what accuracy a budget buys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from empirical.planning.plan import plan_share
from empirical.planning.share_plan import SharePlan
from empirical.studies.tables import Table
from langevin.support import validate
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    import xarray as xr

SWEPT = {"epsilon": "budget epsilon", "batch": "expected batch", "steps": "steps", "clip": "clipping norm"}
POINTS = 5


@dataclass(frozen=True, eq=False)
class PlanCurve:
    """Plans over the values of a setting; see `plan_curve`.

    Attributes
    ----------
    parameter : {"epsilon", "batch", "steps", "clip"}
    values : ndarray, shape (m,)
        Increasing.
    plans : tuple of SharePlan
    """

    parameter: str
    values: FloatArray
    plans: tuple[SharePlan, ...]

    @property
    def accuracy(self) -> tuple[FloatArray, FloatArray]:
        """Expected held-out accuracy of each plan, and its standard error."""
        mean, error = np.array([plan.expected for plan in self.plans]).T
        return mean, error

    def table(self) -> Table:
        """A row for each value."""
        rows = []
        for value, plan in zip(self.values, self.plans, strict=True):
            mean, error = plan.expected
            good = " ".join(f"{share:g}" for share in plan.as_good)
            rows.append([f"{value:.4g}", f"{mean:.3f} ± {error:.3f}", plan.head, f"{plan.share:g}", good])
        return Table([self.parameter, "held-out accuracy", "head", "lp share", "as good"], rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, for JSON."""
        mean, error = self.accuracy
        return {
            "parameter": self.parameter,
            "values": self.values.tolist(),
            "accuracy": mean.tolist(),
            "accuracy standard error": error.tolist(),
            "head": [plan.head for plan in self.plans],
            "lp share": [plan.share for plan in self.plans],
        }

    def to_dataset(self) -> xr.Dataset:
        """Expected accuracy, its error and the share, over the values."""
        import xarray as xr

        mean, error = self.accuracy
        share = [plan.share for plan in self.plans]
        about = {
            "accuracy": (mean, "expected held-out accuracy"),
            "accuracy_error": (error, "its standard error"),
            "share": (share, "recommended share for linear probing"),
        }
        return xr.Dataset(
            {
                name: (self.parameter, values, {"long_name": text, "units": "1"})
                for name, (values, text) in about.items()
            },
            {self.parameter: self.values, "head": (self.parameter, [plan.head for plan in self.plans])},
            {"title": f"plans over the {SWEPT[self.parameter]}"},
        )


def plan_curve(
    X: ArrayLike,
    y: ArrayLike,
    *,
    parameter: str,
    low: float,
    high: float,
    points: int = POINTS,
    progress: Callable[[int], None] | None = None,
    **how: Any,
) -> PlanCurve:
    """Plan for several values of one setting, spaced evenly on a logarithmic scale.

    All plans have the same seed, so that they differ in the setting alone.

    Parameters
    ----------
    X, y : array_like
    parameter : {"epsilon", "batch", "steps", "clip"}
    low, high : float
        Ends of the range, both included; ``steps`` are rounded to whole numbers.
    points : int
        Number of values, at least 2.
    progress : callable, optional
        Called with the number of runs done.
    **how
        Arguments of `plan_share`.

    Examples
    --------
    >>> random = np.random.default_rng(0)
    >>> labels = np.arange(60) % 2
    >>> X = np.abs(np.eye(2, 4)[labels] + random.standard_normal((60, 4)))
    >>> how = dict(steps=10, draws=4, delta=1e-3, shares=[0, 1], heads=["zero"], hedge=False, theory=False)
    >>> found = plan_curve(X, labels, parameter="epsilon", low=0.5, high=8, points=2, **how)
    >>> found.values.tolist(), len(found.plans)
    ([0.5, 8.0], 2)
    """
    validate.choice("parameter", parameter, SWEPT)
    low, high = validate.positive("low", low), validate.positive("high", high)
    if low >= high:
        raise ValueError(f"low={low:g} must be below high={high:g}")
    values = np.geomspace(low, high, validate.integer("points", points, 2))
    # without the rounding of the logarithm
    values[0], values[-1] = low, high
    if parameter == "steps":
        values = np.unique(np.rint(values))
    plans: list[SharePlan] = []
    done = 0

    def advance(runs: int) -> None:
        nonlocal last
        last = runs
        if progress is not None:
            progress(done + runs)

    for value in values.tolist():
        last = 0
        setting = {parameter: int(value) if parameter == "steps" else value}
        plans.append(plan_share(X, y, progress=advance, **{**how, **setting}))
        done += last
    return PlanCurve(parameter, values, tuple(plans))


def draw(curve: PlanCurve, path: Path) -> None:
    """Plot the expected accuracy over the setting, with the recommended shares.

    Raises
    ------
    OSError
        If the file cannot be written; an old one stays.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    from langevin.store import atomic
    from langevin.support import plots

    mean, error = curve.accuracy
    with plt.style.context(plots.STYLE):
        figure, ax = plt.subplots(figsize=(4.2, 3))
        ax.errorbar(curve.values, mean, error, color=plots.OTHER, marker="o", markersize=4, capsize=2)
        for value, height, plan in zip(curve.values, mean, curve.plans, strict=True):
            said = f"{plan.head}, lp {plan.share:g}"
            ax.annotate(said, (value, height), (0, -12), textcoords="offset points", fontsize=6, ha="center")
        ax.set(xscale="log", xlabel=SWEPT[curve.parameter], ylabel="expected held-out accuracy")
        ax.margins(x=0.12, y=0.2)
    try:
        with atomic.replacing(path) as temporary:
            figure.savefig(temporary, dpi=200)
    finally:
        plt.close(figure)
