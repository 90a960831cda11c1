"""Sections 6' and 8'(f): steps of batches that align all heads, and when probing helps, with K classes."""

from itertools import count
from typing import Any

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.stats import binom

import bounds
from langevin.model.alignment import cone_distance
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies
from tests.theory.cones import case

PATHS = 2000


def misaligned(problem, weights, clip, dt, rate, steps, seed, paths=PATHS):
    """Share of noise-free runs of probing that leave some head misaligned, after each number of steps."""
    own = bounds.distortion(problem, weights).classes.astype(int)
    taken = np.unique(steps)
    schedule = Schedule.lp(time=taken[-1] * dt, clip=clip, sample_rate=rate)
    run = reference.chain_outputs(problem, weights, schedule, dt, paths, seed, taken * dt)
    distance = [[cone_distance(problem, V, own).max() for V in heads] for heads in run.v]
    # of the size of rounding: a head that arrives at the boundary
    shares = dict(zip(taken, (np.array(distance) > 1e-12).mean(1), strict=True))
    return [float(shares[step]) for step in steps]


def check_batches(seeds):
    ratios = {}
    for seed in seeds:
        problem, weights, clip = case(seed)
        clip = clip or 1.0
        time = bounds.alignment_time(problem, weights, clip=clip).time
        if not 0 < time < 1e3:
            continue
        rng = np.random.default_rng(seed)
        rate = float(rng.choice([0.2, 0.5]))
        how: Any = dict(clip=clip, dt=time / int(rng.integers(4, 20)), steps=100)
        found = bounds.minimum_lp_share(problem, weights, **how, sample_rate=rate, confidence=0.8)
        assert found.valid
        assert found.failure <= 0.2
        assert found.share == found.steps / 100
        full = bounds.minimum_lp_share(problem, weights, **how)
        assert full.steps == np.ceil(time / how["dt"] * (1 - 1e-12))
        (share,) = misaligned(problem, weights, clip, how["dt"], rate, [int(found.steps)], seed, 300)
        assert share <= found.failure + 4 * max((found.failure / 300) ** 0.5, 1 / 300), seed
        (alone,) = misaligned(problem, weights, clip, how["dt"], 1.0, [int(full.steps)], seed, 2)
        assert alone == 0
        key = problem.loss, problem.outputs_dim
        ratios.setdefault(key, []).append(found.steps / full.steps)
    return ratios


def test_batches():
    assert sum(map(len, check_batches(range(40)).values())) >= 20


@pytest.mark.slow
def test_batches_many(tightness):
    ratios = check_batches(range(340))
    assert sum(map(len, ratios.values())) >= 200
    for (loss, K), found in ratios.items():
        tightness(f"8'(f): steps of batches over those of full batches, {loss}, K = {K}", found)


@pytest.mark.parametrize("K", [2, 5])
def test_the_binomial_bound_is_attained(K):
    """Clipped throughout, one neuron in each of two classes of equal samples: each draw counts alike."""
    y = np.repeat(np.arange(K), 4)
    X, W = np.eye(K)[y], 1.5 * np.eye(K)[:2] - 0.5
    # the heads of two classes, and symmetric ones of five, move along a line
    gap = 0.5
    V = -gap * np.eye(K)[:2]
    problem, weights = Problem(X, y, loss="softmax"), Weights(W, V)
    clip, dt, rate = 0.05, 1.0, 0.25
    found = bounds.minimum_lp_share(
        problem, weights, clip=clip, dt=dt, steps=200, sample_rate=rate, confidence=0.95
    )
    time = bounds.alignment_time(problem, weights, clip=clip).time
    assert time == pytest.approx(gap * np.sqrt((K - 1) / K) / (4 * clip))
    enough = np.ceil(rate * 4 * time / dt)
    steps = [int(np.ceil(time / dt)), int(found.steps) - 1, int(found.steps)]
    shares = misaligned(problem, weights, clip, dt, rate, steps, 0)
    for step, share in zip(steps, shares, strict=True):
        stated = 1 - (1 - binom.cdf(enough - 1, 4 * step, rate)) ** 2
        assert share == pytest.approx(stated, abs=float(4 * (stated * (1 - stated) / PATHS) ** 0.5))
    assert shares[2] == pytest.approx(found.failure, abs=4 * (0.05 / PATHS) ** 0.5)
    # the control: the nominal number of steps leaves some head misaligned about as often as not
    assert shares[0] > 0.3
    # and one class alone understates two
    alone = binom.cdf(enough - 1, 4 * steps[0], rate)
    assert shares[0] > alone + 4 * (0.25 / PATHS) ** 0.5


