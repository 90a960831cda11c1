"""What happened, in sentences; and what data and head are called."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from langevin.support.plots import NAMES

if TYPE_CHECKING:
    from langevin.data.files import FileProblem
    from langevin.model.problem import Problem
    from langevin.simulation.start import Start

# above it, a guarantee of privacy means little
_LARGE_EPSILON = 10.0
CLAIM = "python -m langevin.simulate --compare fft lp-fft --width 64 --sigma .05 --plot"


def number(x: float | None, digits: int = 4) -> str:
    """Write a number in a few digits."""
    return "not finite" if x is None else f"{x:.{digits}g}"


def value(x: Mapping[str, float | None], none: str = "not finite") -> str:
    """Write a mean with its standard error."""
    if x["mean"] is None:
        return none
    error = x["standard error"]
    return f"{x['mean']:.4g}" + ("" if error is None else f" +- {error:.2g}")


def noise(report: Mapping[str, Any], sigma: float) -> list[str]:
    """Say what the noise did to neurons and loss, compared with the zeroth-order path.

    Differences within two standard errors are not called differences.
    """
    if sigma == 0:
        return ["there is no noise: all paths are the zeroth-order path"]
    said = [_distorted(report["neurons"])] if "neurons" in report else []
    loss = report["loss"]
    with_noise, without = loss["end"]["mean"], loss["zeroth order at the end"]
    if with_noise is None or without is None:
        return [sentence for sentence in said if sentence]
    change, error = with_noise - without, loss["end"]["standard error"] or 0.0
    verb = "lowers" if change < 0 else "raises"
    said.append(
        f"noise does not change the final loss beyond two standard errors: {value(loss['end'])}, "
        f"{number(without)} without it"
        if abs(change) <= 2 * error
        else f"noise {verb} the final loss: {value(loss['end'])}, {number(without)} without it"
    )
    return [sentence for sentence in said if sentence]


def _distorted(neurons: Mapping[str, Any]) -> str:
    """Say how many neurons are distorted at the end, and how many of them without noise."""
    change, width = neurons["distorted at the end by noise"], neurons["width"]
    with_noise, without = neurons["with noise"], neurons["zeroth order"]
    if change["mean"] is None:
        return ""
    ends = [end["distorted at the end"] for end in (with_noise, without)]
    counts = f"{number(ends[0])} of {width} at the end, {number(ends[1])} without it"
    left = [end["misaligned at the end"] for end in (with_noise, without)]
    heads = f"; misaligned heads: {number(left[0])}, {number(left[1])} without it" if any(left) else ""
    if abs(change["mean"]) <= 2 * (change["standard error"] or 0.0):
        same = "noise does not change the number of distorted neurons beyond two standard errors"
        return f"{same}: {counts}{heads}"
    if change["mean"] < 0:
        return f"noise leaves fewer neurons distorted: {counts}{heads}"
    most = change["mean"] > 0.5 * ends[0] and ends[0] > 0.1 * width
    cause = "most of the distortion comes from the noise" if most else "noise leaves more neurons distorted"
    return f"{cause}: {counts}{heads}"


def drowned(report: Mapping[str, Any]) -> bool:
    """Tell whether noise, and not misaligned heads, distorts a large part of the neurons.

    Examples
    --------
    >>> neurons = {"width": 10, "with noise": {"distorted at the end": 5.0}}
    >>> drowned({"neurons": neurons | {"distorted at the end by noise": {"mean": 4.0}}})
    True
    >>> drowned({"neurons": neurons | {"distorted at the end by noise": {"mean": 1.0}}})
    False
    """
    if "neurons" not in report:
        return False
    neurons = report["neurons"]
    by_noise, end = neurons["distorted at the end by noise"]["mean"], neurons["with noise"]
    distorted = end["distorted at the end"]
    return by_noise is not None and by_noise > 0.5 * distorted and distorted > 0.1 * neurons["width"]


def comparison(reports: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Say how methods differ at the end: distorted neurons, loss and privacy."""
    said = []
    counted = {m: r["neurons"] for m, r in reports.items() if "neurons" in r}
    if counted:
        width = next(iter(counted.values()))["width"]
        ends = (
            f"{NAMES[m]} {number(n['with noise']['distorted at the end'], 3)} "
            f"({number(n['zeroth order']['distorted at the end'], 3)} without noise)"
            for m, n in counted.items()
        )
        said.append(f"distorted neurons at the end, of {width}: {', '.join(ends)}")
    losses = {m: r["loss"]["end"] for m, r in reports.items() if r["loss"]["end"]["mean"] is not None}
    if losses:
        order = sorted(losses, key=lambda m: losses[m]["mean"])
        ends = ", ".join(f"{NAMES[m]} {value(losses[m])}" for m in order)
        same = "; the first two differ by less than two standard errors" if _close(losses, order) else ""
        said.append(f"final loss, lowest first: {ends}{same}")
    spent = [r["privacy"]["epsilon"] for r in reports.values() if r.get("privacy", {}).get("epsilon")]
    if spent:
        delta = next(r["privacy"]["delta"] for r in reports.values() if r.get("privacy", {}).get("epsilon"))
        each = " each" if max(spent) - min(spent) <= 1e-6 * max(spent) else " at most"
        weak = ", which gives no meaningful privacy" if max(spent) > _LARGE_EPSILON else ""
        said.append(f"privacy spent: epsilon {number(max(spent))}{each} at delta {delta:g}{weak}")
    return said


def _close(losses: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> bool:
    """Tell whether the two lowest losses differ by less than two standard errors of their difference."""
    if len(order) < 2:
        return False
    first, second = losses[order[0]], losses[order[1]]
    error = math.hypot(first["standard error"] or 0.0, second["standard error"] or 0.0)
    return second["mean"] - first["mean"] < 2 * error


def data(args: argparse.Namespace, start: Start) -> str:
    """Name the data and the meaning of their labels."""
    name, file = args.data, start.file
    if name == "digits":
        from langevin.data import scikit

        shared = "digits, features pre-trained on a public quarter of the images of the same digits"
        return shared if scikit.split(args.classes) else name
    if file is None:
        return name
    label = "" if file.file.label == "y" else f", label {file.file.label!r}"
    classes = ""
    if not start.problem.class_names and file.classes not in ((), ("-1", "1")):
        classes = ": -1 is {!r}, +1 is {!r}".format(*file.classes)
    return f"{name}{label}{classes}{''.join(f'; {note}' for note in file.file.notes)}"


def file(found: FileProblem, problem: Problem) -> dict[str, Any]:
    """Describe the file of the data."""
    numbers = map(str, range(len(found.classes))) if problem.class_names else ("-1", "+1")
    classes = dict(zip(numbers, found.classes, strict=False))
    about = found.file
    return {"label": about.label, "classes": classes, "features": about.features, "notes": about.notes}


def head(args: argparse.Namespace, given: bool) -> str:
    """Name the initial head."""
    if given:
        return "head from the file"
    scale = "1/sqrt(width)" if args.head_scale is None else f"{args.head_scale:g}"
    return "zero head" if args.head == "zero" else f"{args.head} head of scale {scale}"
