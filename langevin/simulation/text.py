"""The facts of a run in words."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from langevin.simulation import words
from langevin.simulation.facts import ACCURACIES, CLASS_ACCURACIES, CONFUSIONS, UNCLIPPED
from langevin.simulation.words import number, value
from langevin.support.plots import NAMES

# classes up to which their confusion is shown
_SHOWN = 20


def text(report: dict[str, Any]) -> str:
    """Return the report as text: of one run, or of a comparison."""
    lines = _comparison_lines(report) if "methods" in report else _run_lines(report)
    if "seconds" in report:
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


def _run_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of one run."""
    loss = report["loss"]
    distance = report["squared distance to the zeroth-order path"]
    end = report.get("end")
    lines = [(name, report[name]) for name in ("problem", "network", "schedule", "solver")]
    lines.append(
        (
            "loss",
            f"{number(loss['start'])} at the start, {value(loss['end'])} at the end; "
            f"zeroth order {number(loss['zeroth order at the end'])}",
        )
    )
    enclosed: dict[str, list[str]] = {}
    for name, what in (("zeroth order, enclosed", "zeroth order"), ("expectation, enclosed", "expectation")):
        if name in loss:
            enclosed.setdefault(_enclosure(loss[name], end), []).append(what)
    lines += [("", f"{' and '.join(names)}: {said}") for said, names in enclosed.items()]
    lines += [(title, value(said)) for title, said in _reported(report, ACCURACIES).items()]
    lines += _class_lines(report)
    lines.append(("E|theta-theta~|^2", f"{value(distance['measured'])} at the end, measured"))
    bounded: dict[str, list[str]] = {}
    for name, band in distance.get("bounds", {}).items():
        bounded.setdefault(_bound(band, end), []).append(name)
    lines += [("", f"{said}: {'; '.join(names)}") for said, names in bounded.items()]
    if "neurons" in report:
        lines += _neuron_lines(report["neurons"])
    lines += _titled("in words", report["in words"])
    if words.drowned(report):
        lines.append(("", f"at less noise, probing first prevents distortion: {words.CLAIM}"))
    if "privacy" in report:
        lines.append(("privacy", _privacy(report["privacy"])))
    return lines + _titled("assumptions", report.get("assumptions", []))


def _comparison_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the lines of several methods: what they share, a table with a column of each, and sentences."""
    reports: dict[str, dict[str, Any]] = report["methods"]
    first = next(iter(reports.values()))
    lines = _titled("in words", report["in words"])
    lines += [(name, first[name]) for name in ("problem", "network", "solver")]
    lines += _titled("schedules", [one["schedule"] for one in reports.values()])
    rows = [["", *(NAMES[method] for method in reports)]]
    for title, cells in _compared(list(reports.values())):
        if any(cell != "-" for cell in cells):
            rows.append([title, *cells])
    lines += _table("at the end", rows)
    noise = [f"{NAMES[method]}: {said}" for method, one in reports.items() for said in one["in words"]]
    return lines + _titled("noise", noise) + _titled("assumptions", first.get("assumptions", []))


def _compared(reports: Sequence[dict[str, Any]]) -> Iterator[tuple[str, list[str]]]:
    """Yield the rows of the table: a title, and the value of each method."""

    def row(of: Callable[[dict[str, Any]], str]) -> list[str]:
        return [of(report) for report in reports]

    yield "loss", row(lambda r: value(r["loss"]["end"]))
    yield "  without noise", row(lambda r: number(r["loss"]["zeroth order at the end"]))
    for name in ACCURACIES:
        title = name.replace("_", " ")
        yield title, row(lambda r, title=title: value(r[title]) if title in r else "-")
    width = max((r["neurons"]["width"] for r in reports if "neurons" in r), default=0)
    states = ("distorted at the end", "distorted at most", "misaligned at the end", "dead at the end")
    for state in states:
        name = f"{state.removesuffix(' at the end')}, of {width}"
        for solver, title in (("with noise", name), ("zeroth order", "  without noise")):

            def count(r: dict[str, Any], state: str = state, solver: str = solver) -> str:
                return number(r["neurons"][solver][state]) if "neurons" in r else "-"

            yield title, row(count)
    distance = "squared distance to the zeroth-order path"
    yield "E|theta-theta~|^2", row(lambda r: value(r[distance]["measured"]))
    for bound in dict.fromkeys(name for r in reports for name in r[distance].get("bounds", {})):
        yield f"  {bound}", row(lambda r, bound=bound: _at_end(r[distance]["bounds"][bound], r["end"]))
    yield "epsilon", row(lambda r: number(r["privacy"]["epsilon"]) if _spends(r) else "-")


def _at_end(band: dict[str, Any], end: float) -> str:
    """Write the upper bound where it still holds at the end."""
    return "-" if band["valid until"] is None or _until(band, end) else number(band["upper"])


def _spends(report: dict[str, Any]) -> bool:
    return report.get("privacy", {}).get("epsilon") is not None


def _titled(title: str, said: Sequence[str]) -> list[tuple[str, str]]:
    return [("" if i else title, line) for i, line in enumerate(said)]


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
    return f"in [{number(band['lower'])}, {number(band['upper'])}]{_until(band, end)}"


def _bound(band: dict[str, Any], end: float | None) -> str:
    if band["valid until"] is None:
        return _nowhere(band, "no bound, ")
    return f"at most {number(band['upper'])}{_until(band, end)}"


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
            "by class", [titles, *([c, *(value(of[c], "-") for of in found.values())] for c in classes)]
        )
    for title, counts in _reported(report, CONFUSIONS).items():
        if len(counts) > _SHOWN:
            lines.append((title, f"of {len(counts)} classes: see the saved run"))
            continue
        rows = ([c, *(number(count["mean"]) for count in row.values())] for c, row in counts.items())
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
                f"{name}: {number(c['misaligned at the end'])} misaligned at the end, distorted at most "
                f"{number(c['distorted at most'])}, at the end {number(c['distorted at the end'])}; "
                f"{number(c['dead at the end'])} dead; {last}",
            )
        )
    return lines


def _each(values: float | list[float]) -> str:
    """Write a number that all phases have in common, or that of each phase."""
    return " then ".join(map(number, values)) if isinstance(values, list) else number(values)


def _privacy(privacy: dict[str, Any]) -> str:
    if "none" in privacy:
        return f"does not apply: {UNCLIPPED}" if privacy["none"] == UNCLIPPED else f"none: {privacy['none']}"
    if privacy["epsilon"] is None:
        return "none: there is no noise"
    noise = f"noise multiplier {_each(privacy['noise multiplier'])}, sigma {_each(privacy['sigma'])}"
    if privacy["sample rate"] != 1:
        return (
            f"epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:g}, by {privacy['accountant']}; "
            f"{noise}; one sample added or removed, Poisson batches at rate {_each(privacy['sample rate'])}"
        )
    return (
        f"epsilon {privacy['epsilon']:.4g} at delta {privacy['delta']:g}; {number(privacy['gdp'])}-GDP, "
        f"{number(privacy['zcdp'])}-zCDP; one sample added or removed, full batch, whole path released; "
        f"{noise}"
    )
