"""Bad input is refused by name, with its value and a remedy; nothing becomes a NaN curve."""

# pyright: reportArgumentType=false

import numpy as np
import pytest

from langevin import DPSGD, Phase, Problem, Schedule, Weights, euler_maruyama, zeroth_order
from tests.helpers import random_problem, random_weights

GOOD = Problem([[1.0, 2.0], [3.0, 4.0]], [1, -1])
WEIGHTS = Weights([[1.0, 0.0]], [1.0])
SCHEDULE = Schedule.fft(time=1.0, sigma=0.1, clip=1.0)

CASES = {
    "X with one dimension": (lambda: Problem([1.0, 2.0], [1, -1]), r"X must have 2 dimension"),
    "empty X": (lambda: Problem(np.zeros((0, 2)), []), r"X must not be empty"),
    "X and y that do not fit": (
        lambda: Problem([[1.0]], [1, -1]),
        r"X and y must have the same length, got 1 and 2",
    ),
    "NaN": (lambda: Problem([[np.nan, 1.0]], [1]), r"X must be finite, got nan at index \(0, 0\)"),
    "infinity": (lambda: Problem([[1.0]], [np.inf], loss="square"), r"y must be finite, got inf"),
    "labels 0 and 1": (lambda: Problem([[1.0], [2.0]], [0, 1]), r"labels -1 and \+1, got 0.0 at index 0"),
    "text": (lambda: Problem([["a"]], [1]), r"X must be an array of real numbers"),
    "complex numbers": (lambda: Problem([[1j]], [1]), r"X must be an array of real numbers"),
    "an array of them": (lambda: Problem(np.array([[1j]]), [1]), r"X must be an array of real numbers"),
    "activation": (
        lambda: Problem([[1.0]], [1], activation="tanh"),
        r"activation must be one of 'relu', 'linear'; got 'tanh'",
    ),
    "loss": (lambda: Problem([[1.0]], [1], loss="hinge"), r"loss must be one of"),
    "half a test set": (
        lambda: Problem([[1.0]], [1], X_test=[[1.0]]),
        r"X_test and y_test must be given together",
    ),
    "test set of another dimension": (
        lambda: Problem([[1.0]], [1], X_test=[[1.0, 2.0]], y_test=[1]),
        r"X_test must have as many columns as X, got 2 and 1",
    ),
    "W and v that do not fit": (lambda: Weights([[1.0]], [1.0, 2.0]), r"W and v must have the same length"),
    "negative clip": (lambda: Phase("fft", 1.0, clip=-1.0), r"clip must be positive or None, got -1.0"),
    "zero clip": (lambda: Phase("fft", 1.0, clip=0), r"clip must be positive or None, got 0"),
    "negative sigma": (lambda: Phase("fft", 1.0, sigma=-0.1), r"sigma must be zero or positive, got -0.1"),
    "zero time": (lambda: Schedule.fft(time=0.0), r"time must be positive, got 0.0"),
    "time that is text": (lambda: Schedule.fft(time="long"), r"time must be a number, got 'long'"),
    "unknown keyword": (lambda: Schedule.fft(time=1.0, noise=1.0), r"noise"),
    "no phases": (lambda: Schedule([]), r"phases must hold at least one"),
    "phases that are none": (lambda: Schedule(["lp"]), r"phases must hold langevin.Phase, got str"),
    "normalised without clip": (
        lambda: Phase("fft", 1.0, clipping="normalised"),
        r"clip must be positive with clipping='normalised', got None",
    ),
    "sample rate": (
        lambda: DPSGD(0.1, 1.0, 1.0, 3, sample_rate=1.5, samples=3),
        r"sample_rate must lie in \[0, 1\]",
    ),
    "problem that is none": (lambda: run(problem="digits"), r"problem must be a langevin.Problem, got str"),
    "weights of another dimension": (
        lambda: run(weights=Weights([[1.0]], [1.0])),
        r"weights.W must have as many columns as problem.X, got 1 and 2",
    ),
    "zero dt": (lambda: run(dt=0.0), r"dt must be positive, got 0.0"),
    "dt over the phase": (lambda: run(dt=3.0), r"dt must be at most the length"),
    "dt of too many steps": (lambda: run(dt=1e-12), r"fewer than 2\^32 steps"),
    "no paths": (lambda: run(paths=0), r"paths must be at least 1, got 0"),
    "paths that are no whole number": (lambda: run(paths=2.5), r"paths must be a whole number, got 2.5"),
    "threads": (lambda: run(threads=0), r"threads must be at least 1, got 0"),
    "precision": (lambda: run(precision="half"), r"precision must be one of 'double', 'single'; got 'half'"),
    "reduce": (lambda: run(reduce="all"), r"reduce must be one of 'auto', 'none', .*; got 'all'"),
    "times beyond the end": (lambda: run(times=[0.0, 2.0]), r"times must lie in \[0, 1\]"),
    "times that fall": (lambda: run(times=[0.5, 0.1]), r"times must increase strictly, got 0.5 before 0.1"),
    "observable": (lambda: run(observables=["speed"]), r"observables must be among .*; got 'speed'"),
    "held-out observable": (lambda: run(observables=["knn_accuracy"]), r"needs held-out points"),
    "noise grid": (lambda: run(noise_dt=0.3), r"dt must be a whole multiple of noise_dt, got 0.1 and 0.3"),
    "tolerance": (lambda: zeroth_order(GOOD, WEIGHTS, SCHEDULE, rtol=0.0), r"rtol must be positive, got 0.0"),
    "more memory than there is": (
        lambda: run(paths=10**12, observables=["alignment"]),
        r"needs .* GiB, .* GiB are free: take fewer paths",
    ),
}


def run(**changes):
    arguments = {"problem": GOOD, "weights": WEIGHTS, "schedule": SCHEDULE, "dt": 0.1, "rng": 0}
    return euler_maruyama(**{**arguments, **changes})


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case):
    call, message = CASES[case]
    with pytest.raises((ValueError, TypeError, MemoryError), match=message):
        call()


@pytest.mark.parametrize(
    ("problem", "weights", "schedule"),
    [
        (Problem([[2.0]], [1]), Weights([[1.0]], [1.0]), SCHEDULE),
        (Problem(np.zeros((3, 2)), [1, -1, 1]), random_weights(0, 3, 2), SCHEDULE),
        (Problem(np.ones((4, 2)), [1, 1, 1, 1]), random_weights(0, 3, 2), SCHEDULE),
        (random_problem(0, 2, 5000), random_weights(0, 3, 5000), SCHEDULE),
        (random_problem(0), random_weights(0), Schedule.fft(time=0.1, sigma=1e6, clip=1e-300)),
        (random_problem(0), random_weights(0), Schedule.lp(time=0.1, sigma=0.0, clip=1e300)),
        (random_problem(0), Weights(np.zeros((3, 4)), np.zeros(3)), SCHEDULE),
        (random_problem(0), random_weights(0, scale=1e-150), SCHEDULE),
    ],
    ids=["n=d=h=1", "X=0", "one class", "d=5000", "huge sigma", "huge clip", "zero weights", "tiny weights"],
)
def test_extremes_work(problem, weights, schedule):
    result = euler_maruyama(problem, weights, schedule, dt=0.1, paths=3, rng=0)
    for name in result.data_vars:
        assert np.isfinite(result[name]).all(), name
