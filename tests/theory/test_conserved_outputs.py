"""Section 4c': conserved rates of linear nets with K outputs, against the engine's zeroth-order flow."""

import numpy as np
import pytest

import bounds
from bounds.loss import rates
from langevin import zeroth_order
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import strategies
from tests.theory.test_linear_outputs import targets

TIMES = 17


def case(seed):
    """As many outputs as dimensions, or fewer or more; wide nets and nets of few neurons."""
    rng = np.random.default_rng(seed)
    K = strategies.CLASSES[seed % 4]
    d, h = int(rng.integers(1, K + 3)), int(rng.integers(1, K + 8))
    n = max(1, d + int(rng.integers(-2, 5)))
    X = rng.standard_normal((n, d)) * np.exp(rng.uniform(-0.7, 0.3)) / np.sqrt(d)
    W = rng.standard_normal((h, d)) * np.exp(rng.uniform(-2, 0.5)) / np.sqrt(h)
    V = rng.standard_normal((h, K)) * np.exp(rng.uniform(-2, 0.5)) / np.sqrt(h)
    problem = Problem(X, 3 * targets(rng, n, K), "linear", "square")
    return problem, Weights(W, V), strategies.schedule(rng, clip=None, duration=1.0)


def flow(problem, weights, schedule, times):
    """Loss of the flow, and its error as a looser tolerance shows it."""
    fine, coarse = (
        zeroth_order(problem, weights, schedule, times=times, rtol=rtol, atol=rtol / 100).loss.values
        for rtol in (1e-9, 1e-7)
    )
    return fine, np.abs(fine - coarse) + 1e-9 * (1 + fine)


def check(cases):
    ratios = {}
    for seed in range(cases):
        problem, weights, schedule = case(seed)
        times = np.linspace(0, schedule.duration, TIMES)
        band = bounds.conserved_rates(problem, weights, schedule, times)
        assert band.valid.all()
        loss, slack = flow(problem, weights, schedule, times)
        assert band.contains(loss, slack), seed
        if loss[-1] > 1e-9:
            ratios.setdefault(problem.outputs_dim, []).append(band.upper[-1] / loss[-1])
    return ratios


def test_conserved():
    check(20)


@pytest.mark.slow
def test_conserved_many(tightness):
    for K, ratios in check(200).items():
        tightness(f"4c': conserved rates, K = {K}", ratios)


def changed(monkeypatch, **values):
    """Replace constants of the statement by functions of the right ones."""
    right = rates._floors

    def wrong(*args):
        found = right(*args)
        return found._replace(**{name: value(found) for name, value in values.items()})

    monkeypatch.setattr(rates, "_floors", wrong)


def broken(cases, cone=None):
    """Instances whose loss leaves the band."""
    found = 0
    for seed in range(cases):
        problem, weights, schedule = case(seed)
        times = np.linspace(0, schedule.duration, TIMES)
        band = bounds.conserved_rates(problem, weights, schedule, times)
        loss, slack = flow(problem, weights, schedule, times)
        found += not band.contains(loss, slack)
    return found


def test_the_largest_singular_value_is_not_enough(monkeypatch):
    changed(monkeypatch, head_target=lambda right: right.largest)
    assert broken(20) >= 5


def test_the_smallest_singular_value_is_not_enough_from_above(monkeypatch):
    changed(monkeypatch, largest=lambda right: min(right.head_target, right.first_target))
    assert broken(20) >= 2
