"""Measure path-steps per second of `langevin.euler_maruyama` on one thread and on all processors.

``python -m benchmarks.threads`` prints a table and saves it in ``benchmarks/results``. ``--quick`` is a short
trial run that saves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from typing import Any

import numpy as np

from benchmarks.harness import environment
from benchmarks.harness.tables import keep, table

# inputs, width, samples; steps times paths that take about a second on one thread
RUNS = {(20, 64, 50): (500, 512), (32, 512, 128): (100, 128)}
ROUNDS, QUICK_ROUNDS = 7, 2
AIM = 1.7


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.threads", description="Time threads.")
    parser.add_argument("--quick", action="store_true", help="short trial run: little work, nothing is saved")
    quick = parser.parse_args().quick
    environment.restart_without_overrides()

    from langevin.support.threads import available_threads

    record = environment.describe() | {"threads": available_threads(), "cases": []}
    print(json.dumps(record, indent=1), flush=True)
    for shape, (steps, paths) in RUNS.items():
        size = (steps // 20, paths // 8) if quick else (steps, paths)
        record["cases"].append(measure(shape, *size, record["threads"], QUICK_ROUNDS if quick else ROUNDS))
    text = report(record)
    print("\n" + text)
    if not quick:
        keep(f"threads-{environment.slug()}", record, text)


def measure(shape: tuple[int, int, int], steps: int, paths: int, threads: int, rounds: int) -> dict[str, Any]:
    """Measure the wall time of whole runs, on one thread and on several in turn."""
    from benchmarks.harness.contestants import CLIP, DT, SIGMA, Case
    from langevin import Schedule, euler_maruyama

    case, end = Case(*shape), steps * DT
    schedule = Schedule.fft(time=end, sigma=SIGMA, clip=CLIP)

    def rate(count: int) -> float:
        start = time.perf_counter()
        euler_maruyama(
            case.problem, case.weights, schedule, dt=DT, paths=paths, rng=0, times=[end], threads=count
        )
        return paths * steps / (time.perf_counter() - start)

    rate(threads)
    one, all_, load = [], [], []
    for _ in range(rounds):
        one.append(rate(1))
        all_.append(rate(threads))
        load.append(os.getloadavg()[0])
    ratios = np.divide(all_, one)
    return {
        "shape": list(shape),
        "steps": steps,
        "paths": paths,
        "one": one,
        "all": all_,
        "load": load,
        "ratio": float(np.median(ratios)),
        "least": float(ratios.min()),
        "most": float(ratios.max()),
    }


def report(record: dict[str, Any]) -> str:
    """Return the table, with the load of the machine."""
    rows = [
        [
            ", ".join(map(str, case["shape"])),
            f"{np.median(case['one']):.4g}",
            f"{np.median(case['all']):.4g}",
            f"**{case['ratio']:.2f}** ({case['least']:.2f} to {case['most']:.2f})",
            f"{min(case['load']):.1f} to {max(case['load']):.1f}",
        ]
        for case in record["cases"]
    ]
    threads = record["threads"]
    return (
        f"# Threads on {record['processor']}, {threads} processors, {record['started']}\n\n"
        f"Path-steps per second of whole runs, double precision. Load at the start: {record['load'][0]}, the "
        f"load in the table includes our own. The target is {AIM} on two quiet processors.\n\n"
        + table(["d, h, n", "1 thread", f"{threads} threads", "ratio (minimum to maximum)", "load"], rows)
        + "\n"
    )


if __name__ == "__main__":
    main()
