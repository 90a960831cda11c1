"""Measure peak memory of runs of 10^4 paths of width 512 in separate processes; the target is 1 GiB."""

from __future__ import annotations

import subprocess
import sys
import time

from benchmarks.harness import environment

AIM = 2**30

# 101 record times, 100 steps: most of them in the cheap phase, which uses the same arrays
RUN = """
import resource
import numpy as np
from langevin import (
    Problem, Schedule, Weights, collapsed_features, euler_maruyama, gaussian_features, orthogonally_separable
)
rng = np.random.default_rng(0)
{network}
imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
schedule = Schedule.lp_fft(lp_time=0.9, fft_time=0.1, sigma=0.5, clip=1.0, sample_rate={rate})
run = euler_maruyama(problem, weights, schedule, dt=0.01, paths={paths}, rng=0)
assert run.sizes["time"] == 101
print(imported, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
# network, and sampling rate
NETWORKS = {
    "one output, all samples": (
        """
problem = orthogonally_separable(128, 32, rng=0)
weights = collapsed_features(problem, 512, rng=0)
""",
        1.0,
    ),
    "10 classes, batches at a rate of 0.1": (
        """
problem = Problem(rng.standard_normal((128, 32)), np.arange(128) % 10, "relu", "softmax")
weights = Weights(gaussian_features(512, 32, rng=0), rng.standard_normal((512, 10)) / 512**0.5)
""",
        0.1,
    ),
}


def peak(network: str, rate: float, paths: int) -> tuple[int, int]:
    """Return the peak resident bytes before the run, and overall."""
    command = [sys.executable, "-c", RUN.format(network=network, rate=rate, paths=paths)]
    done = subprocess.run(command, env=environment.clean_environment(), check=True, stdout=subprocess.PIPE)
    unit = 1 if sys.platform == "darwin" else 1024
    before, after = (int(word) * unit for word in done.stdout.split())
    return before, after


def main() -> None:
    print(f"{environment.processor()}; d = 32, h = 512, n = 128, 100 steps, 101 times", flush=True)
    for name, (network, rate) in NETWORKS.items():
        for paths in (1, 10_000):
            start = time.perf_counter()
            before, after = peak(network, rate, paths)
            print(
                f"{name}, {paths} paths: peak {after / 2**20:.0f} MiB, {before / 2**20:.0f} MiB of it before "
                f"the run (target: {AIM / 2**20:.0f} MiB); {time.perf_counter() - start:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
