"""Section 1d: intervals for the diffusion's own expected loss, against simulated chains."""

from itertools import count
from typing import Any

import numpy as np
import pytest

import bounds
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies


def case(seed, decoupled=False):
    rng = np.random.default_rng(seed)
    if decoupled:
        problem, weights = strategies.decoupled(rng, spread=0.2)
    else:
        problem, weights = strategies.general(rng)
    sigma = float(np.exp(rng.uniform(-5, -2)))
    schedule = strategies.schedule(rng, clip="on", sigma=sigma, duration=float(np.exp(rng.uniform(-3, -0.5))))
    return problem, weights, schedule, np.linspace(0, schedule.duration, 5)


def check(usable, base: Any):
    ratios = []
    for seed in count():
        if len(ratios) >= usable:
            break
        problem, weights, schedule, times = case(seed, base == "sandwich")
        band = bounds.certified_loss(problem, weights, schedule, times, base=base)
        if base == "flow":
            assert band.valid.all()
        if not band.valid[1:].any():
            continue
        found = []
        for steps in (64, 128):
            run = reference.chain(problem, weights, schedule, schedule.duration / steps, 200, seed, times)
            found.append(reference.mean_and_error(run.losses(problem)))
        (coarse, _), (mean, error) = found
        # the same order of bias as the change on halving dt: both runs share no noise
        assert band.contains(mean, 5 * error + 2 * np.abs(mean - coarse) + 1e-9), seed
        k = int(np.flatnonzero(band.valid)[-1])
        ratios.append(band.upper[k] / mean[k])
    return ratios


def test_contains_the_expected_loss():
    check(8, "flow")
    check(8, "sandwich")


@pytest.mark.slow
def test_contains_the_expected_loss_many(tightness):
    for base in ("flow", "sandwich"):
        tightness(f"1d: certified loss, {base}", check(200, base))


def test_the_ends_are_in_order_where_they_meet():
    """At time 0, up to roundoff."""
    schedule = Schedule.fft(time=0.3, sigma=1.0, clip=1.0)
    for seed in range(30):
        rng = np.random.default_rng(seed)
        problem = Problem(rng.standard_normal((1, 2)), [1], activation="linear")
        weights = Weights(rng.standard_normal((9, 2)), rng.standard_normal(9))
        band = bounds.certified_loss(problem, weights, schedule, [0.0], base="sandwich")
        assert band.valid.all()
        assert (band.lower <= band.upper).all()


def test_a_narrower_interval_is_violated():
    # linear probing, square loss: the upper bound's curvature term is attained by equal eigenvalues
    problem = Problem(np.eye(2), [1.0, -1.0], "linear", "square")
    weights = Weights(np.eye(2), [1.0, -1.0])
    schedule = Schedule.lp(time=0.01, sigma=0.5)
    band = bounds.certified_loss(problem, weights, schedule, [0.01])
    run = reference.chain(problem, weights, schedule, 0.01 / 8, 4000, 0, [0.01])
    mean, error = reference.mean_and_error(run.losses(problem))
    assert band.contains(mean, 4 * error)
    assert mean[0] > 0.9 * band.upper[0] + 4 * error[0]


def test_stiff_probing_stays_stable():
    # 8100 time constants: a step that error control lets pass unseen would blow up
    problem, weights = Problem([[30.0]], [1.0], "linear", "square"), Weights([[3.0]], [0.0])
    times = np.array([0.0, 1e-4, 1.0])
    band = bounds.certified_loss(problem, weights, Schedule.lp(time=1.0), times)
    assert band.upper == pytest.approx(0.5 * np.exp(-2 * 8100 * times), rel=1e-6, abs=1e-12)


def test_where_it_does_not_hold():
    problem, weights = strategies.general(np.random.default_rng(0))
    assert not bounds.certified_loss(problem, weights, Schedule.fft(time=1.0, sigma=0.1)).valid[1:].any()
    late = Schedule([Phase("lp", 0.2, 0.1, 1.0), Phase("fft", 0.2, 0.1)])
    assert bounds.certified_loss(problem, weights, late, [0.1, 0.2, 0.3]).valid.tolist() == [
        True,
        True,
        False,
    ]
    assert not bounds.certified_loss(problem, weights, late, [0.3], base="sandwich").valid.any()
    with pytest.raises(ValueError, match="base must be one of"):
        bounds.certified_loss(problem, weights, late, base="guess")  # pyright: ignore[reportArgumentType]


def test_lipschitz_error():
    problem, weights = strategies.general(np.random.default_rng(0), n=3, d=2, h=4)
    schedule = Schedule.lp(time=1.0, sigma=0.3, clip=1.0)
    flat = bounds.lipschitz_error(problem, weights, schedule, [0.5, 1.0], constant=0.0).upper
    monotone = bounds.approximation_error(problem, weights, schedule, [0.5, 1.0], kind="monotone").upper
    assert flat == pytest.approx(monotone)
    # strong convexity: orthonormal features, unclipped square loss, Lambda = -1 is attained
    problem = Problem(np.eye(2), [1.0, -1.0], "linear", "square")
    weights = Weights(np.eye(2), np.zeros(2))
    schedule = Schedule.lp(time=2.0, sigma=0.3)
    still = Schedule.lp(time=2.0)
    run = reference.chain(problem, weights, schedule, 1 / 512, 2000, 0, [2.0])
    mean, error = reference.mean_and_error(
        run.distance2(reference.chain(problem, weights, still, 1 / 512, 1, 0, [2.0]))
    )
    upper = bounds.lipschitz_error(problem, weights, schedule, [2.0], constant=-1.0).upper
    assert np.abs(mean - upper) <= 4 * error + 2e-3
    assert mean > 0.8 * upper + 4 * error
