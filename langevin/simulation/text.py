"""The facts of a run in words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass
from langevin.simulation.facts import UNCLIPPED


def text(report: dict[str, Any]) -> str:
    """Return the report as text."""
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
    enclosed: dict[str, list[str]] = {}
    for name, what in (("zeroth order, enclosed", "zeroth order"), ("expectation, enclosed", "expectation")):
        if name in loss:
            enclosed.setdefault(_enclosure(loss[name], end), []).append(what)
    lines += [("", f"{' and '.join(names)}: {said}") for said, names in enclosed.items()]
    lines += [(name, _value(report[name])) for name in report if name.endswith("accuracy")]
    lines.append(("E|theta-theta~|^2", f"{_value(distance['measured'])} at the end, measured"))
    bounded: dict[str, list[str]] = {}
    for name, band in distance.get("bounds", {}).items():
        bounded.setdefault(_bound(band, end), []).append(name)
    lines += [("", f"{said}: {'; '.join(names)}") for said, names in bounded.items()]
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
    reason = band["reason"]
    # of several obstacles, the number of outputs says enough
    outputs = [part for part in reason.split("; ") if part.startswith("K = ")]
    return f"does not apply: {UNCLIPPED}" if reason == UNCLIPPED else f"{what}{(outputs or [reason])[0]}"


def _enclosure(band: dict[str, Any], end: float | None) -> str:
    if band["valid until"] is None:
        return _nowhere(band, "not enclosed: ")
    return f"in [{_number(band['lower'])}, {_number(band['upper'])}]{_until(band, end)}"


def _bound(band: dict[str, Any], end: float | None) -> str:
    if band["valid until"] is None:
        return _nowhere(band, "no bound, ")
    return f"at most {_number(band['upper'])}{_until(band, end)}"


def _neuron_lines(n: dict[str, Any]) -> list[tuple[str, str]]:
    if "none" in n:
        return [("neurons", n["none"])]
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
        return f"does not apply: {UNCLIPPED}" if privacy["none"] == UNCLIPPED else f"none: {privacy['none']}"
    if privacy["epsilon"] is None:
        return "none: there is no noise"
    noise = f"noise multiplier {_number(privacy['noise multiplier'])}, sigma {_number(privacy['sigma'])}"
    if privacy["sample rate"] < 1:
        return (
            f"epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:g}, by {privacy['accountant']}; "
            f"{noise}; one sample added or removed, Poisson batches at rate {privacy['sample rate']:g}"
        )
    return (
        f"epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:g}; {_number(privacy['gdp'])}-GDP, "
        f"{_number(privacy['zcdp'])}-zCDP; one sample added or removed, full batch, whole path released; "
        f"{noise}"
    )
