"""Section 4b: the sandwich against the zeroth-order flow."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import bounds
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

TIMES = 33


def case(seed, spread: Any = "random", **kwargs):
    rng = np.random.default_rng(seed)
    if spread == "random":
        spread = [None, 0.0, 0.05, 0.5][rng.integers(4)]
    problem, weights = strategies.decoupled(rng, spread=spread, **kwargs)
    schedule = strategies.schedule(rng, duration=float(np.exp(rng.uniform(-2, 2))))
    return problem, weights, schedule, np.linspace(0, schedule.duration, TIMES)


def near_collapsed_case(seed):
    return case(seed, spread=0.05)


def linear_case(seed):
    """Linear net of one sign a neuron; pairs in FFT are all non-negative."""
    rng = np.random.default_rng(seed)
    n, d, h = int(rng.integers(1, 7)), int(rng.integers(1, 5)), int(rng.integers(1, 6))
    signed = rng.uniform(0.05, 1.0, (n, d))
    y = rng.choice([-1.0, 1.0], n)
    s = rng.choice([-1.0, 1.0], h)
    W = s[:, None] * rng.uniform(0.05, 1.0, (h, d))
    v = rng.standard_normal(h) * np.exp(rng.uniform(-2, 0))
    loss: Any = ["logistic", "square"][rng.integers(2)]
    rotation = np.linalg.qr(rng.standard_normal((d, d)))[0]
    problem = Problem(y[:, None] * signed @ rotation, y, "linear", loss)
    weights = Weights(W @ rotation, v)
    if loss == "square":
        weights = Weights(weights.W, v * 0.3 / max(np.abs(problem.outputs(weights)).max(), 0.3))
    schedule = strategies.schedule(rng, duration=float(np.exp(rng.uniform(-2, 1))))
    return problem, weights, schedule, np.linspace(0, schedule.duration, TIMES)


simulated = reference.flow_losses


def check(cases):
    ratios, share = {"LP": [], "FFT": [], "LP-FFT": []}, []
    for problem, weights, schedule, times in cases:
        band = bounds.sandwich(problem, weights, schedule, times)
        share.append(band.valid.mean())
        if not band.valid[1:].any():
            continue
        stop = times[band.valid][-1]
        loss, slack = simulated(problem, weights, schedule, times)
        if not band.contains(loss, slack):
            # a kink of clipping within a step: short steps must do away with the excess
            loss, slack = simulated(problem, weights, schedule, times, parts=4096)
        assert band.contains(loss, slack), (problem, weights, schedule)
        assert (band.lower[band.valid] <= band.upper[band.valid]).all()
        name = "-".join(phase.method.upper() for phase in schedule)
        # tightness while a hundredth of the loss is left
        k = np.flatnonzero((times <= stop) & (loss >= 0.01 * loss[0]))[-1]
        ratios[name].append(band.upper[k] / loss[k])
    return ratios, np.mean(share)


def test_sandwich_contains_the_flow():
    ratios, share = check([case(seed) for seed in range(8)] + [linear_case(seed) for seed in range(8)])
    assert share > 0.5
    assert sum(map(len, ratios.values())) > 8


@pytest.mark.slow
@pytest.mark.parametrize("title", ["ReLU, mixed spread", "ReLU, near-collapsed", "linear"])
def test_sandwich_contains_the_flow_many(title, tightness):
    make = {"ReLU, mixed spread": case, "ReLU, near-collapsed": near_collapsed_case, "linear": linear_case}
    ratios, _ = check(make[title](seed) for seed in range(700))
    for name, found in ratios.items():
        tightness(f"4b: sandwich, {title}, {name}", found)
        assert len(found) >= 200
        if title == "ReLU, near-collapsed":
            assert np.median(found) < 1.1


@pytest.mark.parametrize("cases", [6, pytest.param(30, marks=pytest.mark.slow)])
def test_collapsed_is_exact(cases):
    seen = 0
    for seed in range(cases):
        problem, weights, schedule, times = case(seed, spread=0.0)
        band = bounds.sandwich(problem, weights, schedule, times)
        loss, slack = simulated(problem, weights, schedule, times)
        ok = band.valid
        seen += ok.sum()
        assert (np.abs(band.upper - loss)[ok] <= slack[ok] + 5e-6 * loss[0]).all()
        assert (np.abs(band.lower - loss)[ok] <= slack[ok] + 5e-6 * loss[0]).all()
        # negative control: a bound scaled by 0.9 is violated
        left = ok & (loss > 1e-3 * loss[0])
        assert (0.9 * band.upper < loss - slack)[left].all()
        assert (band.lower / 0.9 > loss + slack)[left].all()
    assert seen > 10 * cases


def test_validity_ends_where_it_must():
    # the head is too negative: the neuron leaves its cone, and the band says so before
    problem = Problem([[1.0]], [1.0])
    weights = Weights([[0.2]], [-2.0])
    schedule = Schedule.fft(time=2.0)
    times = np.linspace(0, 2, 101)
    band = bounds.sandwich(problem, weights, schedule, times)
    flow = reference.flow(problem, weights, schedule, times)
    left = times[np.argmax(flow.W[:, 0, 0, 0] <= 1e-12)] if (flow.W <= 1e-12).any() else 2.0
    assert not band.valid.all()
    assert times[band.valid][-1] <= left
    assert "cone" in band.reason
    assert np.isnan(band.upper[~band.valid]).all()


def check_any_phases(case, schedule):
    problem, weights = case
    times = np.linspace(0, schedule.duration, 9)
    band = bounds.sandwich(problem, weights, schedule, times)
    if band.valid.any():
        loss, slack = simulated(problem, weights, schedule, times)
        assert band.contains(loss, slack)


any_phases = given(strategies.decoupled_problems_and_weights, strategies.schedules)


@settings(max_examples=6)
@any_phases
def test_any_phases(case, schedule):
    check_any_phases(case, schedule)


@pytest.mark.slow
@settings(max_examples=20)
@any_phases
def test_any_phases_many(case, schedule):
    check_any_phases(case, schedule)


@pytest.mark.parametrize(
    ("problem", "weights", "schedule", "reason"),
    [
        (Problem([[1.0]], [1.0]), Weights([[-1.0]], [1.0]), Schedule.lp(time=1.0), ""),
        (Problem([[1.0], [2.0]], [1.0, -1.0]), Weights([[1.0]], [1.0]), Schedule.lp(time=1.0), "3.2"),
        (Problem([[0.0]], [1.0]), Weights([[1.0]], [1.0]), Schedule.lp(time=1.0), "3.2"),
        (
            Problem([[1.0, 0.0], [-0.5, 1.0]], [1.0, 1.0]),
            Weights([[1.0, 1.0]], [1.0]),
            Schedule.fft(time=1.0),
            "3.1",
        ),
        (
            Problem([[1.0], [2.0]], [1.0, -1.0], "linear"),
            Weights([[1.0]], [1.0]),
            Schedule.lp(time=1.0),
            "both signs",
        ),
        (Problem([[1.0]], [0.5], loss="square"), Weights([[1.0]], [1.0]), Schedule.lp(time=1.0), "labels"),
        (
            Problem([[1.0]], [1.0], loss="square"),
            Weights([[1.0]], [2.0]),
            Schedule.lp(time=1.0),
            "margin",
        ),
        (
            Problem([[1.0]], [1.0]),
            Weights([[1.0]], [2.0]),
            Schedule.lp(time=1.0, clip=1.0, clipping="normalised"),
            "normalised",
        ),
    ],
)
def test_where_it_does_not_hold(problem, weights, schedule, reason):
    band = bounds.sandwich(problem, weights, schedule)
    if reason:
        assert not band.valid.any()
    assert reason in band.reason


@pytest.mark.parametrize("cases", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_many_phases(cases):
    for seed in range(cases):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.decoupled(rng, spread=0.1)
        clips = np.exp(rng.uniform(-1, 1, 4))
        methods: Any = ["fft", "lp", "fft", "lp"]
        schedule = Schedule([Phase(m, 0.3, 0.1, c) for m, c in zip(methods, clips, strict=True)])
        times = np.linspace(0, schedule.duration, TIMES)
        band = bounds.sandwich(problem, weights, schedule, times)
        loss, slack = simulated(problem, weights, schedule, times)
        assert band.contains(loss, slack)
