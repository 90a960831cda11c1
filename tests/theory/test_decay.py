"""Sections 4a and 4c: rates of the square loss against the zeroth-order flow."""

from itertools import count

import numpy as np
import pytest
from scipy.integrate import solve_ivp

import bounds
from bounds.loss.rates import imbalance
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies

TIMES = 17


losses = reference.flow_losses


def check_probing(usable):
    ratios, clipped = [], []
    for seed in count():
        if min(len(ratios), len(clipped)) >= usable:
            break
        rng = np.random.default_rng(seed)
        # wide features, so that the targets are in their range
        problem, weights = strategies.general(rng, loss="square", n=int(rng.integers(1, 4)), d=4, h=8)
        phases = [Phase("lp", 0.7, 0.1, c) for c in ((None, 0.5, 2.0)[rng.integers(3)], 1.0)]
        schedule = Schedule(phases[: int(rng.integers(1, 3))])
        times = np.linspace(0, schedule.duration, TIMES)
        band = bounds.rates(problem, weights, schedule, times)
        if not band.valid.all():
            assert band.reason
            continue
        loss, slack = losses(problem, weights, schedule, times)
        if not band.contains(loss, slack):
            # the reference's own error: short steps must do away with the excess
            loss, slack = losses(problem, weights, schedule, times, parts=2048)
        assert band.contains(loss, slack), seed
        if loss[-1] > 1e-9:
            (ratios if phases[0].clip is None else clipped).append(band.upper[-1] / loss[-1])
    return ratios, clipped


def test_probing():
    check_probing(6)


def check_conserved(usable):
    ratios = []
    for seed in count():
        if len(ratios) >= usable:
            break
        rng = np.random.default_rng(seed)
        problem, weights = strategies.general(rng, "linear", "square", h=int(rng.integers(1, 9)))
        schedule = strategies.schedule(rng, clip=None, duration=0.5)
        times = np.linspace(0, schedule.duration, TIMES)
        band = bounds.conserved_rates(problem, weights, schedule, times)
        assert band.valid.all()
        loss, slack = losses(problem, weights, schedule, times)
        if not band.contains(loss, slack):
            # the reference's own error: short steps must do away with the excess
            loss, slack = losses(problem, weights, schedule, times, parts=2048)
        assert band.contains(loss, slack), seed
        if loss[-1] > 1e-9:
            ratios.append(band.upper[-1] / loss[-1])
    return ratios


def test_conserved():
    check_conserved(8)


@pytest.mark.slow
def test_rates_many(tightness):
    ratios, clipped = check_probing(200)
    tightness("4a: LP rate, square, unclipped", ratios)
    tightness("4a: LP rate, square, clipped", clipped)
    tightness("4c: conserved rates", check_conserved(200))


def test_equal_eigenvalues_make_the_rates_exact():
    # orthonormal features: both rates coincide, and 0.9 of either bound is violated
    problem = Problem(np.eye(3), [1.0, -1.0, 0.4], "linear", "square")
    weights = Weights(np.eye(3), [0.3, 0.1, -0.2])
    times = [0.0, 0.5, 2.0]
    schedule = Schedule.lp(time=2.0)
    loss, _ = losses(problem, weights, schedule, times)
    band = bounds.rates(problem, weights, schedule, times)
    assert band.upper == pytest.approx(loss, rel=1e-6)
    assert band.lower == pytest.approx(loss, rel=1e-6)
    assert not bounds.Band(times, 0.0, 0.9 * band.upper, True, "", "").contains(loss)


def test_clipped_rate_is_exact_for_one_sample():
    problem, weights = Problem([[2.0]], [3.0], "linear", "square"), Weights([[1.0]], [0.0])
    times = np.linspace(0, 3, 31)
    schedule = Schedule.lp(time=3.0, clip=1.5)
    loss, _ = losses(problem, weights, schedule, times)
    band = bounds.rates(problem, weights, schedule, times)
    assert band.upper == pytest.approx(loss, rel=1e-5, abs=1e-8)
    assert (0.9 * band.upper < loss)[loss > 1e-5].all()


