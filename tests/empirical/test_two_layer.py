"""Full-batch DP-SGD of the torch network is the Euler-Maruyama chain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from empirical.data.scikit import digits
from empirical.networks.bodies import Classifier, convnet, mlp
from empirical.two_layer import from_torch, problem_of, run_schedule, to_torch
from langevin import Phase, Problem, Schedule, Weights, euler_maruyama
from langevin.model.activations import ACTIVATIONS
from tests.helpers import SCALAR_LOSSES

RANDOM = np.random.default_rng(3)
X = RANDOM.normal(size=(9, 4))
Y = np.where(RANDOM.random(9) < 0.5, -1.0, 1.0)
WEIGHTS = Weights(RANDOM.normal(size=(6, 4)), RANDOM.normal(size=6))
SCHEDULES = {
    "lp": Schedule.lp(time=0.2, sigma=0.3, clip=1.0),
    "fft": Schedule.fft(time=0.2, sigma=0.3, clip=1.0),
    "lp-fft": Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.3, clip=0.7),
    "unclipped": Schedule.fft(time=0.2, sigma=0.1),
    "normalised": Schedule([Phase("fft", 0.2, 0.3, 1.0, "normalised", 0.1)]),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())
@pytest.mark.parametrize("loss", SCALAR_LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_full_batch_is_euler_maruyama_step_by_step(schedule: Schedule, loss: str, activation: str) -> None:
    problem = Problem(X, Y, activation, loss)
    times = np.linspace(0, 0.2, 21)
    options: dict[str, Any] = dict(dt=0.01, paths=2, times=times)
    simulated = euler_maruyama(problem, WEIGHTS, schedule, rng=5, reduce="none", **options)
    trained = run_schedule(problem, WEIGHTS, schedule, rng=5, **options)
    # twenty steps of sums of a few terms each, in double precision
    np.testing.assert_allclose(trained.loss, simulated.loss, rtol=1e-11)
    np.testing.assert_array_equal(trained.accuracy, simulated.accuracy)
    other = run_schedule(problem, WEIGHTS, schedule, rng=6, **options)
    assert np.abs(other.loss - simulated.loss).max() > 1e-3


def test_poisson_batches_keep_the_mean_step() -> None:
    problem = Problem(X, Y)
    schedule = Schedule.fft(time=0.01, clip=1.0)
    full = run_schedule(problem, WEIGHTS, schedule, dt=0.01)
    sampled = run_schedule(problem, WEIGHTS, schedule, dt=0.01, sample_rate=0.5, paths=400)
    change = sampled.loss[:, -1].values - sampled.loss[:, 0].values
    error = change.std(ddof=1) / np.sqrt(len(change))
    expected = float(full.loss[0, -1] - full.loss[0, 0])
    # one small step: the loss is linear in it, except for a term of its square
    curvature = expected**2
    assert abs(change.mean() - expected) < 4 * error + curvature
    assert abs(change.mean() - 0.5 * expected) > 4 * error + curvature


def test_weights_go_both_ways() -> None:
    back = from_torch(to_torch(WEIGHTS))
    np.testing.assert_array_equal(back.W, WEIGHTS.W)
    np.testing.assert_array_equal(back.v, WEIGHTS.v)


@pytest.mark.parametrize(
    "model",
    [
        Classifier(mlp((4,), (3,), bias=True), 1),
        Classifier(mlp((4,), (3,), bias=False), 2),
        Classifier(mlp((4,), (3, 3), bias=False), 1),
        Classifier(convnet((1, 8, 8), widths=(8,), groups=4), 1),
    ],
    ids=["biases", "outputs", "depth", "convolutions"],
)
def test_other_networks_are_refused(model: torch.nn.Module) -> None:
    with pytest.raises(ValueError, match="two-layer network of one output without biases"):
        from_torch(model)


def test_digits_as_a_problem() -> None:
    task = digits()
    problem = problem_of(task, ["3", "8"])
    assert problem.classification
    assert problem.X_test is not None
    assert problem.samples == (np.isin(task.train.labels, [3, 8])).sum()
    # threes and eights are told apart by a linear classifier, if labels and rows belong together
    solution = np.linalg.lstsq(problem.X, problem.y, rcond=None)[0]
    assert problem.y_test is not None
    assert (problem.y_test * (problem.X_test @ solution) > 0).mean() > 0.9
    with pytest.raises(ValueError, match="classes must be two names"):
        problem_of(task, ["3"])


def test_bad_input() -> None:
    problem = Problem(X, Y)
    with pytest.raises(ValueError, match=r"sample_rate must lie in \(0, 1\], got 0"):
        run_schedule(problem, WEIGHTS, SCHEDULES["lp"], dt=0.01, sample_rate=0)
    with pytest.raises(ValueError, match="paths must be at least 1"):
        run_schedule(problem, WEIGHTS, SCHEDULES["lp"], dt=0.01, paths=0)
