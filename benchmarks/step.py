"""Time a step against the floor of this machine and against torchsde, all in one run on one thread.

``python -m benchmarks.step`` prints tables and keeps them in ``benchmarks/results``; ``--quick`` is a smoke
run of a few seconds that keeps nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import environment, floor

SHAPES = ((20, 64, 50), (32, 512, 128), (784, 512, 200), (2048, 512, 256))
PRECISIONS = {"double": np.float64, "single": np.float32}
TOLERANCES = {"double": 1e-10, "single": 1e-3}
RESULTS = Path(__file__).parent / "results"
TORCH_PATHS = (1, 2, 4, 8, 16, 32, 64)
TORCH_BYTES = 100e6  # more paths than fit in this were never faster
OUR_PATHS = 4

OURS, OURS_FULL = "us, reduced", "us, full"
TORCH = {
    ("auto", False): "torchsde, reduced",
    ("none", False): "torchsde, full",
    ("auto", True): "torchsde, reduced, fresh draws",
    ("none", True): "torchsde, full, fresh draws",
}


@dataclass(frozen=True)
class Effort:
    """How long to measure."""

    shapes: tuple[tuple[int, int, int], ...]
    rounds: int
    seconds: float  # a contestant and round


FULL = Effort(SHAPES, 7, 0.1)
QUICK = Effort(SHAPES[:1], 2, 0.005)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Time a step.")
    parser.add_argument("--quick", action="store_true", help="smoke run: one shape, nothing kept")
    quick = parser.parse_args().quick
    environment.restart_without_overrides()

    import torch

    from benchmarks.peers import keep_freed_memory

    torch.set_num_threads(1)
    keep_freed_memory()
    with threadpool_limits(1):
        machine = environment.describe()
        print(json.dumps(machine, indent=1), flush=True)
        effort = QUICK if quick else FULL
        record = {"machine": machine, "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
        record["cases"] = [case for shape in effort.shapes for case in measure_shape(shape, effort)]
    text = "\n\n".join(tables(record))
    print("\n" + text)
    if not quick:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"step-{environment.slug()}.json"
        path.write_text(json.dumps(record, indent=1) + "\n")
        path.with_suffix(".md").write_text(f"{title(record)}\n\n{text}\n")


def measure_shape(shape: tuple[int, int, int], effort: Effort) -> Iterator[dict[str, Any]]:
    """Measure one shape in both precisions."""
    from benchmarks.contestants import Case

    case = Case(*shape)
    for precision in PRECISIONS:
        yield measure(case, precision, effort)


def measure(case: Any, precision: str, effort: Effort) -> dict[str, Any]:
    """Check all contestants, then time them in turn; seconds per step and path."""
    from benchmarks.contestants import Ours, TorchSDE
    from benchmarks.parts import split

    dtype = PRECISIONS[precision]
    ours = Ours(case, dtype, "auto", OUR_PATHS)
    contestants: dict[str, Any] = {OURS: ours}
    if case.reducible:
        contestants[OURS_FULL] = Ours(case, dtype, "none", OUR_PATHS)
    for reduce in ("auto", "none") if case.reducible else ("none",):
        paths = best_paths(case, dtype, reduce, effort.seconds)
        for fresh in (False, True):
            contestants[TORCH[reduce, fresh]] = TorchSDE(case, dtype, reduce, paths, fresh)
    for name, contestant in contestants.items():
        error = case.error(contestant)
        if not error < TOLERANCES[precision]:
            raise SystemExit(f"{name} computes another drift: relative error {error:.1e} at {case}")

    steps = {name: steps_within(contestant, effort.seconds) for name, contestant in contestants.items()}
    work = floor.Work.of(ours.span_inputs, case.width, np.dtype(dtype).itemsize)
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rates = floor.measure(dtype, [work.working_set], effort.seconds / 4)
    for _ in range(effort.rounds):
        for name, contestant in contestants.items():
            seconds[name].append(contestant.advance(steps[name]) / steps[name] / contestant.paths)
        rates = rates.best(floor.measure(dtype, [work.working_set], effort.seconds / 4))
    result = {
        "shape": [case.inputs, case.width, case.samples],
        "inputs_reduced": case.span("auto").dim,
        "precision": precision,
        "contestants": {
            name: {
                "paths": contestant.paths,
                "steps": steps[name],
                "seconds": float(np.median(seconds[name])),
                "least": min(seconds[name]),
                "most": max(seconds[name]),
            }
            for name, contestant in contestants.items()
        },
        "work": {**vars(work), "working_set": work.working_set},
        "rates": {
            "fma": rates.fma,
            "gemm": rates.gemm,
            "normals": rates.normals,
            "copy": rates.copy[work.working_set],
        },
        "floor": work.seconds(rates),
        "parts": split(ours, effort.seconds, effort.rounds),
    }
    print(f"# {result['shape']} {precision} done", flush=True)
    return result


def best_paths(case: Any, dtype: type, reduce: str, seconds: float) -> int:
    """Number of paths with which torchsde is fastest."""
    from benchmarks.contestants import TorchSDE

    inputs = case.span(reduce).dim
    best, fastest = 1, np.inf
    for paths in TORCH_PATHS:
        if (
            paths > 1
            and paths * case.width * max(inputs, case.samples) * np.dtype(dtype).itemsize > TORCH_BYTES
        ):
            break
        contestant = TorchSDE(case, dtype, reduce, paths, True)
        steps = steps_within(contestant, seconds / 4)
        elapsed = min(contestant.advance(steps) for _ in range(2)) / steps / paths
        if elapsed < fastest:
            best, fastest = paths, elapsed
    return best


def steps_within(contestant: Any, seconds: float) -> int:
    """Steps that take some ``seconds``, at least 2; warms up, too."""
    contestant.advance(2)
    return max(2, round(seconds * 2 / max(contestant.advance(2), 1e-6)))


# --- tables ----------------------------------------------------------------------------------


def title(record: dict[str, Any]) -> str:
    """One line on where and when."""
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    architecture = "/".join(sorted({pool["architecture"] or "" for pool in machine["blas"]} - {""}))
    return (
        f"# A step on {machine['processor']} ({machine['llvm_processor']}), one thread, "
        f"{record['started']}\n\n"
        f"{versions}; BLAS for {architecture}; load at the start {machine['load'][0]}"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", "---", *["---:"] * (len(header) - 2)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(record: dict[str, Any]) -> list[str]:
    """Times, floor, ratios and parts, each with its caption."""
    cases = record["cases"]
    names = [OURS, OURS_FULL, *TORCH.values()]

    def label(case: dict[str, Any]) -> list[str]:
        return [", ".join(map(str, case["shape"])), case["precision"]]

    def seconds(case: dict[str, Any], name: str) -> float:
        # without a smaller span the full problem is what the reduced one would be
        if name not in case["contestants"]:
            name = {OURS_FULL: OURS}.get(name, name.replace("reduced", "full"))
        return case["contestants"][name]["seconds"]

    times, floors, ratios, parts = [], [], [], []
    for case in cases:
        cells = []
        for name in names:
            if name in case["contestants"]:
                c = case["contestants"][name]
                low, mid, high = (1e6 * c[key] for key in ("least", "seconds", "most"))
                cells.append(f"**{mid:.4g}** ({low:.4g} to {high:.4g}; {c['paths']})")
            else:
                cells.append("-")
        times.append(label(case) + cells)
        part, ours = case["floor"], seconds(case, OURS)
        total = sum(part.values())
        rates = case["rates"]
        floors.append(
            label(case)
            + [f"{1e6 * part[key]:.4g}" for key in ("products", "draws", "traffic")]
            + [f"{1e6 * total:.4g}", f"**{ours / total:.2f}**"]
            + [f"{rates['fma'] / 1e9:.0f} / {rates['gemm'] / 1e9:.0f}"]
            + [f"{1e9 / rates['normals']:.2f}", f"{rates['copy'] / 1e9:.0f}"]
        )
        ratios.append(
            label(case)
            + [f"{ours / total:.2f}"]
            + [
                f"{seconds(case, peer) / seconds(case, own):.1f}"
                for own, peer in (
                    (OURS, TORCH["auto", False]),
                    (OURS_FULL, TORCH["none", False]),
                    (OURS, TORCH["auto", True]),
                    (OURS_FULL, TORCH["none", True]),
                )
            ]
            + [f"{seconds(case, OURS_FULL) / ours:.1f}" if OURS_FULL in case["contestants"] else "-"]
            + [f"{seconds(case, TORCH['none', False]) / ours:.1f}"]
        )
        split = case["parts"]
        step = sum(split.values())
        parts.append(
            label(case)
            + [f"{100 * value / step:.0f} %" for value in split.values()]
            + [f"{1e6 * step:.4g}", f"{1e6 * ours:.4g}"]
        )
    shape = ["d, h, n", "precision"]
    return [
        "µs per step and path: **median** (least to most; paths)\n\n" + table(shape + names, times),
        "Floor of the reduced problem, µs per step and path, and the rates behind it\n\n"
        + table(
            [
                *shape,
                "products",
                "draws",
                "traffic",
                "floor",
                "step / floor",
                "GFLOP/s: multiply-adds / best GEMM",
                "ns a normal, ours",
                "GB/s",
            ],
            floors,
        ),
        "Ratios\n\n"
        + table(
            [
                *shape,
                "us / floor",
                "torchsde / us, both reduced",
                "torchsde / us, both full",
                "fresh draws / us, both reduced",
                "fresh draws / us, both full",
                "full / reduced, us",
                "torchsde full / us reduced",
            ],
            ratios,
        ),
        "Where the time of a step goes\n\n"
        + table([*shape, *cases[0]["parts"], "sum, µs", "whole step, µs"], parts),
    ]


if __name__ == "__main__":
    main()
