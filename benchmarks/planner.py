"""Time the planner's simulation of ten classes of digits: all divisions of the steps, from several draws.

``python -m benchmarks.planner`` prints what a plan's search takes. ``--quick`` simulates few steps.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.harness import environment
from empirical.planning.inputs import prepare_inputs
from empirical.planning.stand_in import Settings, Split, StandIn

STEPS, QUICK_STEPS, BATCH, DIVISIONS, DRAWS, ROUNDS = 200, 10, 256.0, 11, 8, 3


def stand_in() -> StandIn:
    """Return the stand-in for ten classes of digits on their pixels, as a plan builds it."""
    digits: Any = load_digits()
    pixels = digits.data / np.linalg.norm(digits.data, axis=1, keepdims=True)
    random = np.random.default_rng(0)
    return prepare_inputs(pixels, digits.target, None, None, None, None, None, random).net


def task(steps: int) -> tuple[Settings, list[Split], list[np.random.SeedSequence]]:
    """Return settings, divisions of the steps and draws."""
    splits = [Split(round(share * steps), 4.0, 2.0) for share in np.linspace(0, 1, DIVISIONS)]
    return Settings(steps, BATCH, 1.0, 1.0), splits, np.random.SeedSequence(0).spawn(DRAWS)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few steps")
    steps = QUICK_STEPS if parser.parse_args().quick else STEPS
    environment.restart_without_overrides()
    net, (how, splits, draws) = stand_in(), task(steps)
    # compiled before it is timed
    best = net.run(how, splits, draws).accuracy.mean(axis=1).max()
    elapsed = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        net.run(how, splits, draws)
        elapsed.append(time.perf_counter() - start)
    print(
        f"{environment.processor()}; {net.method}; {steps} steps, {DIVISIONS} divisions, {DRAWS} draws: "
        f"{statistics.median(elapsed):.3f} s ({min(elapsed):.3f} to {max(elapsed):.3f} s); "
        f"best accuracy {best:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
