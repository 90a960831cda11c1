"""The facts of a run, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.simulation import words
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    import xarray as xr

ACCURACIES = ("accuracy", "test_accuracy", "knn_accuracy")
CLASS_ACCURACIES = ("class_accuracy", "test_class_accuracy")
CONFUSIONS = ("confusion", "test_confusion")
SHARES = ("misaligned", "distorted", "dead")
# why there is no privacy, and no bound that rests on a bounded drift
UNCLIPPED = "no clipping"
# of the classes, the others are counted
_NAMED = 20


class Curve(Protocol):
    """A band of bounds over times, NaN where it does not hold."""

    @property
    def times(self) -> FloatArray: ...
    @property
    def lower(self) -> FloatArray: ...
    @property
    def upper(self) -> FloatArray: ...
    @property
    def valid(self) -> np.ndarray: ...
    @property
    def reason(self) -> str: ...


@dataclass
class Theory:
    """Evaluate the theorems on a run, by their names in the report.

    Attributes
    ----------
    distance : dict of Curve
        Bounds on ``E ||theta - theta~||^2``.
    zeroth_loss, expected_loss : Curve
        Enclosures of the zeroth-order loss and of the diffusion's expected loss.
    assumptions : str
        State of the theorems' assumptions on these data.
    """

    distance: dict[str, Curve]
    zeroth_loss: Curve
    expected_loss: Curve
    assumptions: str


@dataclass
class Subject:
    """The subject of a report.

    Attributes
    ----------
    run, zeroth : xarray.Dataset
        The diffusion, and the zeroth-order approximation on the same grid.
    data, head, solver, simulated : str
        How data, head, solver and what is simulated are called.
    privacy : dict or None
        Plain data, with ``epsilon``, ``delta``, ``gdp``, ``zcdp``, ``sigma``, ``noise multiplier``, ``sample
        rate`` and ``accountant``, or with ``none``, the reason; None if it was not asked for.
    """

    problem: Problem
    weights: Weights
    schedule: Schedule
    run: xr.Dataset
    zeroth: xr.Dataset
    data: str
    head: str
    solver: str
    simulated: str
    theory: Theory | None = field(default=None)
    privacy: dict[str, Any] | None = field(default=None)


def problem_line(problem: Problem, data: str) -> str:
    """Describe the problem in one line."""
    return (
        f"{problem.samples} samples in {problem.dim} dimensions ({data}), {problem.activation}, "
        f"{problem.loss} loss{', ' if problem.class_names else ''}{class_line(problem.class_names)}"
    )


def class_line(names: Sequence[str]) -> str:
    """Name the classes of K outputs; nothing for other problems.

    Examples
    --------
    >>> class_line(["bird", "cat", "dog"])
    '3 classes: bird, cat, dog'
    """
    more = ", ..." if len(names) > _NAMED else ""
    return f"{len(names)} classes: {', '.join(names[:_NAMED])}{more}" if names else ""


def build(subject: Subject) -> dict[str, Any]:
    """Return the whole report as plain data."""
    run, zeroth, width = subject.run, subject.zeroth, subject.weights.width
    report: dict[str, Any] = {
        "problem": f"{problem_line(subject.problem, subject.data)}; simulated: {subject.simulated}",
        "network": f"width {width}, {subject.head}",
        "schedule": str(subject.schedule),
        "solver": subject.solver,
        "loss": {
            "start": float(zeroth.loss[0]),
            "end": _mean(run.loss.isel(time=-1)),
            "zeroth order at the end": float(zeroth.loss.isel(time=-1)),
        },
        "squared distance to the zeroth-order path": {"measured": _mean(run.squared_distance.isel(time=-1))},
    }
    for name in ACCURACIES:
        if name in run:
            report[name.replace("_", " ")] = _mean(run[name].isel(time=-1))
    report |= _classes(run)
    if all(name in run and name in zeroth for name in SHARES):
        report["neurons"] = {
            "width": width,
            "misaligned at the start": _count(zeroth.misaligned[0], width),
            "zeroth order": _neurons(zeroth, width),
            "with noise": _neurons(run[list(SHARES)].mean("path"), width),
            "distorted at the end by noise": _mean((run.distorted - zeroth.distorted).isel(time=-1) * width),
        }
    unclipped = any(phase.clip is None for phase in subject.schedule)
    if subject.theory is not None:
        theory = subject.theory
        report["loss"]["zeroth order, enclosed"] = _last(theory.zeroth_loss)
        report["loss"]["expectation, enclosed"] = _last(theory.expected_loss)
        report["squared distance to the zeroth-order path"]["bounds"] = {
            name: _distance(band, unclipped) for name, band in theory.distance.items()
        }
        report["assumptions"] = theory.assumptions.splitlines()
    if subject.privacy is not None:
        report["privacy"] = {"none": UNCLIPPED} if unclipped else subject.privacy
    report = _known(report)
    return report | {"in words": words.noise(report, max(phase.sigma for phase in subject.schedule))}


def compare(reports: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the report of a comparison: that of each method, and how they differ."""
    return {"methods": dict(reports), "in words": words.comparison(reports)}


