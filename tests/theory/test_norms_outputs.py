"""Norm bounds with K outputs and of the chain, against a plain NumPy chain."""

from typing import Any

import numpy as np
import pytest

import bounds
from bounds.support.growth import pull
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

STEPS, PATHS = 64, 300


def sizes(problem, weights, schedule, dt, times, seed, paths=PATHS):
    run = reference.chain_outputs(problem, weights, schedule, dt, paths, seed, times)
    return (run.W**2).sum((-1, -2)) + (run.v**2).sum((-1, -2))


def check(cases):
    ratios = {}
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4])
        schedule = strategies.sampled(rng, problem, (1.0, 0.5, 0.2), clip="on")
        dt, times = schedule.duration / STEPS, np.linspace(0, schedule.duration, 5)
        mean, error = reference.mean_and_error(sizes(problem, weights, schedule, dt, times, seed))
        band = bounds.expected_norm(problem, weights, schedule, times, dt=dt)
        assert band.valid.all()
        # at time 0 up to rounding
        assert (mean <= band.upper * (1 + 1e-12) + 4 * error).all(), seed
        ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / mean[-1])
    return ratios


def test_the_chain():
    check(20)


@pytest.mark.slow
def test_the_chain_many(tightness):
    for K, ratios in check(200).items():
        tightness(f"8'd: E||theta||^2 of the chain, K = {K}", ratios)


@pytest.mark.parametrize("loss", ["softmax", "ovr", "square"])
@pytest.mark.parametrize("method", ["lp", "fft"])
def test_the_growth_is_attained_by_the_worst_outputs(loss, method):
    """One sample with the outputs at which ``-r . f`` is largest; the others have no features."""
    K = 5
    y = [[3.0, 0, 0, 0, 0]] if loss == "square" else np.arange(K)
    problem = Problem(np.eye(K)[: len(y), :1], y, "linear", loss)
    own, other = problem.targets[0], 0.0 if loss == "softmax" else -1.0
    line = own if loss == "square" else np.where(own == 1, 1.0, other)
    outputs = np.linspace(0, 6, 60_001)[:, None] * line
    values = -(LOSSES[loss].residual(outputs, problem.targets[:1]) * outputs).sum(1)
    W, V = np.ones((1, 1, 1)), outputs[values.argmax()][None, None]
    dW, dV = reference.drift_outputs(problem, W, V, Phase(method, 1.0))
    measured = 2 * float((W * dW).sum() + (V * dV).sum())
    assert measured == pytest.approx(pull(problem, method) / problem.samples, rel=1e-6)
    # Omega of two classes, and of one output
    if loss != "square":
        assert measured > 1.5 * (4 if method == "fft" else 2) * 0.2784645


def test_omega_of_k_classes():
    for K, value in {2: 0.2785, 3: 0.4631, 10: 1.1010, 100: 2.629}.items():
        found = LOSSES["softmax"].growth(np.eye(K)[:1])  # pyright: ignore[reportOptionalCall]
        assert found[0] == pytest.approx(value, abs=6e-4)


def test_the_chain_needs_the_squares_of_its_steps():
    """One step of 1 from a zero head, of gradients clipped at 1: on full batches they add."""
    head = Weights([[3.0]], [[0.0, 0.0, 0.0]])
    spread = Problem(np.ones((4, 1)), [0, 1, 2, 0], "linear", "softmax")
    schedule = Schedule.lp(time=1.0, clip=1.0, sample_rate=0.25)
    mean, error = reference.mean_and_error(sizes(spread, head, schedule, 1.0, [1.0], 0, 4000))
    upper = bounds.expected_norm(spread, head, schedule, [1.0], dt=1.0).upper
    # of 4 gradients a quarter comes, with 4 times the weight; except for the extra one they cancel
    assert mean[0] - 9 == pytest.approx(3 * 4 + 1, abs=4 * error[0])
    assert upper == pytest.approx(9 + pull(spread, "lp") + 16 + 3 * 4)
    assert mean <= upper + 4 * error
    # the diffusion's bound
    assert mean > 9 + pull(spread, "lp") + 4 * error

    head = Weights([[3.0]], [0.0])
    same = Problem(np.ones((4, 1)), np.ones(4), "linear", "logistic")
    schedule = schedule.full_batches()
    moved = (reference.chain(same, head, schedule, 1.0, 1, 0, [1.0]).v ** 2).sum() + 9
    assert moved == 9 + 4**2
    assert moved <= bounds.expected_norm(same, head, schedule, [1.0], dt=1.0).upper
    assert moved > bounds.expected_norm(same, head, schedule, [1.0]).upper


def check_tails(cases, count):
    """Shares of paths above a level at the end and ever; clipping keeps steps inside stability."""
    ratios = {}
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4])
        sigma, clip = np.exp(rng.uniform((-1.5, -1.0), (0.3, 1.0)))
        time = float(np.exp(rng.uniform(-1, 0.3)))
        schedule, times = Schedule.fft(time=time, sigma=sigma, clip=clip), np.linspace(0, time, STEPS + 1)
        size = sizes(problem, weights, schedule, time / STEPS, times, seed, count)
        both: dict[Any, np.ndarray] = {"time": size[-1], "path": size.max(0)}
        for over, found in both.items():
            levels = np.quantile(found, [0.2, 0.5, 0.9])
            share = (found[:, None] >= levels).mean(0)
            tail = bounds.norm_tail(problem, weights, schedule, time, levels, over=over)
            assert (share <= tail + 4 * np.sqrt(share * (1 - share) / count)).all(), (over, seed)
            ratios.setdefault((over, problem.outputs_dim), []).append(tail[-1] / share[-1])
    return ratios


def test_tails_of_k_outputs():
    check_tails(20, 200)


@pytest.mark.slow
def test_tails_of_k_outputs_many(tightness):
    for (over, K), ratios in check_tails(240, 600).items():
        tightness(f"5c'(i): 10 % tail of the norm, one {over}, K = {K}", ratios)


def test_the_tail_needs_all_outputs():
    """A drift of nearly nothing: the norm is the noise's, of ``h (d + K)`` coordinates."""
    problem = Problem(1e-3 * np.eye(10), np.arange(10), "linear", "softmax")
    weights = Weights(np.zeros((3, 10)), np.zeros((3, 10)))
    schedule = Schedule.fft(time=1.0, sigma=3.0, clip=1e-3)
    found = sizes(problem, weights, schedule, 1 / 16, [1.0], 0, 2000)[0]
    level = float(np.median(found))
    tail = bounds.norm_tail(problem, weights, schedule, 1.0, level)
    assert 0.5 - 4 * np.sqrt(0.25 / 2000) <= tail <= 0.6
    scalar = Problem(problem.X, np.where(np.arange(10) % 2, 1.0, -1.0), "linear", "logistic")
    assert bounds.norm_tail(scalar, Weights(weights.W, np.zeros(3)), schedule, 1.0, level) < 0.1


def test_where_the_chain_has_no_bound():
    problem, weights = strategies.several(np.random.default_rng(0), 3, "softmax", "linear")
    unclipped = Schedule([Phase("lp", 0.5, 0.1), Phase("fft", 0.5, 0.1)])
    assert bounds.expected_norm(problem, weights, unclipped).valid.all()
    band = bounds.expected_norm(problem, weights, unclipped, [0.5, 1.0], dt=0.1)
    # in probing the residuals are bounded, and with them the drift
    assert band.valid.tolist() == [True, False]
    assert "the drift of a step has no bound" in band.reason
