"""Runs with K outputs: strong and weak order of the chain, and what its steps conserve."""

from typing import Any

import numpy as np
import pytest

from langevin import Phase, Problem, Schedule, Weights, euler_maruyama, linear_teacher
from tests.helpers import end_states
from tests.langevin.solvers.test_order import slope


def net(activation: str = "relu", loss: str = "softmax", outputs: int = 3) -> tuple[Problem, Weights]:
    rng = np.random.default_rng(2)
    y: Any = np.arange(6) % outputs if loss in ("softmax", "ovr") else rng.standard_normal((6, outputs))
    problem = Problem(rng.standard_normal((6, 3)), y, activation, loss)
    return problem, Weights(0.7 * rng.standard_normal((5, 3)), 0.7 * rng.standard_normal((5, outputs)))


@pytest.mark.parametrize(
    ("activation", "loss", "clip"),
    [
        ("tanh", "softmax", None),
        pytest.param("relu", "softmax", 0.5, marks=pytest.mark.slow),
        pytest.param("linear", "ovr", None, marks=pytest.mark.slow),
        ("relu", "ovr", 0.5),
    ],
)
def test_strong_order(activation, loss, clip):
    """Against a run on the finest grid: 1 for smooth drift, at least 1/2 with kinks."""
    problem, weights = net(activation, loss)
    fine, paths = 0.25 / 2048, 400
    schedule = Schedule.lp_fft(lp_time=0.125, fft_time=0.125, sigma=0.4, clip=clip)
    reference = end_states(problem, weights, schedule, dt=fine, paths=paths, rng=3)
    dts, errors = fine * np.array([16, 32, 64, 128]), []
    for dt in dts:
        run = end_states(problem, weights, schedule, dt=dt, paths=paths, rng=3, noise_dt=fine)
        W, v = run[0] - reference[0], run[1] - reference[1]
        errors.append(np.sqrt((W**2).sum(axis=(1, 2)) + (v**2).sum(axis=(1, 2))))
    order, error = slope(dts, np.array(errors))
    least = 1 if activation != "relu" and clip is None else 0.5
    # the reference's own error, 1/16 of the smallest, steepens the slope by less than .1
    assert least - 3 * error < order < 1 + 3 * error + 0.1, (order, error)


def expected_loss(problem: Problem, weights: Weights, sigma: float, time: float, steps: int | None) -> float:
    """Expected loss of linear probing: of the diffusion (5a'), or of the chain in so many steps."""
    A, K = problem.features(weights.W), problem.outputs_dim
    values, vectors = np.linalg.eigh(A.T @ A)
    values = np.maximum(values, 0)
    best = np.linalg.lstsq(A, problem.y, rcond=None)[0]
    m = vectors.T @ (weights.v - best)
    if steps is None:
        means = m * np.exp(-values * time)[:, None]
        noise = np.where(values > 1e-12, sigma**2 * (1 - np.exp(-2 * values * time)), 0)
    else:
        dt = time / steps
        means = m * (1 - values * dt)[:, None] ** steps
        noise = values * 2 * sigma**2 * dt * sum((1 - values * dt) ** (2 * k) for k in range(steps))
    least = ((A @ best - problem.y) ** 2).sum()
    return float(0.5 * (least + (values[:, None] * means**2).sum() + K * noise.sum()))


def test_weak_order_one():
    """The run has the chain's expected loss, and the chain's bias is of order 1 in dt."""
    problem = linear_teacher(8, 4, activation="relu", outputs=3, rng=1)
    rng = np.random.default_rng(1)
    weights = Weights(rng.standard_normal((6, 4)), 0.3 * rng.standard_normal((6, 3)))
    sigma, time, paths = 0.04, 0.1, 20_000
    exact = expected_loss(problem, weights, sigma, time, None)
    schedule = Schedule.lp(time=time, sigma=sigma)
    for steps in (2, 4, 8):
        run = euler_maruyama(problem, weights, schedule, dt=time / steps, paths=paths, rng=9, times=[time])
        loss = run.loss.values[:, 0]
        error = loss.std() / paths**0.5
        assert abs(loss.mean() - expected_loss(problem, weights, sigma, time, steps)) < 4 * error
        # negative control: the bias is significant
        assert abs(loss.mean() - exact) > 4 * error
    bias = [expected_loss(problem, weights, sigma, time, n) - exact for n in (256, 512, 1024)]
    A = problem.features(weights.W)
    # the expansion's next term, of relative size dt lambda
    next_term = time / 256 * np.linalg.eigvalsh(A.T @ A)[-1]
    assert abs(np.log2(bias[0] / bias[1]) - 1) < next_term
    assert abs(np.log2(bias[1] / bias[2]) - 1) < next_term / 2


@pytest.mark.parametrize(("activation", "loss"), [("relu", "softmax"), ("linear", "ovr"), ("relu", "square")])
@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_clipping_and_batches_keep_neurons_balanced(activation, loss, rate):
    """``||V_j||^2 - ||w_j||^2`` moves by second-order terms of steps without noise alone (section 0')."""
    problem, weights = net(activation, loss)
    schedule = Schedule([Phase("fft", 0.5, clip=0.3, sample_rate=rate)])

    def moved(dt: float, sign: float = -1.0) -> float:
        W, V, span = end_states(problem, weights, schedule, dt=dt, paths=1, rng=4)
        kept = (V[0] ** 2).sum(axis=1) + sign * (span.embed(W[0]) ** 2).sum(axis=1)
        start = (weights.v**2).sum(axis=1) + sign * (weights.W**2).sum(axis=1)
        return float(np.abs(kept - start).max())

    coarse, fine = moved(2e-3), moved(5e-4)
    assert fine < 0.35 * coarse
    # negative control: the sum of both is moved by the drift itself
    assert moved(5e-4, sign=1.0) > 0.8 * moved(2e-3, sign=1.0) > 10 * coarse
