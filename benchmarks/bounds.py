"""Time bounds over 1000 times at width 512 and 100 samples; the target is one second."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

import bounds
from benchmarks.harness import environment
from langevin import (
    Schedule,
    collapsed_features,
    gaussian_features,
    gaussian_head,
    linear_teacher,
    orthogonally_separable,
)
from langevin.model.weights import Weights

AIM, ROUNDS = 1.0, 5
TIMES = np.linspace(0, 1, 1000)


def cases() -> dict[str, Callable[[], object]]:
    """Return a call for each bound."""
    separable = orthogonally_separable(100, 20, spread=0.05, rng=0)
    features = collapsed_features(separable, 512, head_scale=0.05, rng=0)
    teacher = linear_teacher(100, 20, activation="linear", rng=0)
    linear = Weights(gaussian_features(512, 20, rng=0), gaussian_head(512, rng=0))
    clipped = Schedule.lp_fft(lp_time=0.4, fft_time=0.6, sigma=0.1, clip=0.1)
    unclipped = Schedule.fft(time=1.0, sigma=0.01)
    found: dict[str, Callable[[], object]] = {
        f"approximation_error, {kind}": lambda kind=kind: bounds.approximation_error(
            separable, features, clipped, TIMES, kind=kind
        )
        for kind in ("paper", "monotone", "lambert")
    }
    found["sandwich"] = lambda: bounds.sandwich(separable, features, clipped, TIMES)
    found["fft_expected_loss"] = lambda: bounds.fft_expected_loss(teacher, linear, unclipped, TIMES)
    found["lp_expected_loss"] = lambda: bounds.lp_expected_loss(
        teacher, linear, Schedule.lp(time=1.0, sigma=0.01), TIMES
    )
    return found


def main() -> None:
    print(
        f"{environment.processor()}; n = 100, d = 20, h = 512, 1000 times (target: {AIM:.0f} s)", flush=True
    )
    for name, call in cases().items():
        elapsed = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            call()
            elapsed.append(time.perf_counter() - start)
        print(
            f"{name}: {statistics.median(elapsed):.3f} s ({min(elapsed):.3f} to {max(elapsed):.3f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
