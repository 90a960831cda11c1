"""Forecasts of private probing against DP-SGD with these settings, and the approximations that they make."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ncx2
from sklearn.datasets import load_digits

import bounds
from bounds.loss.law import correct, exceeds
from bounds.loss.moments import Diagonal, Moments, probing_of
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from langevin.solvers.diffusion import euler_maruyama

BUDGET = 1.0, 1e-5


def digits(width=48, samples=500):
    """Random ReLU features of ten digits, and the labels: training and held-out."""
    X, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    A = np.maximum(X / 16 @ rng.standard_normal((64, width)) / 8, 0.0)
    order = rng.permutation(len(y))
    train, test = order[:samples], order[samples : samples + 400]
    return A[train], y[train], A[test], y[test]


def dpsgd_runs(found, runs, seed, noise=1.0):
    """Final losses and accuracies on training and held-out data, and clipped shares: DP-SGD in NumPy."""
    rng, problem, how = np.random.default_rng(seed), found.problem, found.dpsgd
    X, Y, norms = problem.X, problem.targets, np.linalg.norm(problem.X, axis=1)
    V = np.zeros((runs, X.shape[1], Y.shape[1]))
    shares = []
    for _ in range(how.steps):
        residual = X @ V - Y
        lengths = np.linalg.norm(residual, axis=-1) * norms
        shares.append((lengths > how.clip * (1 + 1e-9)).mean(1))
        kept = np.minimum(1.0, how.clip / np.maximum(lengths, 1e-300))
        kept = kept * (rng.random(lengths.shape) < how.sample_rate)
        total = X.T @ (kept[..., None] * residual)
        total += noise * how.noise_multiplier * how.clip * rng.standard_normal(V.shape)
        V -= how.learning_rate / (how.sample_rate * len(X)) * total
    ends = [(X @ V, Y), (problem.X_test @ V, problem.y_test)]
    losses = [0.5 * ((f - t) ** 2).sum((-1, -2)) for f, t in ends]
    right = [(f.argmax(-1) == t.argmax(-1)).mean(-1) for f, t in ends]
    return np.array([*losses, *right, np.mean(shares, 0)])


def forecast_of(found):
    return np.array(
        [found.train_loss, found.test_loss, found.train_accuracy, found.test_accuracy, found.clipped]
    )


def check_forecast(epsilon, runs, features: tuple[Any, Any, Any, Any], **options: Any):
    found = bounds.probing_forecast(*features, epsilon, 1e-5, **options)
    assert found.valid
    values = dpsgd_runs(found, runs, 1)
    mean, error = values.mean(1), values.std(1, ddof=1) / np.sqrt(runs)
    # clipping of less than 1 % is all that the forecast of the losses leaves out
    z = (forecast_of(found)[:4] - mean[:4]) / error[:4]
    assert np.abs(z).max() < 4, z
    assert found.clipped == pytest.approx(mean[4], abs=0.002)
    # negative control: two thirds of the noise is seen in both losses
    less = dpsgd_runs(found, runs, 2, noise=2 / 3)
    z = (forecast_of(found)[:2] - less[:2].mean(1)) / (less[:2].std(1, ddof=1) / np.sqrt(runs))
    assert (z > 4).all(), z
    return found


def test_the_forecast_is_what_dpsgd_reaches_on_digits():
    assert check_forecast(1.0, 100, digits()).test_accuracy > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.3, 3.0])
@pytest.mark.parametrize("normalise", [True, False])
def test_the_forecast_is_what_dpsgd_reaches_on_digits_many(epsilon, normalise):
    check_forecast(epsilon, 100, digits(96, 900), normalise=normalise)


def test_the_engine_runs_the_forecast():
    found = bounds.probing_forecast(*digits(16, 200), 3.0, 1e-5, steps=[32], sample_rates=[0.25])
    run: Any = euler_maruyama(
        found.problem,
        found.weights,
        found.schedule,
        dt=found.dpsgd.dt,
        paths=200,
        rng=0,
        times=[found.schedule.duration],
    )
    loss = run.loss.values[:, 0]
    assert found.schedule.phases[0].clip == found.dpsgd.clip
    assert abs(loss.mean() - found.train_loss) < 4 * loss.std(ddof=1) / np.sqrt(200)


def exact_test_loss(found, *, dt=1.0, noise=1.0):
    """Expected held-out loss with another step and noise, exactly, without clipping."""
    phase = found.schedule.phases[0]
    steps, step = found.dpsgd.steps, dt * found.dpsgd.dt
    # sigma is proportional to the noise and to the root of the step
    sigma = phase.sigma * noise * np.sqrt(dt)
    schedule = Schedule([replace(phase, time=steps * step, sigma=sigma, clip=None)])
    end = [schedule.duration]
    return bounds.lp_expected_test_loss(found.problem, found.weights, schedule, end, dt=step).upper[0]


def test_the_settings_are_the_best_by_the_exact_moments():
    features = digits()
    given: dict[str, Any] = dict(criterion="loss", sample_rates=[0.5], clips=[1.5])
    found = bounds.probing_forecast(*features, *BUDGET, steps=[64], **given)
    here = exact_test_loss(found)
    assert found.test_loss == pytest.approx(here, rel=1e-4)
    # the grid of steps is spaced by the root of 2
    for dt in (0.5, 0.7, 1.4, 2.0):
        assert exact_test_loss(found, dt=dt) > here * (1 - 1e-3), dt
    assert exact_test_loss(found, dt=0.5) > 1.005 * here
    assert exact_test_loss(found, dt=2.0) > 1.005 * here
    # of several numbers of steps and clips, none alone gives more
    best = bounds.probing_forecast(*features, *BUDGET, criterion="loss", sample_rates=[0.5], steps=[8, 64])
    for steps in (8, 64):
        for clip in (1.2, 2.0):
            one = bounds.probing_forecast(
                *features, *BUDGET, criterion="loss", sample_rates=[0.5], steps=[steps], clips=[clip]
            )
            assert best.test_loss <= one.test_loss * (1 + 2e-3) or not one.valid


def test_the_cheapest_of_nearly_equal_settings_is_taken():
    features = digits()
    full = bounds.probing_forecast(*features, *BUDGET)
    other = bounds.probing_forecast(*features, *BUDGET, sample_rates=[1.0], steps=[512])
    assert full.dpsgd.sample_rate is not None
    assert full.dpsgd.sample_rate * full.dpsgd.steps < 512
    assert full.test_accuracy > other.test_accuracy - 0.005


def test_what_clips_too_much_is_not_valid():
    found = bounds.probing_forecast(*digits(), *BUDGET, clips=[0.5])
    assert not found.valid
    assert "of the gradients are clipped, more than 1%" in found.reason
    assert found.clipped > 0.01
    # at a small budget too, but with a clip that is large enough there are settings
    small = bounds.probing_forecast(*digits(), 0.1, 1e-5)
    assert small.valid
    assert small.dpsgd.clip >= 1.0


def test_labels_names_and_one_hot_rows_are_the_same():
    A, y, A_test, y_test = digits(16, 100)
    given: dict[str, Any] = dict(sample_rates=[1.0], steps=[16])
    found = bounds.probing_forecast(A, y, A_test, y_test, *BUDGET, **given)
    for of in (lambda c: [f"class {k}" for k in c], lambda c: np.eye(10)[c]):
        other = bounds.probing_forecast(A, of(y), A_test, of(y_test), *BUDGET, **given)
        assert forecast_of(other).tolist() == forecast_of(found).tolist()
    unit = A / np.linalg.norm(A, axis=1, keepdims=True)
    np.testing.assert_array_equal(found.problem.X, unit)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(y=[0.5, 1]), "y must hold class numbers"),
        (dict(y=np.ones((2, 2))), "y must hold one-hot rows"),
        (dict(y=[0, 1, 1]), "A and y must have the same length|as many"),
        (dict(A=np.zeros((2, 2))), "A must hold features other than 0"),
        (dict(A_test=np.ones((2, 3))), "A_test must have as many columns as A, got 3 and 2"),
        (dict(epsilon=0.0), "epsilon must be positive"),
        (dict(criterion="f1"), "criterion must be one of"),
        (dict(steps=[]), "steps must not be empty"),
        (dict(steps=[10**6]), r"steps must be whole numbers from 1 to 10000, got 1e\+06"),
        (dict(clips=[]), "clips must not be empty"),
        (dict(sample_rates=[0.1]), r"sample_rates must lie between 1/n = 0\.5 and 1, got 0\.1"),
    ],
)
def test_what_is_wrong_is_named(change, message):
    given = dict(A=np.eye(2), y=[0, 1], A_test=np.eye(2), y_test=[0, 1], epsilon=1.0, delta=1e-5) | change
    with pytest.raises(ValueError, match=message):
        bounds.probing_forecast(**given)


@pytest.mark.parametrize("rate", [0.05, 0.2])
def test_the_diagonal_neglects_what_is_of_second_order_in_sampling(rate):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((60, 12)) * rng.uniform(0.5, 1.5, (60, 1))
    problem = Problem(A, np.eye(3)[np.arange(60) % 3], "linear", "square")
    found = probing_of(problem, Weights(np.eye(12), np.zeros((12, 3))))

    def losses(steps):
        dt = 1.28 * rate / steps
        phase = Phase("lp", steps * dt, 0.05, sample_rate=rate)
        exact, diagonal, full = Moments(found, coupled=True), Diagonal(found), Moments(found, coupled=False)
        exact.advance(steps, dt, phase)
        for _ in range(steps):
            diagonal.refresh()
            diagonal.advance(1, dt, phase)
        full.advance(steps, dt, replace(phase, sample_rate=1.0))
        return abs(diagonal.loss() - exact.loss()), exact.loss() - full.loss()

    (neglected, sampling), (less, half) = losses(512), losses(1024)
    assert neglected < 1e-3 * sampling
    # the noise of sampling is proportional to the step at fixed time
    assert sampling / half == pytest.approx(2, rel=0.1)
    assert neglected / less == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize(("outputs", "allowed"), [(1, 0.008), (2, 0.006), (3, 0.004), (10, 0.001)])
def test_the_law_of_norms(outputs, allowed):
    centre = np.r_[0.0, np.geomspace(1e-3, 1e5, 60)][:, None]
    tails = np.array([0.5, 0.3, 0.1, 0.03, 0.01, 0.003])
    at = np.sqrt(ncx2.isf(tails, outputs, np.maximum(centre, 1e-12)))
    found = exceeds(np.sqrt(centre) + 0 * at, 1 + 0 * at, at, outputs)
    assert np.abs(found - tails).max() < allowed
    # negative control: another number of outputs
    assert np.abs(exceeds(np.sqrt(centre) + 0 * at, 1 + 0 * at, at, outputs + 1) - tails).max() > 10 * allowed


def test_the_chance_of_the_largest_output():
    rng = np.random.default_rng(0)
    mean, variance, label = rng.standard_normal((40, 10)), rng.uniform(0.001, 3, 40), rng.integers(0, 10, 40)
    draws = mean + np.sqrt(variance)[:, None] * rng.standard_normal((40_000, 40, 10))
    right = (draws.argmax(-1) == label).mean(0)
    found = correct(mean, variance, label)
    assert np.abs(found - right).max() < 4 * 0.5 / np.sqrt(40_000)
    assert np.abs(correct(mean, 1.2 * variance, label) - right).max() > 4 * 0.5 / np.sqrt(40_000)
