"""Runs with K outputs and Poisson batches have the law that theory gives them, and no other."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from langevin import Phase, Problem, Schedule, Weights, euler_maruyama, zeroth_order

DT, TIMES, LEVEL = 0.02, [0.2, 0.4], 1e-3
METHODS = {"lp": ["lp", "lp"], "fft": ["fft", "fft"], "lp-fft": ["lp", "fft"]}


def schedule(method: str, **kinds: Any) -> Schedule:
    return Schedule([Phase(one, 0.2, **kinds) for one in METHODS[method]])  # pyright: ignore[reportArgumentType]


def net(loss: str, outputs: int = 3, width: int = 10, n: int = 6, d: int = 8) -> tuple[Problem, Weights]:
    """More dimensions than samples: part of the weights lies outside the span."""
    rng = np.random.default_rng(5)
    y: Any = np.arange(n) % outputs if loss in ("softmax", "ovr") else rng.standard_normal((n, outputs))
    X, W = rng.standard_normal((n, d)), 0.3 * rng.standard_normal((width, d))
    return Problem(X, y, "relu", loss), Weights(W, 0.3 * rng.standard_normal((width, outputs)))


def losses(run: xr.Dataset) -> list[np.ndarray]:
    values = run.loss.values
    return [values[:, 0], values[:, 1], values[:, 1] - values[:, 0]]


def pvalue(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Smallest Kolmogorov-Smirnov p-value, times their number."""
    tests: list[Any] = [stats.ks_2samp(x, y) for x, y in zip(a, b, strict=True)]
    return min(1.0, len(tests) * min(test.pvalue for test in tests))


# --- two classes are the scalar logistic net on sqrt(2) x (section 0') -----------------------------


def as_scalar(problem: Problem, weights: Weights, scale: float = 2**0.5) -> tuple[Problem, Weights]:
    signs = 2.0 * problem.y - 1
    head = (weights.v[:, 1] - weights.v[:, 0]) / scale
    return Problem(scale * problem.X, signs, problem.activation, "logistic"), Weights(weights.W, head)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("method", METHODS)
def test_two_classes_are_the_scalar_net_path_by_path(method, clip):
    problem, weights = net("softmax", outputs=2)
    given: dict[str, Any] = dict(dt=DT, times=TIMES)
    run = zeroth_order(problem, weights, schedule(method, clip=clip), **given)
    scalar = zeroth_order(*as_scalar(problem, weights), schedule(method, clip=clip), **given)
    np.testing.assert_allclose(run.loss, scalar.loss, rtol=1e-12)
    np.testing.assert_array_equal(run.accuracy, scalar.accuracy)
    # with heads of the same outputs at the start, but inputs as they are
    wrong = zeroth_order(*as_scalar(problem, weights, scale=1.0), schedule(method, clip=clip), **given)
    assert abs(wrong.loss / run.loss - 1).max() > 1e-3


@pytest.mark.parametrize("method", ["lp", "lp-fft"])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_two_classes_have_the_law_of_the_scalar_net(method, rate):
    problem, weights = net("softmax", outputs=2)
    noisy = schedule(method, sigma=0.3, clip=0.5, sample_rate=rate)
    given: dict[str, Any] = dict(dt=DT, times=TIMES, paths=10_000)
    run = losses(euler_maruyama(problem, weights, noisy, rng=1, **given))
    scalar = losses(euler_maruyama(*as_scalar(problem, weights), noisy, rng=2, **given))
    assert pvalue(run, scalar) > LEVEL
    wrong = losses(euler_maruyama(*as_scalar(problem, weights, scale=1.0), noisy, rng=2, **given))
    assert pvalue(run, wrong) < LEVEL


# --- exact second moments of linear probing (section 8'c) ------------------------------------------


def mean_losses(
    problem: Problem, weights: Weights, *, sigma: float, rate: float, steps: int, dt: float
) -> np.ndarray:
    """``tr Q / 2`` after each step, by the recursion of the second moments of the residuals."""
    A = problem.features(weights.W)
    K, R = A @ A.T, A @ weights.v - problem.y
    Q, decay, found = R @ R.T, np.eye(len(K)) - dt * K, []
    for _ in range(steps + 1):
        found.append(np.trace(Q) / 2)
        sampling = dt**2 * (1 - rate) / rate * K @ np.diag(np.diag(Q)) @ K
        Q = decay @ Q @ decay + sampling + 2 * sigma**2 * dt * R.shape[1] * K
    return np.array(found)


@pytest.mark.parametrize("reduce", ["none", "kernel"])
@pytest.mark.parametrize("rate", [0.5, 0.2])
def test_the_mean_loss_of_linear_probing_is_exact_with_batches(reduce, rate):
    problem, weights = net("square")
    A = problem.features(weights.W)
    # as large as steps in batches of this size can be, by and large
    dt, sigma, steps = 0.5 * rate / float(np.linalg.norm(A @ A.T, 2)), 0.2, 40
    run = euler_maruyama(
        problem,
        weights,
        Schedule.lp(time=steps * dt, sigma=sigma, sample_rate=rate),
        dt=dt,
        times=dt * np.arange(1, steps + 1, 3),
        paths=20_000,
        rng=3,
        reduce=reduce,
    )
    values = run.loss.values
    errors = values.std(axis=0, ddof=1) / len(values) ** 0.5

    def z(sigma: float = sigma, rate: float = rate) -> float:
        exact = mean_losses(problem, weights, sigma=sigma, rate=rate, steps=steps, dt=dt)[1::3]
        return float(np.abs((values.mean(axis=0) - exact) / errors).max())

    assert z() < 4
    # without the sampling term, with batches of another size, and with more noise
    assert z(rate=1.0) > 4
    assert z(rate=0.9 * rate) > 4
    assert z(sigma=1.1 * sigma) > 4
