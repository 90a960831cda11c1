"""What no solver runs is refused by name, everywhere."""

import re
from typing import Any

import numpy as np
import pytest

from langevin import GramWeights, Problem, Schedule, Weights, euler_maruyama, zeroth_order

WEIGHTS = Weights([[1.0, -0.5], [-0.5, 1.0]], [0.2, -0.3])
SEVERAL = Weights(WEIGHTS.W, np.ones((2, 3)))
SOFTMAX = Problem([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0, 1, 2], "linear", "softmax")
REAL = Problem(np.eye(2), np.ones((2, 3)), loss="square")
BATCHES = Schedule.fft(time=0.2, sample_rate=0.5)
RUNS: dict[str, Any] = {
    "classes": (SOFTMAX, SEVERAL, Schedule.fft(time=0.2), "K = 3 outputs"),
    "targets": (REAL, SEVERAL, Schedule.fft(time=0.2), "K = 3 outputs"),
    "batches": (Problem(np.eye(2), [1, -1], "linear"), WEIGHTS, BATCHES, r"sample_rate = 0\.5"),
}


@pytest.mark.parametrize("case", RUNS)
def test_reductions_refuse_what_they_do_not_cover(case):
    *run, what = RUNS[case]
    with pytest.raises(ValueError, match=f"'collapsed' covers one output and full batches, not {what}"):
        euler_maruyama(*run, dt=0.1, rng=0, reduce="collapsed")
    euler_maruyama(*run, dt=0.1, rng=0)


OBSERVED: dict[str, Any] = {
    "a cone of real targets": ("targets", "cone_distance", "needs labels -1 and +1, or classes"),
    "a share of real targets": ("targets", "misaligned", "needs labels -1 and +1, or classes"),
    "classes of real targets": ("targets", "class_accuracy", "needs labels -1 and +1, or classes"),
    "held-out classes": ("classes", "test_confusion", "needs held-out points"),
    "a signed head": ("classes", "head_alignment", "needs one output, got K = 3: take 'cone_distance'"),
    "whole misalignment": ("batches", "wholly_misaligned", "needs K outputs, got one: take 'misaligned'"),
}


@pytest.mark.parametrize("case", OBSERVED)
def test_observables_are_refused(case):
    run, name, reason = OBSERVED[case]
    for solve in (euler_maruyama, zeroth_order):
        noise: dict[str, Any] = {"rng": 0} if solve is euler_maruyama else {}
        with pytest.raises(ValueError, match=f"observables: {name!r} {re.escape(reason)}"):
            solve(*RUNS[run][:3], dt=0.1, observables=[name], **noise)
        found = solve(*RUNS[run][:3], dt=0.1, **noise)
        assert ("misaligned" in found) == (run != "targets")


def test_accuracy_needs_classes():
    assert "accuracy" not in euler_maruyama(REAL, SEVERAL, Schedule.lp(time=0.2), dt=0.1, rng=0)
    with pytest.raises(ValueError, match="'accuracy' needs labels -1 and \\+1, or classes"):
        euler_maruyama(REAL, SEVERAL, Schedule.lp(time=0.2), dt=0.1, rng=0, observables=["accuracy"])


def test_gram_weights_of_several_outputs_know_no_neurons():
    weights = GramWeights(SEVERAL.W, SEVERAL.v, 10**6)
    for schedule, reduce in ((Schedule.lp(time=0.2), "kernel"), (BATCHES, "gram")):
        run = euler_maruyama(SOFTMAX, weights, schedule, dt=0.1, rng=0, reduce=reduce)
        assert np.isfinite(run.loss).all()
        with pytest.raises(ValueError, match="GramWeights: 'gram' simulates no single neurons, which dead"):
            euler_maruyama(SOFTMAX, weights, schedule, dt=0.1, rng=0, observables=["dead"])
