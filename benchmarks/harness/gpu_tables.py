"""Tables of a GPU's timings next to the card's floor."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.tables import table

OURS, OWN, FRESH = "us", "torchsde", "torchsde, fresh draws"


def floor(case: dict[str, Any]) -> tuple[float, float, float]:
    """Return seconds per step and path: products at their shapes' best rate, at a square's; traffic."""
    flops, rates = case["work"]["flops"], case["rates"]
    shaped = sum(flops / 2 / best(rates, side) for side in ("forward", "backward"))
    return shaped, flops / rates["square"], case["work"]["bytes"] / rates["copy"]


def best(rates: dict[str, float], side: str) -> float:
    """Return the best rate of a product in any layout."""
    return max(rate for name, rate in rates.items() if name.startswith(side))


def title(record: dict[str, Any]) -> str:
    """Return a heading with device, time and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in record["machine"]["versions"].items())
    return f"# A step on {record['device']}, {record['started']}\n\n{versions}"


def tables(record: dict[str, Any]) -> list[str]:
    """Return the tables of rates, floor and ratios, and parts, each with its caption."""
    steps, floors, parts = [], [], []
    for case in record["cases"]:
        label = [
            ", ".join(map(str, case["shape"])),
            f"{case['inputs']}; {case['paths']}; {case['precision']}",
        ]
        seconds = {name: c["seconds"] for name, c in case["contestants"].items()}
        ours = seconds[OURS]
        spread = [f"({1 / c['most']:.3g} to {1 / c['least']:.3g})" for c in case["contestants"].values()]
        steps.append(
            label
            + [f"**{1 / s:.3g}** {between}" for s, between in zip(seconds.values(), spread, strict=True)]
            + [f"{seconds[name] / ours:.1f}" for name in (OWN, FRESH)]
        )
        shaped, square, traffic = floor(case)
        rates = case["rates"]
        floors.append(
            label
            + [f"{1e6 * x:.3g}" for x in (shaped, square, traffic, ours)]
            + [f"**{max(shaped, traffic) / ours:.2f}**", f"{max(square, traffic) / ours:.2f}"]
            + [f"{x / 1e12:.1f}" for x in (best(rates, "forward"), best(rates, "backward"), rates["square"])]
            + [f"{rates['copy'] / 1e12:.2f}"]
            + [f"{case['work']['normals'] / case['parts']['noise'] / 1e9:.0f}"]
            + [f"{rates['torch normals'] / 1e9:.0f}"]
        )
        parts.append(
            label + [f"{1e6 * x:.3g}" for x in (*case["parts"].values(), sum(case["parts"].values()), ours)]
        )
    names = list(record["cases"][0]["parts"])
    found = [
        "Path-steps per second: **median** (minimum to maximum)\n\n"
        + table(
            ["d, h, n", "inputs; paths; precision", OURS, OWN, FRESH, f"{OWN} / us", "fresh draws / us"],
            steps,
            labels=2,
        ),
        "Floor, µs per step and path, and the rates behind it\n\n"
        + table(
            [
                "d, h, n",
                "inputs; paths; precision",
                "products",
                "at the square's rate",
                "traffic",
                "step",
                "floor / step",
                "at the square's rate",
                "TFLOP/s: forward",
                "backward",
                "square",
                "TB/s",
                "10⁹ normals/s: ours",
                "torch's",
            ],
            floors,
            labels=2,
        ),
        "Parts on their own, µs per step and path\n\n"
        + table(["d, h, n", "inputs; paths; precision", *names, "sum", "whole step"], parts, labels=2),
    ]
    if "run" in record:
        run = record["run"]
        found.append(
            f"A whole run at 784, 512, 200 in double, {run['paths']} paths, {run['steps']} steps, "
            f"{run['records']} records: {run['seconds']:.2f} s, "
            f"{run['paths'] * run['steps'] / run['seconds']:.3g} path-steps per second; "
            f"the first run of a process takes "
            f"{run['first']:.2f} s"
        )
    return found
