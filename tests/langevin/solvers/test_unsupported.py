"""What no solver runs is refused by name, everywhere."""

from typing import Any

import numpy as np
import pytest

from empirical import run_schedule
from langevin import GramWeights, Problem, Schedule, Weights, euler_maruyama

WEIGHTS = Weights([[1.0, -0.5], [-0.5, 1.0]], [0.2, -0.3])
SEVERAL = Weights(WEIGHTS.W, np.ones((2, 3)))
SCALAR = Problem(np.eye(2), [1, -1])
SOFTMAX = Problem([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 1, 2], "linear", "softmax")
REAL = Problem(np.eye(2), np.ones((2, 3)), loss="square")
BATCHES = Schedule.fft(time=0.2, sample_rate=0.5)
RUNS: dict[str, Any] = {
    "classes": (SOFTMAX, SEVERAL, Schedule.fft(time=0.2), "K = 3 outputs"),
    "targets": (REAL, SEVERAL, Schedule.fft(time=0.2), "K = 3 outputs"),
    "batches": (Problem(np.eye(2), [1, -1], "linear"), WEIGHTS, BATCHES, r"sample_rate = 0\.5"),
}
NEURONS = ("misaligned", "distorted", "dead", "alignment", "preactivation", "head_alignment")


@pytest.mark.parametrize("case", RUNS)
def test_reductions_refuse_what_they_do_not_cover(case):
    *run, what = RUNS[case]
    for reduce in ("gram", "collapsed", "blocks"):
        with pytest.raises(ValueError, match=f"{reduce!r} does not cover {what} yet: take 'auto'"):
            euler_maruyama(*run, dt=0.1, rng=0, reduce=reduce)
    euler_maruyama(*run, dt=0.1, rng=0)


@pytest.mark.parametrize("case", RUNS)
def test_devices_and_observables_of_neurons_are_refused(case):
    *run, what = RUNS[case]
    with pytest.raises(ValueError, match=f"device must be 'cpu' with {what}, got 'cuda'"):
        euler_maruyama(*run, dt=0.1, rng=0, device="cuda")
    for name in NEURONS:
        with pytest.raises(ValueError, match=f"{name!r} needs a scalar head and full batches, got {what}"):
            euler_maruyama(*run, dt=0.1, rng=0, observables=[name])


@pytest.mark.parametrize("case", RUNS)
def test_real_dpsgd_refuses_them(case):
    *run, what = RUNS[case]
    run_schedule(SCALAR, WEIGHTS, Schedule.lp(time=0.2), dt=0.1)
    with pytest.raises(ValueError, match=f"one output, full batches and .* for run_schedule, got {what}"):
        run_schedule(*run, dt=0.1)


def test_accuracy_needs_classes():
    assert "accuracy" not in euler_maruyama(REAL, SEVERAL, Schedule.lp(time=0.2), dt=0.1, rng=0)
    with pytest.raises(ValueError, match="'accuracy' needs labels -1 and \\+1, or classes"):
        euler_maruyama(REAL, SEVERAL, Schedule.lp(time=0.2), dt=0.1, rng=0, observables=["accuracy"])


def test_gram_weights_of_several_outputs_run_in_linear_probing_alone():
    weights = GramWeights(SEVERAL.W, SEVERAL.v, 10**6)
    run = euler_maruyama(SOFTMAX, weights, Schedule.lp(time=0.2), dt=0.1, rng=0)
    assert '"kernel"' in run.attrs["config"]
    with pytest.raises(
        ValueError, match="GramWeights: 'gram' does not cover K = 3 outputs yet; take Weights"
    ):
        euler_maruyama(SOFTMAX, weights, Schedule.fft(time=0.2), dt=0.1, rng=0)
