"""Section 6: the least share of linear probing, utility curves, and when linear probing helps."""

from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest

import bounds
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies


def test_minimum_share():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.decoupled(rng, "logistic", spread=0.2)
        sigma, clip = 0.7, 0.4
        neighbours: Any
        for neighbours in ("add-remove", "replace"):
            shares = []
            for rho in (0.01, 0.1, 1.0, 10.0):
                found = bounds.minimum_lp_share(
                    problem, weights, rho=rho, sigma=sigma, clip=clip, neighbours=neighbours
                )
                assert found.valid
                assert found.time == bounds.budget_time(rho, sigma, clip, neighbours)
                schedule = Schedule.lp(time=found.time, sigma=sigma, clip=clip)
                assert bounds.zcdp(schedule, neighbours=neighbours) == pytest.approx(rho)
                assert found.share == pytest.approx(found.alignment / found.time)
                assert found.attainable == (found.share <= 1)
                shares.append(found.share)
            assert (np.diff(shares) <= 0).all()


def test_minimum_share_needs_its_assumptions():
    problem, weights = Problem([[1.0], [2.0]], [1, -1]), Weights([[1.0]], [1.0])
    found = bounds.minimum_lp_share(problem, weights, rho=1.0, sigma=1.0, clip=1.0)
    assert not found.valid
    assert np.isnan(found.share)
    assert "3.2" in found.reason


def check_curves(usable):
    seen = 0
    for seed in count():
        if seen >= usable:
            break
        rng = np.random.default_rng(seed)
        problem, weights = strategies.decoupled(rng, "logistic", spread=0.05)
        clip = None if seed % 2 else 1.0
        total = float(np.exp(rng.uniform(-1, 1)))
        shares = [0, 0.4, 1]
        curve = bounds.utility_curve(
            problem, weights, sigma=0.05, clip=clip, time=total, shares=shares, bounds=("sandwich",)
        )
        if "sandwich" not in curve.curves:
            assert curve.reasons["sandwich"]
            continue
        seen += 1
        band = curve.curves["sandwich"]
        losses, slacks = [], []
        for share in curve.shares:
            schedule = Schedule.lp_fft(lp_time=share * total, fft_time=(1 - share) * total, clip=clip)
            loss, slack = reference.flow_losses(problem, weights, schedule, [schedule.duration])
            losses.append(loss[0])
            slacks.append(slack[0])
        losses, slack = np.array(losses), max(slacks)
        assert band.contains(losses, slack)
        at_best = losses[np.argmax(curve.shares == curve.best["sandwich"])]
        assert at_best - losses[band.valid].min() <= curve.gap["sandwich"] + 2 * slack
        low, high = curve.flatness["sandwich"]
        assert low <= curve.best["sandwich"] <= high


def test_utility_curve():
    check_curves(4)


def test_utility_curve_of_a_linear_net():
    problem, weights = strategies.general(np.random.default_rng(3), "linear", "square", n=2, d=3, h=5)
    curve = bounds.utility_curve(problem, weights, sigma=0.01, clip=None, time=1.0, shares=[0.0, 0.5, 1.0])
    assert curve.curves["lp_expected"].valid.tolist() == [False, False, True]
    assert curve.curves["fft_expected"].valid.tolist() == [True, False, False]
    assert curve.curves["conserved"].valid.all()
    assert curve.best["lp_expected"] == 1.0


def test_utility_curve_refuses():
    problem, weights = strategies.general(np.random.default_rng(0))
    with pytest.raises(ValueError, match="one of rho and time"):
        bounds.utility_curve(problem, weights, sigma=1.0, clip=1.0)
    with pytest.raises(ValueError, match="clip must be positive"):
        bounds.utility_curve(problem, weights, sigma=1.0, clip=None, rho=1.0)
    with pytest.raises(ValueError, match="shares must rise"):
        bounds.utility_curve(problem, weights, sigma=1.0, clip=1.0, time=1.0, shares=[0.5, 0.2])


def collapsed(rng, negative):
    """One collapsed block with a margin of the sign asked for, and a head smaller than the features."""
    n, h = int(rng.integers(1, 5)), int(rng.integers(1, 5))
    x = rng.standard_normal(3)
    x = x / np.linalg.norm(x) * np.exp(rng.uniform(-0.5, 0.5))
    W = rng.standard_normal((h, 3)) * 0.2
    W += (np.exp(rng.uniform(-0.5, 0.7, h)) / (x @ x) - W @ x / (x @ x))[:, None] * x
    u = W @ x / np.linalg.norm(x)
    v = rng.standard_normal(h)
    v *= rng.uniform(0.1, 0.9) * np.linalg.norm(u) / np.linalg.norm(v)
    if (v @ u < 0) != negative:
        v = -v
    loss: Any = ["logistic", "square"][rng.integers(2)]
    if loss == "square" and not negative:
        v *= min(1.0, 0.5 / max(v @ W @ x, 1e-9))
    activation: Any = "relu" if rng.random() < 0.5 else "linear"
    return Problem(np.repeat(x[None], n, 0), np.ones(n), activation, loss), Weights(W, v)


