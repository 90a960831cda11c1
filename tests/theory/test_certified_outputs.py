"""Section 1d': intervals for the expected loss with K outputs and of the chain, against the engine."""

from itertools import count

import numpy as np
import pytest

import bounds
from langevin import euler_maruyama
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

STEPS, PATHS = 64, 200


def losses(problem, weights, schedule, dt, times, seed, paths=PATHS):
    run = euler_maruyama(
        problem, weights, schedule, dt=dt, paths=paths, rng=seed, times=times, threads=1
    ).loss.values
    return run.mean(0), run.std(0, ddof=1) / np.sqrt(paths)


def case(seed, rates=(1.0,), activation=None):
    rng = np.random.default_rng(seed)
    problem, weights = strategies.several(rng, strategies.CLASSES[seed % 4], activation=activation)
    sigma, duration = float(np.exp(rng.uniform(-5, -2))), float(np.exp(rng.uniform(-3, -0.5)))
    schedule = strategies.sampled(rng, problem, rates, clip="on", sigma=sigma, duration=duration)
    return problem, weights, schedule, np.linspace(0, schedule.duration, 5)


def check_diffusion(cases, activation=None):
    ratios = {}
    for seed in range(cases):
        problem, weights, schedule, times = case(seed, activation=activation)
        band = bounds.certified_loss(problem, weights, schedule, times)
        assert band.valid.all()
        dt = schedule.duration / (2 * STEPS)
        coarse, _ = losses(problem, weights, schedule, 2 * dt, times, seed)
        mean, error = losses(problem, weights, schedule, dt, times, seed)
        # the same order of bias as the change on halving dt: both runs share no noise
        assert band.contains(mean, 4 * error + 2 * np.abs(mean - coarse) + 1e-9), seed
        ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / mean[-1])
    return ratios


def check_chain(usable):
    ratios = {}
    for seed in count():
        if sum(map(len, ratios.values())) >= usable:
            break
        problem, weights, schedule, times = case(seed, (1.0, 0.5, 0.2))
        dt = schedule.duration / STEPS
        band = bounds.certified_loss(problem, weights, schedule, times, dt=dt)
        if not band.valid.all():
            refused = "fourth moment" if problem.loss == "square" else "dt="
            assert refused in band.reason
            assert schedule.phases[-1].method == "fft" or refused == "dt="
            continue
        mean, error = losses(problem, weights, schedule, dt, times, seed)
        assert band.contains(mean, 4 * error + 1e-9), seed
        ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / mean[-1])
    return ratios


def test_the_diffusion():
    check_diffusion(20, "linear")


def test_the_chain():
    check_chain(20)


@pytest.mark.slow
def test_the_diffusion_many(tightness):
    for K, ratios in check_diffusion(200).items():
        tightness(f"1d': certified loss, K = {K}", ratios)


@pytest.mark.slow
def test_the_chain_many(tightness):
    for K, ratios in check_chain(200).items():
        tightness(f"1d': certified loss of the chain, K = {K}", ratios)


def test_a_narrower_interval_is_violated():
    """Probing equal features of the square loss: the first-order term is 0, the curvature is attained."""
    problem, weights = Problem(np.eye(2), np.eye(2), "linear", "square"), Weights(np.eye(2), np.eye(2))
    schedule = Schedule.lp(time=1 / 64, sigma=0.5)
    mean, error = losses(problem, weights, schedule, 1 / 512, [1 / 64], 0, 4000)
    for dt in (None, 1 / 512):
        band = bounds.certified_loss(problem, weights, schedule, [1 / 64], dt=dt)
        assert band.contains(mean, 4 * error)
        assert mean > 0.9 * band.upper + 4 * error
        # p of one output
        assert mean > 0.5 * band.upper + 4 * error


def test_the_lower_end_needs_its_slope():
    """The batches alone move the loss here: without their noise the interval is one point."""
    problem, weights = strategies.several(np.random.default_rng(1), 3, "softmax", "linear", n=8, d=3, h=4)
    schedule = Schedule.lp(time=1.0, clip=1.0, clipping="margin", sample_rate=0.25)
    dt = 1 / 16
    mean, error = losses(problem, weights, schedule, dt, [1.0], 0, 2000)
    assert bounds.certified_loss(problem, weights, schedule, [1.0], dt=dt).contains(mean, 4 * error)
    still = bounds.certified_loss(problem, weights, schedule.full_batches(), [1.0], dt=dt)
    assert still.upper == pytest.approx(still.lower)
    assert mean > still.upper + 4 * error


def test_the_interval_of_probing_is_inside_the_older_one():
    """``||A^T R||`` replaces ``sum ||r_i|| ||A_i||``, and ``A sum ||A_i||`` for bounded slopes."""
    narrower = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.general(rng)
        schedule = strategies.schedule(rng, clip="on", sigma=0.2, methods=["lp"], duration=0.5)
        times = np.linspace(0, schedule.duration, 5)
        band = bounds.certified_loss(problem, weights, schedule, times)
        flow = reference.flow(problem, weights, schedule, times)
        outputs, e = flow.outputs(problem)[:, 0], 2 * weights.width * 0.2**2 * times
        A = problem.features(weights.W)
        norms, loss = np.linalg.norm(A, axis=1), problem.losses(outputs).sum(1)
        if LOSSES[problem.loss].largest_residual is None:
            below = np.sqrt(e) * (np.abs(problem.residuals(outputs)) @ norms)
            above = below + np.linalg.norm(A, 2) ** 2 * e / 2
        else:
            above = below = np.sqrt(e) * norms.sum()
        slack = 1e-6 * (1 + loss)
        assert (band.upper <= loss + above + slack).all()
        assert (band.lower >= np.maximum(loss - below, 0) - slack).all()
        narrower += (band.upper - band.lower)[-1] < 0.9 * (above + np.minimum(below, loss))[-1]
    assert narrower > 10


def test_where_it_does_not_hold():
    problem, weights = strategies.several(np.random.default_rng(0), 3, "square", "linear", n=6)
    batches = Schedule([Phase("lp", 0.5, 0.1, 1.0, sample_rate=0.5), Phase("fft", 0.5, 0.1, 1.0)])
    band = bounds.certified_loss(problem, weights, batches, [0.25, 0.5, 0.75], dt=1 / 64)
    assert band.valid.tolist() == [True, True, False]
    assert "fourth moment" in band.reason
    assert not bounds.certified_loss(problem, weights, batches, [0.25]).valid.any()
    full = batches.full_batches()
    assert bounds.certified_loss(problem, weights, full, [0.25, 0.75], dt=1 / 64).valid.all()
    refused = bounds.certified_loss(problem, weights, full, [0.25], base="sandwich")
    assert "K = 3 outputs are not covered" in refused.reason
    with pytest.raises(ValueError, match="base must be 'flow' with dt, got 'sandwich'"):
        bounds.certified_loss(problem, weights, full, base="sandwich", dt=0.1)
