"""Time a step with K outputs, on full and on Poisson batches, against the machine's floor and the peers.

In one process on one processor. ``python -m benchmarks.step_outputs`` prints tables and saves them in
``benchmarks/results``. ``--quick`` is a short trial run that saves nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np

from benchmarks.harness import environment, floor, outputs_tables, tables
from benchmarks.step import PRECISIONS, TOLERANCES, Effort, one_thread, take_turns

# inputs, width, samples, outputs; sampling rates of each method
SHAPES: dict[tuple[int, int, int, int], dict[str, tuple[float, ...]]] = {
    (32, 512, 128, 10): {"fft": (1.0, 0.1)},
    (784, 512, 200, 10): {"fft": (1.0, 0.1)},
    (64, 512, 2000, 10): {"fft": (1.0, 0.1)},
    (320, 1280, 6000, 10): {"fft": (0.05,), "lp": (1.0, 0.05)},
}
CASES = tuple(
    (*shape, rate, method)
    for shape, methods in SHAPES.items()
    for method, rates in methods.items()
    for rate in rates
)
# paths that read frozen features together make each faster; otherwise few are best
SHARED, OWN = (1, 4, 16), (1, 2)
FULL = Effort(CASES, tuple(PRECISIONS), OWN, 5, 0.08, 1.0)
QUICK = Effort(CASES[1:2], ("single",), (2,), 2, 0.002, 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.step_outputs", description="Time a step with K outputs and batches."
    )
    parser.add_argument("--quick", action="store_true", help="short trial run: one case, nothing is saved")
    quick = parser.parse_args().quick
    record = run(QUICK if quick else FULL)
    text = "\n\n".join(outputs_tables.tables(record))
    print("\n" + text)
    if not quick:
        title = tables.title(record).replace("A step", "A step with K outputs", 1)
        tables.keep(f"step-outputs-{environment.slug()}", record, f"{title}\n\n{text}\n")


def run(effort: Effort) -> dict[str, Any]:
    """Measure all cases, and record where and when."""
    from benchmarks.harness.outputs import OutputsCase
    from benchmarks.peers.lineup import missing
    from benchmarks.peers.outputs_lineup import PEERS

    with one_thread():
        record = environment.describe() | {"missing": missing(PEERS)}
        print(json.dumps(record, indent=1), flush=True)
        record["cases"] = [
            measure(case, precision, effort)
            for case in (OutputsCase(*arguments) for arguments in effort.shapes)
            for precision in effort.precisions
        ]
    return record


def measure(case: Any, precision: str, effort: Effort) -> dict[str, Any]:
    """Check all contestants, then time them in turn; seconds per step and path."""
    from benchmarks.harness.outputs import OursOutputs
    from benchmarks.harness.outputs_parts import split
    from benchmarks.peers.lineup import OUR_PATHS, US, lineup, require_same_drift
    from benchmarks.peers.outputs_lineup import peers

    dtype = PRECISIONS[precision]
    contestants = lineup(
        case,
        dtype,
        SHARED if case.shared and len(effort.paths) > 1 else effort.paths,
        effort.seconds / 4,
        peers=peers(case),
        ours=OursOutputs,
        our_paths=SHARED[-1] if case.shared else OUR_PATHS,
    )
    require_same_drift(case, contestants, TOLERANCES[precision])
    ours: dict[str, Any] = {
        data: contestants[f"{US}, {data}"] for data in ("reduced", "full") if f"{US}, {data}" in contestants
    }
    works = {data: work(case, us.span_inputs, np.dtype(dtype).itemsize) for data, us in ours.items()}
    copied = {size for one in works.values() for size in one.copied}
    read = {size for one in works.values() for size in one.read}
    timed, rates = take_turns(
        contestants, effort, lambda seconds: floor.measure(dtype, copied, seconds, read)
    )
    result = {
        "shape": [case.inputs, case.width, case.samples, case.outputs],
        "method": case.method,
        "rate": case.rate,
        "precision": precision,
        "contestants": timed,
        "work": {data: vars(one) for data, one in works.items()},
        "rates": {
            "fma": rates.fma,
            "gemm": rates.gemm,
            "normals": rates.normals,
            "bytes": {
                data: rates.read[one.source_bytes] if one.probing else rates.copy[one.parameter_bytes]
                for data, one in works.items()
            },
        },
        "floors": {data: one.seconds(rates) for data, one in works.items()},
        "parts": split(next(iter(ours.values())), effort.seconds, effort.rounds),
    }
    print(f"# {case} {precision} done at {time.strftime('%H:%M:%S', time.gmtime())}", flush=True)
    return result


def work(case: Any, X: np.ndarray, itemsize: int) -> floor.OutputsWork:
    """Return the work of a step on inputs ``X``."""
    return floor.OutputsWork.of(X, case.width, case.outputs, case.rate, itemsize, case.probing)


if __name__ == "__main__":
    main()
