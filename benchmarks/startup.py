"""Measure the wall time of the whole command for one step, without and with cached compiled code."""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time

from benchmarks.harness import environment

AIMS = {"cold": 15.0, "warm": 2.0}
WARM_RUNS = 5

COMMAND = (
    *("-m", "langevin.simulate", "--width", "512", "--sigma", "0.5", "--paths", "1", "--json", "--no-bounds"),
    *("--time", "5e-4", "--dt", "5e-4", "--method", "fft", "--times", "2"),
)


def seconds(cache: str) -> tuple[float, float]:
    """Return wall and processor time of a new process that takes one step and caches its code in ``cache``.

    On a busy machine the wall time includes waiting.
    """
    start, before = time.perf_counter(), _processor_seconds()
    subprocess.run(
        [sys.executable, *COMMAND, "--out", f"{cache}/run.nc"],
        env={**environment.clean_environment(), "NUMBA_CACHE_DIR": cache},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start, _processor_seconds() - before


def _processor_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    print(f"{environment.processor()}; d = 16, h = 512, n = 64, one path, one step", flush=True)
    with tempfile.TemporaryDirectory() as cache:
        cold, busy = seconds(cache)
        print(
            f"cold: {cold:.1f} s, {busy:.1f} s of it on a processor (target: {AIMS['cold']:.0f} s)",
            flush=True,
        )
        walls, processors = zip(*(seconds(cache) for _ in range(WARM_RUNS)), strict=True)
    print(
        f"warm: {statistics.median(walls):.2f} s ({min(walls):.2f} to {max(walls):.2f} s, {WARM_RUNS} runs), "
        f"{statistics.median(processors):.2f} s of it on a processor (target: {AIMS['warm']:.0f} s)"
    )


if __name__ == "__main__":
    main()
