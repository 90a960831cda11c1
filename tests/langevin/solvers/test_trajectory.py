"""Weights along one path are those of the path that `euler_maruyama` observes."""

from typing import Any

import numpy as np
import pytest

from langevin import (
    GramWeights,
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    euler_maruyama,
    orthogonally_separable,
    zeroth_order,
)
from langevin.model.alignment import own_class
from langevin.solvers.trajectory import trajectory

TIMES = np.linspace(0.0, 0.2, 5)


@pytest.mark.parametrize(("loss", "rate"), [("logistic", 1.0), ("softmax", 0.5)])
@pytest.mark.parametrize("noisy", [True, False])
def test_it_is_the_path_that_is_observed(loss, rate, noisy):
    problem = orthogonally_separable(8, 12, loss=loss, test_samples=4, rng=0)
    weights = collapsed_features(problem, 6, rng=0)
    schedule = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.3, clip=1.0, sample_rate=rate)
    given: dict[str, Any] = dict(dt=0.01, times=TIMES)
    W, v = trajectory(problem, weights, schedule, **given, rng=3, observables=["test_accuracy"], noisy=noisy)
    if noisy:
        asked: dict[str, Any] = dict(
            rng=3, paths=2, reduce="span", observables=["test_accuracy", "preactivation"]
        )
        run = euler_maruyama(problem, weights, schedule, **given, **asked)
        assert not np.allclose(run.loss[0], run.loss[1], rtol=1e-3)
        run = run.isel(path=0)
    else:
        asked = dict(reduce="span", observables=["preactivation"])
        run = zeroth_order(problem, weights, schedule, **given, **asked)
    losses = [problem.losses(problem.outputs(Weights(*both))).sum() for both in zip(W, v, strict=True)]
    np.testing.assert_allclose(losses, run.loss, rtol=1e-12)
    own = np.array([problem.X[problem.y == c].mean(axis=0) for c in own_class(problem, weights.W)])
    np.testing.assert_allclose((W * own).sum(axis=-1), run.preactivation, rtol=1e-9, atol=1e-12)


def test_it_needs_single_neurons():
    problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1], activation="linear")
    with pytest.raises(ValueError, match="weights must hold single neurons"):
        trajectory(problem, GramWeights(np.eye(2), [1.0, 1.0], 10), Schedule.lp(time=0.1), dt=0.01)
