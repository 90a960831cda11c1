"""What benchmarks print and keep; the tables of `benchmarks.step`: a column is a shape and a precision."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from langevin.store import atomic

RESULTS = Path(__file__).parents[1] / "results"
US = "us"
DATA = ("full", "reduced")


def keep(name: str, record: dict[str, Any], text: str) -> None:
    """Write a record and its tables."""
    RESULTS.mkdir(exist_ok=True)
    atomic.write_text(RESULTS / f"{name}.json", json.dumps(record, indent=1) + "\n")
    atomic.write_text(RESULTS / f"{name}.md", f"{text.rstrip()}\n")


def brief(name: str) -> str:
    """The first two words of a machine's name, fit for a file name."""
    return "-".join(re.findall("[a-z0-9]+", name.lower())[:2])


def title(record: dict[str, Any]) -> str:
    """Return a heading with processor, time and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    architecture = "/".join(sorted({pool["architecture"] or "" for pool in record["blas"]} - {""}))
    return (
        f"# A step on {record['processor']} ({record['llvm_processor']}), one thread, {record['started']}\n\n"
        f"{versions}; BLAS for {architecture}; load at the start {record['load'][0]}"
    )


def table(header: list[str], rows: list[list[str]], labels: int = 1) -> str:
    """A Markdown table, numbers to the right of the first columns."""
    lines = [header, [*["---"] * labels, *["---:"] * (len(header) - labels)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(record: dict[str, Any]) -> list[str]:
    """Return the tables of times, ratios, floor and parts, each with its caption."""
    cases = record["cases"]
    columns = [f"{', '.join(map(str, case['shape']))} {case['precision']}" for case in cases]
    names = list(dict.fromkeys(name for case in cases for name in case["contestants"]))
    peers = list(dict.fromkeys(name.rpartition(", ")[0] for name in names if not name.startswith(f"{US}, ")))

    def grid(rows: dict[str, Callable[[dict[str, Any]], str]], corner: str = "d, h, n, precision") -> str:
        lines = [[name, *map(cell, cases)] for name, cell in rows.items()]
        return table([corner, *columns], [line for line in lines if set(line[1:]) != {"-"}])

    def ratio(name: str, data: str, by: str) -> Callable[[dict[str, Any]], str]:
        return lambda case: _ratio(case, f"{name}, {data}", f"{US}, {by}")

    return [
        "µs per step and path: **median** (minimum to maximum; paths)\n\n"
        + grid({name: lambda case, name=name: _times(case, name) for name in names}),
        "Like for like: time of each peer divided by ours, on the same data\n\n"
        + grid({f"{peer}, {data}": ratio(peer, data, data) for data in DATA for peer in peers}),
        "Default use: peers on the full data divided by ours on the reduced data\n\n"
        + grid(
            {f"{peer}, full": ratio(peer, "full", "reduced") for peer in peers}
            | {"effect of the reduction alone: us, full": ratio(US, "full", "reduced")}
        ),
        "Floor of the reduced problem, µs per step and path, and the rates behind it\n\n"
        + grid(
            {
                **{
                    key: lambda case, key=key: f"{1e6 * case['floor'][key]:.4g}"
                    for key in ("products", "draws", "traffic")
                },
                "floor": lambda case: f"{1e6 * sum(case['floor'].values()):.4g}",
                "step / floor": lambda case: f"**{_ours(case) / sum(case['floor'].values()):.2f}**",
                "GFLOP/s: multiply-adds": lambda case: f"{case['rates']['fma'] / 1e9:.0f}",
                "GFLOP/s: best GEMM": lambda case: f"{case['rates']['gemm'] / 1e9:.0f}",
                "ns per normal, ours": lambda case: f"{1e9 / case['rates']['normals']:.2f}",
                "GB/s": lambda case: f"{case['rates']['copy'] / 1e9:.0f}",
            }
        ),
        "Time of each part of a step\n\n"
        + grid(
            {
                **{
                    part: lambda case, part=part: (
                        f"{100 * case['parts'][part] / sum(case['parts'].values()):.0f} %"
                    )
                    for part in cases[0]["parts"]
                },
                "sum, µs": lambda case: f"{1e6 * sum(case['parts'].values()):.4g}",
                "whole step, µs": lambda case: f"{1e6 * _ours(case):.4g}",
            }
        ),
    ]


def _ours(case: dict[str, Any]) -> float:
    contestants = case["contestants"]
    return contestants.get(f"{US}, reduced", contestants[f"{US}, full"])["seconds"]


def _times(case: dict[str, Any], name: str) -> str:
    if name not in case["contestants"]:
        return "-"
    c = case["contestants"][name]
    low, mid, high = (1e6 * c[key] for key in ("least", "seconds", "most"))
    return f"**{mid:.4g}** ({low:.4g} to {high:.4g}; {c['paths']})"


def _ratio(case: dict[str, Any], name: str, by: str) -> str:
    """Return the ratio of two contestants; if the data cannot be reduced, full data replace reduced data."""
    contestants = case["contestants"]
    if name not in contestants:
        return "-"
    reference = contestants[by]["seconds"] if by in contestants else _ours(case)
    return f"{contestants[name]['seconds'] / reference:.1f}"