def test_what_minimum_share_asks_with_batches():
    problem, weights, _ = case(1)
    share: Any = bounds.minimum_lp_share
    with pytest.raises(ValueError, match=r"confidence must be between 0 and 1 .* is nominal"):
        share(problem, weights, clip=1.0, dt=0.1, steps=10, sample_rate=0.5)
    with pytest.raises(ValueError, match="sample_rate must be 1 with a budget rho"):
        share(problem, weights, clip=1.0, rho=1.0, sigma=1.0, sample_rate=0.5)
    for wrong in ({}, dict(rho=1.0), dict(dt=0.1), dict(rho=1.0, sigma=1.0, dt=0.1, steps=5)):
        with pytest.raises(ValueError, match="give rho and sigma, or dt and steps"):
            share(problem, weights, clip=1.0, **wrong)
    square = Problem([[1.0], [-1.0]], [1.0, -1.0], loss="square")
    found = share(square, Weights([[1.0]], [-0.1]), clip=1.0, dt=0.1, steps=5)
    assert not found.valid
    assert "a step may overshoot" in found.reason
    # the same of the diffusion
    assert share(square, Weights([[1.0]], [-0.1]), clip=1.0, rho=1.0, sigma=1.0).valid


def test_zero_heads_need_no_share():
    for seed in range(8):
        problem, weights, _ = case(seed, "zero")
        assert bounds.minimum_lp_share(problem, weights, clip=1.0, rho=0.1, sigma=1.0).share == 0
        found = bounds.minimum_lp_share(
            problem, weights, clip=1.0, dt=0.1, steps=10, sample_rate=0.5, confidence=0.999
        )
        assert found.share == found.steps == found.failure == 0


def test_a_share_of_the_diffusion_is_that_of_its_time():
    for seed in range(8):
        problem, weights, clip = case(seed)
        clip = clip or 1.0
        found = bounds.minimum_lp_share(problem, weights, clip=clip, rho=0.1, sigma=2.0)
        schedule = Schedule.lp(time=found.time, sigma=2.0, clip=clip)
        assert bounds.zcdp(schedule) == pytest.approx(0.1)
        assert found.share == pytest.approx(
            bounds.alignment_time(problem, weights, clip=clip).time / found.time
        )
        assert found.source == "new (6')"


# --- when probing helps ----------------------------------------------------------------------------


def collapsed(rng, K, signs):
    """Collapsed classes with symmetric heads smaller than the features; their margins have these signs.

    A class of sign 0 has no neurons.
    """
    y = np.repeat(np.arange(K), rng.integers(1, 4, K))
    lengths = np.exp(rng.uniform(-0.5, 0.5, K))
    X, rotation = lengths[y, None] * np.eye(K)[y], np.linalg.qr(rng.standard_normal((K, K)))[0]
    W, V = [], []
    for own, sign in enumerate(signs):
        if sign == 0:
            continue
        h = int(rng.integers(1, 4))
        rows = -np.exp(rng.uniform(-1, 0.5, (h, K)))
        rows[:, own] = np.exp(rng.uniform(-0.5, 0.7, h))
        u, v = rows[:, own], rng.standard_normal(h)
        v *= sign * np.sign(v @ u) * rng.uniform(0.1, 0.9) * np.linalg.norm(u) / np.linalg.norm(v)
        b = rng.standard_normal(h)
        heads = np.repeat(b[:, None], K, 1)
        heads[:, own] += np.sqrt(K / (K - 1)) * v
        W.append(rows)
        V.append(heads)
    return Problem(X @ rotation, y, loss="softmax"), Weights(np.concatenate(W) @ rotation, np.concatenate(V))