def final(problem, weights, lp, total):
    schedule = Schedule.lp_fft(lp_time=lp, fft_time=max(total - lp, 0.0))
    return reference.flow(problem, weights, schedule, [total], 1e-11, 1e-13).losses(problem)[0, 0]


def check_crossover(usable):
    seen = {"fft": 0, "above": 0}
    for seed in count():
        if min(seen.values()) >= usable:
            break
        rng = np.random.default_rng(seed)
        problem, weights = collapsed(rng, negative=bool(seed % 2))
        found = bounds.lp_crossover(problem, weights, time=0.3)
        if not found.valid:
            continue
        if found.case == "fft":
            losses = [final(problem, weights, lp, 0.3) for lp in (0.0, 0.05, 0.15, 0.3)]
            assert (np.diff(losses) >= -1e-8 * losses[0] - 1e-12).all(), seed
            seen["fft"] += 1
            continue
        told = 0
        for factor, helps in ((0.85, False), (1.2, True)):
            total = factor * found.critical_time
            step = min(1e-3 * total, 0.01 * min(found.latest_switch, 0.03))
            without = final(problem, weights, 0.0, total)
            change = final(problem, weights, step, total) - without
            # where the loss is gone there is no difference to see
            if abs(change) > 1e-8 * without and without > 1e-8:
                assert (change < 0) == helps, (seed, factor)
                told += 1
        # usable where both sides of the critical time could be told apart
        seen["above"] += told == 2
        total = 2 * found.critical_time
        found = bounds.lp_crossover(problem, weights, time=total)
        if total > found.latest_switch:
            switch = found.latest_switch + np.array([0.0, 0.3, 1.0]) * (total - found.latest_switch)
            late = [final(problem, weights, lp, total) for lp in switch]
            # 1e-12: where the loss is gone
            assert (np.diff(late) >= -1e-8 * late[0] - 1e-12).all(), seed


def test_a_head_that_outgrows_the_features_switches_late():
    # at large times the best switch is far behind the time t_0 at which the margin is 0
    problem, weights = collapsed(np.random.default_rng(357), negative=True)
    early = bounds.lp_crossover(problem, weights, time=0.3)
    total = 2 * early.critical_time
    late = bounds.lp_crossover(problem, weights, time=total)
    assert early.latest_switch < 0.1
    assert late.latest_switch == np.inf
    assert late.critical_time == early.critical_time
    best_early = min(final(problem, weights, lp, total) for lp in np.linspace(0, early.latest_switch, 5))
    assert final(problem, weights, 0.2 * total, total) < 0.8 * best_early


def test_below_the_critical_time_a_short_probing_hurts_and_a_long_one_may_help():
    problem, weights = Problem([[1.0]], [1.0]), Weights([[1.0]], [-0.95])
    total = 0.8 * bounds.lp_crossover(problem, weights, time=1.0).critical_time
    without, short, long = (final(problem, weights, share * total, total) for share in (0.0, 0.01, 0.5))
    assert short > without * (1 + 1e-4)
    assert long < without * (1 - 5e-3)
    # so the advice names no best share, only the latest switch
    how: Any = dict(sigma=0.1, clip=1e6, shares=[0.0, 1.0])
    found = bounds.lp_crossover(problem, weights, time=total)
    advice = replace(bounds.split_advice(problem, [weights], time=total, **how), crossovers=(found,))
    assert np.isnan(advice.loss_optimal[0])
    assert "at most 1 (6b): a short probing helps above time 1.42 only" in advice.loss_optimal[1]


def test_crossover():
    check_crossover(4)


@pytest.mark.slow
def test_crossover_many():
    check_crossover(200)


@pytest.mark.slow
def test_utility_curve_many():
    check_curves(200)


def test_crossover_says_where_it_does_not_hold():
    rng = np.random.default_rng(0)
    assert "equal" in bounds.lp_crossover(*strategies.decoupled(rng, n=4), time=1.0).reason
    problem = Problem([[1.0]], [1.0])
    assert "clips" in bounds.lp_crossover(problem, Weights([[1.0]], [-0.5]), time=1.0, clip=1.0).reason
    assert "cone" in bounds.lp_crossover(problem, Weights([[1.0]], [-1.5]), time=1.0).reason
    linear = Problem([[1.0]], [1.0], "linear")
    assert "too large" in bounds.lp_crossover(linear, Weights([[1.0]], [-1.5]), time=1.0).reason
    assert "outgrows" in bounds.lp_crossover(problem, Weights([[1.0]], [0.9]), time=100.0).reason