def test_conserved_upper_is_nearly_attained():
    # one sample, one neuron, balanced: both rates see the same kernel up to d_- and d_+
    problem, weights = Problem([[1.0]], [1.0], "linear", "square"), Weights([[2.0]], [0.0])
    times = np.linspace(0, 1, 11)
    loss, slack = losses(problem, weights, Schedule.fft(time=1.0), times)
    band = bounds.conserved_rates(problem, weights, Schedule.fft(time=1.0), times)
    assert band.contains(loss, slack)
    # negative control: a kernel larger by a quarter is violated
    fast = band.upper * np.exp(-0.5 * 4 * times)
    assert (fast[1:] < loss[1:] - slack[1:]).any()


def test_imbalance():
    rng = np.random.default_rng(0)
    for h, k, K in ((2, 4, 1), (5, 4, 1), (9, 3, 1), (2, 4, 3), (9, 3, 4)):
        W, V = rng.standard_normal((h, k)), rng.standard_normal((h, K))
        exact = np.sort(np.linalg.eigvalsh(W @ W.T - V @ V.T))[::-1]
        assert imbalance(W, V) == pytest.approx(exact, abs=1e-12)
        if K == 1:
            assert imbalance(W, V[:, 0]) == pytest.approx(exact, abs=1e-12)


def scalar_statement(problem, weights, times):
    """Both sides of 4c, of one output, from its formulas."""
    U, s, Vt = np.linalg.svd(problem.X, full_matrices=False)
    W, v, k, h = weights.W @ Vt.T, weights.v, len(s), weights.width
    D = np.linalg.eigvalsh(np.outer(v, v) - W @ W.T)
    minus, plus = max(-D[0], 0.0), max(D[-1], 0.0)
    kappa_W = max(-D[k - 1], 0.0) if k <= h else 0.0
    beta = np.linalg.norm(U.T @ problem.y / s)
    u0 = np.linalg.norm(U.T @ (problem.outputs(weights) - problem.y))

    def rate(_, logs):
        u = u0 * np.exp(logs[0])
        kappa_v = (-minus + np.sqrt(minus**2 + 4 * max(beta - u / s[-1], 0.0) ** 2)) / 2
        most = (plus + np.sqrt(plus**2 + 4 * (beta + u / s[-1]) ** 2)) / 2
        return [-(s[-1] ** 2) * (kappa_W + kappa_v), -(s[0] ** 2) * (2 * most + minus)]

    logs = solve_ivp(rate, (0, times[-1]), [0, 0], t_eval=times, rtol=1e-10, atol=1e-12).y
    rest = problem.y - U @ (U.T @ problem.y)
    return 0.5 * rest @ rest + 0.5 * u0**2 * np.exp(2 * logs)


def test_one_output_keeps_its_statement():
    kept = 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.general(rng, "linear", "square", n=6, h=int(rng.integers(1, 9)))
        times = np.linspace(0, 0.3, 5)
        band = bounds.conserved_rates(problem, weights, Schedule.fft(time=0.3), times)
        upper, lower = scalar_statement(problem, weights, times)
        assert band.upper == pytest.approx(upper, rel=1e-6)
        assert band.lower == pytest.approx(lower, rel=1e-6)
        kept += band.upper[-1] < 0.9 * band.upper[0]
    assert kept >= 5


def test_where_they_do_not_hold():
    rng = np.random.default_rng(1)
    problem, weights = strategies.general(rng, "relu", "logistic")
    assert "square" in bounds.rates(problem, weights, Schedule.lp(time=1.0)).reason
    assert "linear" in bounds.conserved_rates(problem, weights, Schedule.fft(time=1.0)).reason
    narrow, few = strategies.general(rng, "linear", "square", n=6, d=2, h=2)
    band = bounds.rates(narrow, few, Schedule.lp(time=1.0, clip=1.0))
    assert not band.valid.any()
    assert "range" in band.reason
    mixed = Schedule.lp_fft(lp_time=1.0, fft_time=1.0)
    band = bounds.rates(narrow, few, mixed, [0.5, 1.0, 1.5])
    assert band.valid.tolist() == [True, True, False]
    assert not bounds.conserved_rates(narrow, few, Schedule.fft(time=1.0, clip=1.0)).valid.any()


def test_inputs_of_zeros_leave_the_loss_as_it_is():
    problem = Problem(np.zeros((2, 3)), [1, -2], "linear", "square")
    weights = Weights(np.ones((4, 3)), np.ones(4))
    band = bounds.conserved_rates(problem, weights, Schedule.fft(time=1.0), [0.0, 1.0])
    assert band.valid.all()
    assert band.lower == pytest.approx([2.5, 2.5])
    assert band.upper == pytest.approx([2.5, 2.5])