def _known(said: Any) -> Any:
    """Replace numbers that are not finite by None, because JSON has no NaN."""
    if isinstance(said, dict):
        return {name: _known(value) for name, value in said.items()}
    return None if isinstance(said, float) and not np.isfinite(said) else said


def _mean(values: Any) -> dict[str, float | None]:
    """Mean and standard error over the paths that did not diverge."""
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size == 0:
        return {"mean": None, "standard error": None}
    error = float(finite.std(ddof=1) / finite.size**0.5) if finite.size > 1 else None
    return {"mean": float(finite.mean()), "standard error": error}


def _classes(run: xr.Dataset) -> dict[str, Any]:
    """Accuracy of each class, and mean numbers of samples by class and prediction, at the last record."""
    found: dict[str, Any] = {}
    for name in CLASS_ACCURACIES:
        if name in run:
            at_end = run[name].isel(time=-1)
            found[name.replace("_", " ")] = {
                str(c): _mean(at_end.sel({"class": c})) for c in at_end["class"].values
            }
    for name in CONFUSIONS:
        if name in run:
            found[name.replace("_", " ")] = {
                str(c): {
                    str(p): _mean(run[name].sel({"class": c, "predicted": p})) for p in run.predicted.values
                }
                for c in run["class"].values
            }
    return found


def _count(share: Any, width: int) -> int | None:
    """Convert a share to a number of neurons; None if the weights left the range of numbers."""
    return round(float(share) * width) if np.isfinite(share) else None


def _neurons(shares: xr.Dataset, width: int) -> dict[str, Any]:
    """Counts of neurons along one path, or on average over paths."""
    times, left = shares.time.values, ~(shares.misaligned.values <= 0)
    aligned = None if left[-1] else float(times[0] if not left.any() else times[left.nonzero()[0][-1] + 1])
    return {
        "misaligned at the end": float(shares.misaligned[-1]) * width,
        "distorted at most": float(shares.distorted.max()) * width,
        "distorted at the end": float(shares.distorted[-1]) * width,
        "dead at the end": float(shares.dead[-1]) * width,
        "last head aligned by time": aligned,
    }


def _last(band: Curve) -> dict[str, Any]:
    """Return a band at its last valid time."""
    if not band.valid.any():
        return {"valid until": None, "reason": band.reason}
    i = int(np.flatnonzero(band.valid)[-1])
    return {
        "valid until": float(band.times[i]),
        "lower": float(band.lower[i]),
        "upper": float(band.upper[i]),
        "reason": band.reason,
    }


def _distance(band: Curve, unclipped: bool) -> dict[str, Any]:
    """`_last` of a bound on the distance, which is known to be 0 at the start whatever holds."""
    if unclipped and not band.valid[1:].any():
        return {"valid until": None, "reason": UNCLIPPED}
    return _last(band)
