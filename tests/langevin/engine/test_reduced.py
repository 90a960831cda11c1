"""Section 7a: a run in the span of the data has the law of the full one."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from langevin import Problem, Schedule, Weights, euler_maruyama, zeroth_order
from langevin.engine.reductions.span import Span
from tests.helpers import random_problem, random_weights

# n < d: four dimensions are orthogonal to the data
PROBLEM = random_problem(7, n=3, d=7)
WEIGHTS = random_weights(7, h=4, d=7, scale=0.5)
SCHEDULE = Schedule.lp_fft(lp_time=0.1, fft_time=0.4, sigma=0.4, clip=1.0)


def simulate(problem: Problem, weights: Weights, schedule: Schedule, reduce: str, rng: int) -> xr.Dataset:
    return euler_maruyama(
        problem,
        weights,
        schedule,
        dt=0.01,
        paths=3000,
        rng=rng,
        times=[0.2, 0.5],
        reduce=reduce,
        observables=["alignment", "preactivation", "head_alignment"],
    )


def statistics(run: xr.Dataset) -> dict[str, np.ndarray]:
    """Return the statistics to compare by path, at two times and their change, so that joint laws count."""
    rows: dict[str, np.ndarray] = {}
    for name in ("loss", "displacement", "squared_distance"):
        rows[f"{name} early"] = run[name].values[:, 0]
        rows[f"{name} change"] = run[name].values[:, 1] - run[name].values[:, 0]
    for name in ("alignment", "preactivation", "head_alignment"):
        rows[f"{name} of neuron 1"] = run[name].values[:, 1, 1]
        rows[f"{name} product"] = run[name].values[:, 1, 0] * run.loss.values[:, 1]
    rows["alignment and displacement"] = run.alignment.values[:, 1, 0] * run.displacement.values[:, 1]
    return rows


def smallest_pvalue(a: xr.Dataset, b: xr.Dataset) -> float:
    """Bonferroni-corrected Kolmogorov-Smirnov p-value over all statistics."""
    first, second = statistics(a), statistics(b)
    tests: list[Any] = [stats.ks_2samp(first[name], second[name]) for name in first]
    return min(1.0, len(first) * min(test.pvalue for test in tests))


def test_reduced_and_full_runs_have_the_same_law():
    full = simulate(PROBLEM, WEIGHTS, SCHEDULE, "none", 1)
    reduced = simulate(PROBLEM, WEIGHTS, SCHEDULE, "auto", 2)
    assert smallest_pvalue(full, reduced) > 1e-3


def test_wrong_laws_are_detected():
    """Negative controls: noise 10 % off, one invisible dimension more."""
    full = simulate(PROBLEM, WEIGHTS, SCHEDULE, "none", 1)
    louder = Schedule.lp_fft(lp_time=0.1, fft_time=0.4, sigma=0.44, clip=1.0)
    assert smallest_pvalue(full, simulate(PROBLEM, WEIGHTS, louder, "auto", 2)) < 1e-3
    padded = Problem(np.hstack([PROBLEM.X, np.zeros((3, 1))]), PROBLEM.y)
    wider = Weights(np.hstack([WEIGHTS.W, np.zeros((4, 1))]), WEIGHTS.v)
    assert smallest_pvalue(full, simulate(padded, wider, SCHEDULE, "auto", 2)) < 1e-3


@pytest.mark.parametrize("d", [3, 4, 5])
def test_few_invisible_dimensions(d):
    """One, two and three: the squared Bessel process has its special cases there."""
    problem, weights = random_problem(8, n=2, d=d), random_weights(8, h=3, d=d, scale=0.5)
    full = simulate(problem, weights, SCHEDULE, "none", 3)
    assert smallest_pvalue(full, simulate(problem, weights, SCHEDULE, "auto", 4)) > 1e-3


@pytest.mark.parametrize("dt", [None, 0.01])
def test_noiseless_runs_agree_to_rounding(dt):
    names = ["alignment", "preactivation", "head_alignment"]
    runs = [
        zeroth_order(
            PROBLEM, WEIGHTS, SCHEDULE, dt=dt, reduce=reduce, observables=names, rtol=1e-10, atol=1e-12
        )
        for reduce in ("auto", "none")
    ]
    for name in runs[0].data_vars:
        tolerance = 1e-12 if dt else 1e-6
        np.testing.assert_allclose(runs[0][name], runs[1][name], rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("n", "d", "rank"), [(5, 9, 5), (9, 5, 5), (6, 8, 3), (4, 4, 4), (3, 6, 0), (1, 5, 1)]
)
def test_span(n, d, rank):
    rng = np.random.default_rng(n + d)
    X = rng.standard_normal((n, max(rank, 1))) @ rng.standard_normal((max(rank, 1), d)) * bool(rank)
    span = Span.of(X)
    k = max(rank, 1)
    assert span.basis is not None
    assert span.basis.shape == (d, k)
    np.testing.assert_allclose(span.basis.T @ span.basis, np.eye(k), atol=1e-13)
    coordinates = span.coordinates(X)
    np.testing.assert_allclose(span.embed(coordinates), X, atol=1e-12)
    assert np.abs(np.triu(coordinates[span.order], 1)).max(initial=0) < 1e-12
    W = rng.standard_normal((3, d))
    inside, outside = span.coordinates(W), span.complement_norms(W)
    np.testing.assert_allclose((inside**2).sum(axis=1) + outside**2, (W**2).sum(axis=1))


def test_span_with_other_points():
    rng = np.random.default_rng(0)
    X, others = rng.standard_normal((3, 9)), rng.standard_normal((2, 9))
    span = Span.of(X, others)
    assert span.dim == 5
    assert span.basis is not None
    np.testing.assert_allclose(span.basis.T @ span.basis, np.eye(5), atol=1e-13)
    for rows in (X, others):
        np.testing.assert_allclose(span.embed(span.coordinates(rows)), rows, atol=1e-12)
    # points that are already in the span add nothing
    assert Span.of(X, 2 * X[:1]).dim == 3


def test_moves_outside_the_span_are_independent_from_record_to_record():
    """The squared distance's increments are uncorrelated, and are not if a draw is used twice."""
    problem = Problem(1e-9 * np.eye(1, 40), [1.0])
    weights, paths = Weights(np.zeros((1, 40)), np.zeros(1)), 4000
    run = euler_maruyama(
        problem,
        weights,
        Schedule.fft(time=0.3, sigma=0.5),
        dt=0.1,
        paths=paths,
        rng=0,
        times=[0.1, 0.2, 0.3],
        reduce="span",
    )
    first, second, third = np.diff(run.squared_distance.values, prepend=0.0).T
    for a, b in ((first, second), (second, third), (first, third)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / paths**0.5
        assert abs(np.corrcoef(a, b + 0.2 * a)[0, 1]) > 4.5 / paths**0.5
