"""The tables of `benchmarks.step_outputs`: a row is a case, a precision and, where they differ, the data."""

from __future__ import annotations

from typing import Any

from benchmarks.harness.tables import US, table

LABELS = ("d, h, n, K", "method", "rate", "precision")


def tables(record: dict[str, Any]) -> list[str]:
    """Return the tables of times, ratios, floor and parts, each with its caption."""
    rows = [(case, data) for case in record["cases"] for data in case["floors"]]
    peers = list(
        dict.fromkeys(
            name.rpartition(", ")[0]
            for case in record["cases"]
            for name in case["contestants"]
            if not name.startswith(f"{US}, ")
        )
    )
    parts = list(record["cases"][0]["parts"])
    return [
        "µs per step and path: **median** (minimum to maximum; paths)\n\n"
        + _grid([US, *peers], [_label(*row) + [_time(*row, name) for name in (US, *peers)] for row in rows]),
        "Like for like: time of each peer divided by ours, on the same data\n\n"
        + _grid(peers, [_label(*row) + [_ratio(*row, name, row[1]) for name in peers] for row in rows]),
        *_default_use(peers, [case for case in record["cases"] if len(case["floors"]) > 1]),
        "Floor, µs per step and path, and the rates behind it\n\n"
        + _grid(
            [
                "products",
                "draws",
                "traffic",
                "floor",
                "step",
                "step / floor",
                "GFLOP/s: multiply-adds",
                "best GEMM",
                "ns per normal, ours",
                "GB/s: parameters, or features read",
            ],
            [_label(*row) + _floor(*row) for row in rows],
        ),
        "Time of each part of a step, µs, on reduced data where there are any\n\n"
        + _grid(
            [*parts, "sum", "whole step"],
            [
                _label(case, data)
                + [f"{1e6 * x:.3g}" for x in (*case["parts"].values(), sum(case["parts"].values()))]
                + [f"{1e6 * case['contestants'][f'{US}, {data}']['seconds']:.4g}"]
                for case in record["cases"]
                for data in [next(iter(case["floors"]))]
            ],
        ),
    ]


def _default_use(peers: list[str], cases: list[dict[str, Any]]) -> list[str]:
    """Return the table of cases that can be reduced, if there are any."""
    names = [*peers, US]
    rows = [
        _label(case, "full") + [_ratio(case, "full", name, "reduced") for name in names] for case in cases
    ]
    caption = "Default use: peers on the full data divided by ours on the reduced data"
    return [f"{caption}\n\n{_grid(names, rows)}"] if rows else []


def _grid(header: list[str], rows: list[list[str]]) -> str:
    return table([*LABELS, "data", *header], rows, labels=len(LABELS) + 1)


def _label(case: dict[str, Any], data: str) -> list[str]:
    shape = ", ".join(map(str, case["shape"]))
    return [shape, case["method"].upper(), f"{case['rate']:g}", case["precision"], data]


def _time(case: dict[str, Any], data: str, name: str) -> str:
    if (c := case["contestants"].get(f"{name}, {data}")) is None:
        return "-"
    low, mid, high = (1e6 * c[key] for key in ("least", "seconds", "most"))
    return f"**{mid:.4g}** ({low:.4g} to {high:.4g}; {c['paths']})"


def _ratio(case: dict[str, Any], data: str, name: str, by: str) -> str:
    contestants = case["contestants"]
    if (c := contestants.get(f"{name}, {data}")) is None:
        return "-"
    return f"{c['seconds'] / contestants[f'{US}, {by}']['seconds']:.2f}"


def _floor(case: dict[str, Any], data: str) -> list[str]:
    found, rates = case["floors"][data], case["rates"]
    step = case["contestants"][f"{US}, {data}"]["seconds"]
    return [
        *(f"{1e6 * found[key]:.4g}" for key in ("products", "draws", "traffic", "floor")),
        f"{1e6 * step:.4g}",
        f"**{step / found['floor']:.2f}**",
        *(f"{rates[key] / 1e9:.0f}" for key in ("fma", "gemm")),
        f"{1e9 / rates['normals']:.2f}",
        f"{rates['bytes'][data] / 1e9:.0f}",
    ]
