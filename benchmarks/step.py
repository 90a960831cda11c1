"""Time a step against this machine's floor and against the peers, in one process on one processor.

``python -m benchmarks.step`` prints tables and saves them in ``benchmarks/results``. ``--quick`` is a short
trial run that saves nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks.harness import environment, floor, tables

SHAPES = ((20, 64, 50), (32, 512, 128), (784, 512, 200), (2048, 512, 256))
PRECISIONS = {"double": np.float64, "single": np.float32}
TOLERANCES = {"double": 1e-10, "single": 1e-3}


@dataclass(frozen=True)
class Effort:
    """Settings that determine how long to measure."""

    shapes: tuple[tuple[Any, ...], ...]  # arguments of the cases
    precisions: tuple[str, ...]
    paths: tuple[int, ...]  # numbers of paths to try with each peer
    rounds: int
    seconds: float  # per contestant and round
    most: float  # a contestant that has used more than this stops after two rounds


FULL = Effort(SHAPES, tuple(PRECISIONS), (1, 2, 4, 8, 16, 32, 64), 7, 0.1, 3.0)
QUICK = Effort(SHAPES[:1], ("single",), (8,), 2, 0.002, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.step", description="Time a step.")
    parser.add_argument("--quick", action="store_true", help="short trial run: one shape, nothing is saved")
    quick = parser.parse_args().quick
    record = run(QUICK if quick else FULL)
    text = "\n\n".join(tables.tables(record))
    print("\n" + text)
    if not quick:
        tables.keep(f"step-{environment.slug()}", record, f"{tables.title(record)}\n\n{text}\n")


def run(effort: Effort) -> dict[str, Any]:
    """Measure all cases, and record where and when."""
    from benchmarks.harness.contestants import Case
    from benchmarks.peers.lineup import missing

    with one_thread():
        record = environment.describe() | {"missing": missing()}
        print(json.dumps(record, indent=1), flush=True)
        record["cases"] = [
            measure(case, precision, effort)
            for case in (Case(*shape) for shape in effort.shapes)
            for precision in effort.precisions
        ]
    return record


def one_thread() -> threadpool_limits:
    """Use one processor and one thread for all; restart the command if its environment prevents that."""
    environment.take_one_processor()
    environment.restart_without_overrides()
    try:
        import torch

        from benchmarks.peers.torchsde_euler import keep_freed_memory
    except ImportError:
        pass
    else:
        torch.set_num_threads(1)
        keep_freed_memory()
    return threadpool_limits(1)


def measure(case: Any, precision: str, effort: Effort) -> dict[str, Any]:
    """Check all contestants, then time them in turn; seconds per step and path."""
    from benchmarks.harness.contestants import Ours
    from benchmarks.harness.parts import split
    from benchmarks.peers.lineup import US, lineup, require_same_drift

    dtype = PRECISIONS[precision]
    contestants = lineup(case, dtype, effort.paths, effort.seconds / 4)
    require_same_drift(case, contestants, TOLERANCES[precision])
    ours: Any = contestants[f"{US}, reduced" if case.reducible else f"{US}, full"]
    assert isinstance(ours, Ours)

    work = floor.Work.of(ours.span_inputs, case.width, np.dtype(dtype).itemsize)
    timed, rates = take_turns(
        contestants, effort, lambda seconds: floor.measure(dtype, [work.working_set], seconds)
    )
    result = {
        "shape": [case.inputs, case.width, case.samples],
        "inputs_reduced": case.span("auto").dim,
        "precision": precision,
        "contestants": timed,
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
    print(f"# {result['shape']} {precision} done at {time.strftime('%H:%M:%S', time.gmtime())}", flush=True)
    return result


def take_turns(
    contestants: dict[str, Any], effort: Effort, rates_within: Callable[[float], floor.Rates]
) -> tuple[dict[str, Any], floor.Rates]:
    """Time all contestants in turn, in seconds per step and path, and the machine's rates between turns."""
    from benchmarks.peers.lineup import steps_within

    steps = {name: steps_within(contestant, effort.seconds) for name, contestant in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    rates = rates_within(effort.seconds / 4)
    for turn in range(effort.rounds):
        for name, contestant in contestants.items():
            a_round = steps[name] * contestant.paths
            if turn < 2 or sum(seconds[name]) * a_round < effort.most:
                seconds[name].append(contestant.advance(steps[name]) / a_round)
        rates = rates.best(rates_within(effort.seconds / 4))
    timed = {
        name: {
            "paths": contestant.paths,
            "steps": steps[name],
            "rounds": len(seconds[name]),
            "seconds": float(np.median(seconds[name])),
            "least": min(seconds[name]),
            "most": max(seconds[name]),
        }
        for name, contestant in contestants.items()
    }
    return timed, rates


if __name__ == "__main__":
    main()
