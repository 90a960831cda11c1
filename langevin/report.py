"""What a run has to say: its report as plain data and as text, and its figure."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from langevin import _atomic
from langevin._validate import FloatArray
from langevin.problem import Problem, Weights
from langevin.schedule import Schedule

if TYPE_CHECKING:
    import xarray as xr

ACCURACIES = ("accuracy", "test_accuracy", "knn_accuracy")
SHARES = ("misaligned", "distorted", "dead")
# why there is no privacy, and no bound that rests on a bounded drift
_UNCLIPPED = "no clipping"


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
    """What the theorems say of a run, by the names that the report gives them.

    Attributes
    ----------
    distance : dict of Curve
        Bounds on ``E ||theta - theta~||^2``.
    zeroth_loss, expected_loss : Curve
        Enclosures of the zeroth-order loss and of the diffusion's expected loss.
    privacy : dict
        Plain data, with ``epsilon``, ``delta``, ``gdp``, ``zcdp``, or with ``none``, the reason.
    assumptions : str
        State of the theorems' assumptions on these data.
    """

    distance: dict[str, Curve]
    zeroth_loss: Curve
    expected_loss: Curve
    privacy: dict[str, Any]
    assumptions: str


@dataclass
class Subject:
    """What the report is about.

    Attributes
    ----------
    run, zeroth : xarray.Dataset
        The diffusion, and the zeroth-order approximation on the same grid.
    data, head, solver, simulated : str
        How data, head, solver and what is simulated are called.
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


def problem_line(problem: Problem, data: str) -> str:
    """One line on the problem."""
    return (
        f"{problem.samples} samples in {problem.dim} dimensions ({data}), {problem.activation}, "
        f"{problem.loss} loss"
    )


def build(subject: Subject) -> dict[str, Any]:
    """Everything that the report says, as plain data."""
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
    if all(name in run and name in zeroth for name in SHARES):
        report["neurons"] = {
            "width": width,
            "misaligned at the start": _count(zeroth.misaligned[0], width),
            "zeroth order": _neurons(zeroth, width),
            "with noise": _neurons(run[list(SHARES)].mean("path"), width),
        }
    if subject.theory is not None:
        theory = subject.theory
        report["loss"]["zeroth order, enclosed"] = _last(theory.zeroth_loss)
        report["loss"]["expectation, enclosed"] = _last(theory.expected_loss)
        unclipped = any(phase.clip is None for phase in subject.schedule)
        report["squared distance to the zeroth-order path"]["bounds"] = {
            name: _distance(band, unclipped) for name, band in theory.distance.items()
        }
        report["privacy"] = {"none": _UNCLIPPED} if unclipped else theory.privacy
        report["assumptions"] = theory.assumptions.splitlines()
    return _known(report)


def _known(said: Any) -> Any:
    """The same, with None in place of what is not finite: JSON knows no NaN."""
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


def _count(share: Any, width: int) -> int | None:
    """Neurons of a share; None where the weights left the range of numbers."""
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
    """A band at its last valid time."""
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
        return {"valid until": None, "reason": _UNCLIPPED}
    return _last(band)


# --- text ------------------------------------------------------------------------------------


def text(report: dict[str, Any]) -> str:
    """The report for people."""
    loss = report["loss"]
    distance = report["squared distance to the zeroth-order path"]
    end = report.get("end")
    lines = [(name, report[name]) for name in ("problem", "network", "schedule", "solver")]
    lines.append(
        (
            "loss",
            f"{_number(loss['start'])} at the start, {_value(loss['end'])} at the end; "
            f"zeroth order {_number(loss['zeroth order at the end'])}",
        )
    )
    for name, what in (("zeroth order, enclosed", "zeroth order"), ("expectation, enclosed", "expectation")):
        if name in loss:
            lines.append(("", f"{what}: {_enclosure(loss[name], end)}"))
    lines += [(name, _value(report[name])) for name in report if name.endswith("accuracy")]
    lines.append(("E|theta-theta~|^2", f"{_value(distance['measured'])} at the end, measured"))
    for name, band in distance.get("bounds", {}).items():
        lines.append(("", f"{_bound(band, end)}: {name}"))
    if "neurons" in report:
        lines += _neuron_lines(report["neurons"])
    if "privacy" in report:
        lines.append(("privacy", _privacy(report["privacy"])))
    for i, line in enumerate(report.get("assumptions", [])):
        lines.append(("" if i else "assumptions", line))
    seconds = report["seconds"]
    lines.append(
        (
            "speed",
            f"{report['path steps per second']:.3g} path steps/s: {seconds['simulation']:.2f} s; "
            f"first step after {seconds['to first step']:.2f} s",
        )
    )
    lines += [(name, report[name]) for name in ("bounds", "saved", "plot") if name in report]
    return "\n".join(f"{name:<18} {line}".rstrip() for name, line in lines)


def _number(x: float | None) -> str:
    return "not finite" if x is None else f"{x:.4g}"


def _value(x: dict[str, float | None]) -> str:
    if x["mean"] is None:
        return "not finite"
    error = x["standard error"]
    return f"{x['mean']:.4g}" + ("" if error is None else f" +- {error:.2g}")


def _until(band: dict[str, Any], end: float | None) -> str:
    whole = end is None or band["valid until"] >= end * (1 - 1e-9)
    return "" if whole else f" at time {band['valid until']:.4g}, beyond which {band['reason']}"


def _nowhere(band: dict[str, Any], what: str) -> str:
    return f"does not apply: {_UNCLIPPED}" if band["reason"] == _UNCLIPPED else f"{what}{band['reason']}"


def _enclosure(band: dict[str, Any], end: float | None) -> str:
    if band["valid until"] is None:
        return _nowhere(band, "not enclosed: ")
    return f"in [{_number(band['lower'])}, {_number(band['upper'])}]{_until(band, end)}"


def _bound(band: dict[str, Any], end: float | None) -> str:
    if band["valid until"] is None:
        return _nowhere(band, "no bound, ")
    return f"at most {_number(band['upper'])}{_until(band, end)}"


def _neuron_lines(n: dict[str, Any]) -> list[tuple[str, str]]:
    start = n["misaligned at the start"]
    said = "not finite at the start" if start is None else f"{start} of {n['width']} misaligned at the start"
    lines = [("neurons", said)]
    for name in ("zeroth order", "with noise"):
        c = n[name]
        aligned = c["last head aligned by time"]
        last = "some head never aligned" if aligned is None else f"last head aligned by time {aligned:.4g}"
        if c["misaligned at the end"] is None:
            lines.append(("", f"{name}: not finite at the end"))
            continue
        lines.append(
            (
                "",
                f"{name}: {_number(c['misaligned at the end'])} misaligned at the end, distorted at most "
                f"{_number(c['distorted at most'])}, at the end {_number(c['distorted at the end'])}; "
                f"{_number(c['dead at the end'])} dead; {last}",
            )
        )
    return lines


def _privacy(privacy: dict[str, Any]) -> str:
    if "none" in privacy:
        return (
            f"does not apply: {_UNCLIPPED}" if privacy["none"] == _UNCLIPPED else f"none: {privacy['none']}"
        )
    if privacy["epsilon"] is None:
        return "none: there is no noise"
    return (
        f"epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:g}; {_number(privacy['gdp'])}-GDP, "
        f"{_number(privacy['zcdp'])}-zCDP; one sample added or removed, full batch, whole path released"
    )


# --- figure ----------------------------------------------------------------------------------

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
    figure.suptitle(str(subject.schedule), fontsize=8)
    try:
        with _atomic.replacing(path) as temporary:
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
