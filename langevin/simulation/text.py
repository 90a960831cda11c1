"""The facts of a run in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langevin.simulation.facts import ACCURACIES, CLASS_ACCURACIES, CONFUSIONS, UNCLIPPED

# classes up to which their confusion is shown
_SHOWN = 20


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
    lines += [(title, _value(said)) for title, said in _reported(report, ACCURACIES).items()]
    lines += _class_lines(report)
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


def _value(x: dict[str, float | None], none: str = "not finite") -> str:
    if x["mean"] is None:
        return none
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


def _reported(report: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """What is said of these observables, by their titles."""
    return {title: report[title] for name in names if (title := name.replace("_", " ")) in report}


def _class_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """A table of accuracies with a row per class, and the tables of confusion."""
    lines = []
    if found := _reported(report, CLASS_ACCURACIES):
        titles = ["class", *(title.replace("class ", "") for title in found)]
        classes = next(iter(found.values()))
        lines += _table(
            "by class", [titles, *([c, *(_value(of[c], "-") for of in found.values())] for c in classes)]
        )
    for title, counts in _reported(report, CONFUSIONS).items():
        if len(counts) > _SHOWN:
            lines.append((title, f"of {len(counts)} classes: see the saved run"))
            continue
        rows = ([c, *(_number(count["mean"]) for count in row.values())] for c, row in counts.items())
        lines += _table(title, [["class \\ predicted", *counts], *rows])
    return lines


def _table(name: str, rows: list[list[str]]) -> list[tuple[str, str]]:
    """Rows of aligned columns, the first of which is on the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *cells in rows:
        aligned = (f"{cell:>{width}}" for cell, width in zip(cells, widths[1:], strict=True))
        lines.append("  ".join([f"{first:<{widths[0]}}", *aligned]))
    return [("" if i else name, line) for i, line in enumerate(lines)]


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
