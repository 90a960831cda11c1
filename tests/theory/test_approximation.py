"""Section 1: the bounds on the distance to the zeroth-order flow, against simulated chains."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

import bounds
from bounds.distance.approximation import KINDS
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

TIMES = 9
PATHS = 400


def case(seed, **kwargs):
    rng = np.random.default_rng(seed)
    problem, weights = strategies.general(rng, **kwargs)
    schedule = strategies.schedule(rng, clip="on")
    times = np.linspace(0, schedule.duration, TIMES)
    return problem, weights, schedule, times


def measured(problem, weights, schedule, times, seed, paths=PATHS, parts=256):
    """Mean squared distance, its standard error, and the change on halving dt."""
    found = []
    still = Schedule([replace(phase, sigma=0.0) for phase in schedule])
    for steps in (parts // 2, parts):
        dt = schedule.duration / steps
        ode = reference.chain(problem, weights, still, dt, 1, 0, times)
        run = reference.chain(problem, weights, schedule, dt, paths, seed, times)
        found.append(reference.mean_and_error(run.distance2(ode)))
    (coarse, e0), (mean, error) = found
    bias = np.maximum(np.abs(mean - coarse) - 3 * np.hypot(error, e0), 0)
    return mean, error, bias


def check(count, kinds=KINDS):
    ratios = {kind: [] for kind in kinds}
    for seed in range(count):
        problem, weights, schedule, times = case(seed)
        mean, error, bias = measured(problem, weights, schedule, times, seed)
        for kind in kinds:
            band = bounds.approximation_error(problem, weights, schedule, times, kind=kind)
            assert band.valid.all()
            assert (mean <= band.upper + 4 * error + bias).all(), (kind, seed)
            ratios[kind].append(band.upper[-1] / mean[-1])
    return ratios


def test_bounds_hold():
    check(8)


@pytest.mark.slow
def test_bounds_hold_many(tightness):
    for kind, ratios in check(200).items():
        tightness(f"1: E||theta - theta~||^2, {kind}", ratios)


@settings(max_examples=20)
@given(strategies.problems_and_weights, strategies.schedules)
def test_bounds_rise_in_time_and_in_the_noise(case, schedule):
    problem, weights = case
    times = np.linspace(0, schedule.duration, 9)
    louder = Schedule([replace(phase, sigma=phase.sigma + 0.1) for phase in schedule])
    for kind in ("paper", "monotone", "lambert"):
        band = bounds.approximation_error(problem, weights, schedule, times, kind=kind)
        more = bounds.approximation_error(problem, weights, louder, times, kind=kind)
        upper, above = band.upper[band.valid], more.upper[band.valid]
        assert (np.diff(upper) >= -1e-12 * upper[1:]).all()
        assert (above >= upper * (1 - 1e-12)).all()


@pytest.mark.parametrize("method", ["lp", "fft"])
def test_order_of_the_kinds(method):
    for seed in range(5):
        problem, weights, _, _ = case(seed)
        schedule = Schedule([Phase(method, 1.0, 0.3, 0.7), Phase("fft", 0.5, 0.2, 0.5)])
        t = np.linspace(0, 1.5, 31)
        paper, monotone, lambert, ode = (
            bounds.approximation_error(problem, weights, schedule, t, kind=k).upper for k in KINDS
        )
        assert (monotone <= paper * (1 + 1e-12)).all()
        assert (lambert <= monotone * (1 + 1e-9)).all()
        assert (ode <= lambert * (1 + 1e-6)).all()


def test_lp_bound_is_attained_and_a_smaller_one_violated():
    # no drift left: a head on inert features diffuses freely, so 1a is an equality
    problem = Problem([[1.0, 0.0]], [1.0], "relu", "logistic")
    weights = Weights([[-1.0, 0.0], [-1.0, 1.0], [-2.0, 0.0]], [0.3, -0.2, 0.1])
    schedule = Schedule.lp(time=1.0, sigma=0.5, clip=1.0)
    mean, error, _ = measured(problem, weights, schedule, [0.5, 1.0], 3, paths=4000, parts=16)
    upper = bounds.approximation_error(problem, weights, schedule, [0.5, 1.0], kind="monotone").upper
    assert (np.abs(mean - upper) <= 4 * error).all()
    assert (mean > 0.9 * upper + 4 * error).all()


def test_paper_without_its_noise_term_is_violated():
    problem, weights, _, _ = case(1)
    schedule = Schedule.fft(time=0.01, sigma=1.0, clip=1e-3)
    mean, error, _ = measured(problem, weights, schedule, [0.01], 0, paths=2000, parts=16)
    upper = bounds.approximation_error(problem, weights, schedule, [0.01]).upper
    assert mean <= upper + 4 * error
    assert mean > 0.9 * upper + 4 * error


def test_lambert_solves_its_ode():
    from scipy.integrate import solve_ivp

    problem, weights = strategies.general(np.random.default_rng(0), n=4, d=3, h=2)
    schedule = Schedule([Phase("lp", 0.5, 0.4, 1.0), Phase("fft", 1.0, 0.4, 1.0), Phase("lp", 0.3, 0.2, 2.0)])
    t = np.array([0.5, 1.0, 1.5, 1.8])
    upper = bounds.approximation_error(problem, weights, schedule, t, kind="lambert").upper
    e0 = 2 * 2 * 0.16 * 0.5
    assert upper[0] == pytest.approx(e0)

    def rate(_, e):
        return 2 * 0.16 * 8 + 16 * np.sqrt(e)

    solved = solve_ivp(rate, (0, 1), [e0], t_eval=[0.5, 1.0], rtol=1e-10, atol=1e-12)
    assert upper[1:3] == pytest.approx(solved.y[0], rel=1e-6)
    late = solve_ivp(
        lambda _, e: 2 * 0.04 * 2 + 32 * np.sqrt(e), (0, 0.3), solved.y[:, -1], rtol=1e-10, atol=1e-12
    )
    assert upper[3] == pytest.approx(late.y[0, -1], rel=1e-6)
    # the closed form of 1b, from zero
    from scipy.special import lambertw

    p, s2, B = 8, 0.16, 2 * 4 * 1.0
    alone = bounds.approximation_error(
        problem, weights, Schedule.fft(time=1.0, sigma=0.4, clip=1.0), [1.0], kind="lambert"
    ).upper
    w = lambertw(-np.exp(-1 - B**2 / (p * s2)), -1).real
    assert not np.isfinite(w) or alone == pytest.approx((p * s2 / B) ** 2 * (1 + w) ** 2, rel=1e-9)


def test_where_it_does_not_hold():
    problem, weights = strategies.general(np.random.default_rng(0))
    schedule = Schedule([Phase("fft", 1.0, 0.1, 1.0), Phase("fft", 1.0, 0.1)])
    for kind in KINDS:
        band = bounds.approximation_error(problem, weights, schedule, [0.5, 1.0, 1.5], kind=kind)
        assert band.valid.tolist() == [True, True, False]
        assert np.isnan(band.upper[2])
        assert "without clipping" in band.reason
    lp = Schedule.lp(time=1.0, sigma=0.3)
    assert bounds.approximation_error(problem, weights, lp, kind="monotone").valid.all()
    assert not bounds.approximation_error(problem, weights, lp, [0.5]).valid.any()
    normal = Schedule.fft(time=1.0, sigma=0.3, clip=1.0, clipping="normalised")
    assert bounds.approximation_error(problem, weights, normal, [1.0]).valid.all()
    assert not bounds.approximation_error(problem, weights, normal, [1.0], kind="ode").valid.any()
