"""Time bounds over 1000 times at width 512 and 100 samples, and bounds of 10 outputs on large features."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

import bounds
from benchmarks.harness import environment
from langevin import (
    Problem,
    Schedule,
    collapsed_features,
    gaussian_features,
    gaussian_head,
    linear_teacher,
    orthogonally_separable,
)
from langevin.model.weights import Weights

AIM, FORECAST_AIM, ROUNDS = 1.0, 10.0, 5
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


def outputs(dim: int) -> dict[str, Callable[[], object]]:
    """Return a call for each bound on linear nets, for 6000 samples, 1280 neurons and 10 outputs."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((6000, dim)) / np.sqrt(dim)
    problem = Problem(X, np.eye(10)[np.arange(6000) % 10], "linear", "square")
    W = rng.standard_normal((1280, dim)) / np.sqrt(dim)
    given = problem, Weights(W, 0.01 * rng.standard_normal((1280, 10)))
    short = {"time": 1e-3, "sigma": 1e-3}
    return {
        f"conserved_rates, k = {dim}": lambda: bounds.conserved_rates(
            *given, Schedule.lp_fft(lp_time=5e-4, fft_time=5e-4), 1e-3 * TIMES
        ),
        f"localised_loss, k = {dim}": lambda: bounds.localised_loss(
            *given, Schedule.fft(**short), 1e-3 * TIMES
        ),
        f"fft_expected_loss, k = {dim}": lambda: bounds.fft_expected_loss(
            *given, Schedule.fft(**short), 1e-3 * TIMES
        ),
    }


def forecast() -> Callable[[], object]:
    """Return a call of the forecast for 6000 samples, 1280 ReLU features and 10 classes."""
    rng = np.random.default_rng(0)
    centres, W = 0.5 * rng.standard_normal((10, 64)), rng.standard_normal((64, 1280)) / 8
    y, y_test = np.arange(6000) % 10, np.arange(2000) % 10
    A, A_test = (np.maximum((centres[c] + rng.standard_normal((len(c), 64))) @ W, 0) for c in (y, y_test))
    return lambda: bounds.probing_forecast(A, y, A_test, y_test, 1.0, 1e-5)


def report(name: str, call: Callable[[], object]) -> None:
    elapsed = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        elapsed.append(time.perf_counter() - start)
    print(
        f"{name}: {statistics.median(elapsed):.3f} s ({min(elapsed):.3f} to {max(elapsed):.3f} s)",
        flush=True,
    )


def main() -> None:
    print(
        f"{environment.processor()}; n = 100, d = 20, h = 512, 1000 times (target: {AIM:.0f} s)", flush=True
    )
    for name, call in cases().items():
        report(name, call)
    print(f"n = 6000, h = 1280, K = 10 (target: {FORECAST_AIM:.0f} s)", flush=True)
    report("probing_forecast", forecast())
    for dim in (64, 784):
        for name, call in outputs(dim).items():
            report(name, call)


if __name__ == "__main__":
    main()