def final(problem, weights, lp, total, clip=None):
    """Loss at the end of probing for ``lp`` and fine-tuning until ``total``."""
    h, d = weights.W.shape
    y = np.concatenate([weights.W.ravel(), weights.v.ravel()])
    for method, time in (("lp", lp), ("fft", total - lp)):
        if time <= 0:
            continue
        phase = Phase(method, time, clip=clip)  # pyright: ignore[reportArgumentType]

        def rate(_, y, phase=phase):
            W, V = y[: h * d].reshape(1, h, d), y[h * d :].reshape(1, h, -1)
            return np.concatenate([part.ravel() for part in reference.drift_outputs(problem, W, V, phase)])

        kind = "RK45" if clip else "DOP853"
        y = solve_ivp(rate, (0, time), y, kind, rtol=1e-11, atol=1e-13, max_step=time / 16).y[:, -1]
    ends = Weights(y[: h * d].reshape(h, d), y[h * d :].reshape(h, -1))
    return float(problem.losses(problem.outputs(ends)).sum())


def check_certificate(usable):
    """6b(1): with all margins positive the final loss increases with probing."""
    rise: list[float] = []
    for seed in count():
        if len(rise) >= usable:
            break
        rng = np.random.default_rng(seed)
        K, clip = strategies.CLASSES[seed % 4], [None, 0.3][seed // 4 % 2]
        problem, weights = collapsed(rng, K, [1, *rng.choice([0, 1, 1], K - 1)])
        if seed % 3 == 0:
            weights = Weights(weights.W, np.zeros_like(weights.v))
        time = float(np.exp(rng.uniform(-2, 2)))
        found = bounds.lp_crossover(problem, weights, time=time, clip=clip)
        if not found.valid:
            assert "outgrows" in found.reason or "cone" in found.reason
            continue
        assert found.case == "fft"
        losses = [final(problem, weights, share * time, time, clip) for share in (0.0, 0.2, 0.6, 1.0)]
        assert (np.diff(losses) >= -1e-8 * losses[0]).all(), seed
        rise.append(losses[-1] / losses[0])
    return rise


def test_probing_first_does_not_lower_the_loss_of_aligned_classes():
    assert max(check_certificate(20)) > 1.05


@pytest.mark.slow
def test_probing_first_does_not_lower_the_loss_of_aligned_classes_many(tightness):
    rise = check_certificate(200)
    tightness("6b(1), K classes: final loss of probing alone over fine-tuning alone", rise)


def test_without_its_conditions_the_loss_is_not_monotone():
    """The controls: a negative margin, and a head that outgrows the features."""
    falls = 0
    for seed in range(16):
        rng = np.random.default_rng(seed)
        problem, weights = collapsed(rng, 3, [-1, 0, 0])
        losses = [final(problem, weights, lp, 3.0) for lp in (0.0, 0.02, 0.1)]
        falls += min(losses[1:]) < losses[0] * (1 - 1e-6)
    assert falls >= 2
    # a zero head: beyond s = Q a long probing lowers the loss
    problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    W = np.array([[np.sqrt(0.3), -0.5, -0.5]])
    weights = Weights(W, np.zeros((1, 3)))
    assert bounds.lp_crossover(problem, weights, time=1.0).case == "fft"
    assert "outgrows" in bounds.lp_crossover(problem, weights, time=100.0).reason
    rest = 2 * np.log(3)
    assert final(problem, weights, 50.0, 100.0) - rest < 0.8 * (final(problem, weights, 0.0, 100.0) - rest)


def check_crossover(usable):
    """6b(2) of one block: a short probing helps above the critical time, and below it hurts."""
    seen = 0
    for seed in count():
        if seen >= usable:
            return
        rng = np.random.default_rng(seed)
        K = strategies.CLASSES[seed % 4]
        problem, weights = collapsed(rng, K, [-1] + [0] * (K - 1))
        found = bounds.lp_crossover(problem, weights, time=0.3)
        if not found.valid:
            assert "cone" in found.reason
            continue
        assert found.case == "lp-helps-above"
        rest = (problem.y > 0).sum() * np.log(K)
        told = 0
        for factor, helps in ((0.85, False), (1.2, True)):
            total = factor * found.critical_time
            step = min(1e-3 * total, 0.01 * min(found.latest_switch, 0.03))
            without = final(problem, weights, 0.0, total)
            change = final(problem, weights, step, total) - without
            # where the loss of the block is gone there is no difference to see
            if abs(change) > 1e-9 * without and without - rest > 1e-7:
                assert (change < 0) == helps, (seed, factor)
                told += 1
        seen += told == 2
        total = 2 * found.critical_time
        found = bounds.lp_crossover(problem, weights, time=total)
        if total > found.latest_switch:
            switch = found.latest_switch + np.array([0.0, 0.3, 1.0]) * (total - found.latest_switch)
            late = [final(problem, weights, lp, total) for lp in switch]
            assert (np.diff(late) >= -1e-8 * late[0]).all(), seed


def test_crossover_of_one_class():
    check_crossover(8)


@pytest.mark.slow
def test_crossover_of_one_class_many():
    check_crossover(200)


def test_two_classes_have_the_crossover_of_the_scalar_net():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        problem, weights = collapsed(rng, 2, [[1, 0], [-1, 0]][seed % 2])
        scalar = Problem(np.sqrt(2) * problem.X[problem.y == 0], np.ones((problem.y == 0).sum()))
        head = Weights(weights.W, (weights.v[:, 0] - weights.v[:, 1]) / np.sqrt(2))
        a, b = (bounds.lp_crossover(*pair, time=0.5) for pair in ((scalar, head), (problem, weights)))
        assert a.case == b.case
        assert a.valid == b.valid
        assert b.critical_time == pytest.approx(a.critical_time, rel=1e-9, nan_ok=True)
        assert b.latest_switch == pytest.approx(a.latest_switch, rel=1e-9, nan_ok=True)


def test_crossover_says_where_it_does_not_hold():
    rng = np.random.default_rng(0)
    problem, weights = collapsed(rng, 3, [-1, -1, 1])
    found = bounds.lp_crossover(problem, weights, time=0.1)
    assert not found.valid
    assert "several classes learn" in found.reason or "cone" in found.reason
    skewed = Weights(weights.W, weights.v + rng.standard_normal(weights.v.shape))
    assert "equal for all other classes (4b'(a))" in bounds.lp_crossover(problem, skewed, time=0.1).reason
    wide, head = strategies.classes(rng, 3, "softmax", 0.5, "zero", h=9)
    assert "not all equal" in bounds.lp_crossover(wide, head, time=0.1).reason
    ovr, head = strategies.classes(rng, 3, "ovr", 0.0, "zero")
    assert "only 'softmax'" in bounds.lp_crossover(ovr, head, time=0.1).reason
    negative, head = collapsed(rng, 3, [-1, 0, 0])
    assert "clips" in bounds.lp_crossover(negative, Weights(head.W, 0.1 * head.v), time=0.1, clip=1.0).reason


@pytest.mark.parametrize("heads", ["zero", "any"])
def test_advice_on_k_classes(heads):
    problem, weights = strategies.classes(np.random.default_rng(1), 3, "softmax", 0.0, heads, h=6)
    how: Any = dict(sigma=0.01, clip=1.0, time=0.05, shares=[0.0, 0.5, 1.0])
    found = bounds.split_advice(problem, [weights], **how)
    assert found.assumptions.hold
    assert found.harmless == (heads == "zero")
    assert (found.minimum_share[0] == 0) == (heads == "zero")
    if heads == "zero":
        assert found.loss_optimal == (0.0, "0 (6b): the final loss rises with the time of probing")
    else:
        assert "equal for all other classes" in found.loss_optimal[1]
    with_batches = bounds.split_advice(problem, [weights], **how, dt=0.01, sample_rate=0.5, confidence=0.9)
    assert with_batches.minimum[0].share >= found.minimum[0].share
    assert with_batches.to_dict()["minimum lp share"]["failure"] <= 0.1
