"""Section 8: the first-order loss against Monte Carlo at small noise."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import bounds
from bounds.loss import first_order
from langevin import zeroth_order
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights
from tests.theory import reference, strategies


def run_of(problem):
    return reference.chain if problem.outputs_dim == 1 else reference.chain_outputs


def flow_of(problem, weights, schedule, times):
    """Loss of the zeroth-order flow."""
    if problem.outputs_dim == 1:
        return reference.flow(problem, weights, schedule, times).losses(problem)[:, 0]
    how: Any = dict(times=times, reduce="none", rtol=1e-9, atol=1e-11)
    return zeroth_order(problem, weights, schedule, **how).loss.values


def measured(problem, weights, schedule, times, seed, pairs, steps=256):
    """Change of the mean loss by the noise, from antithetic pairs, and its standard error; at two steps."""
    still = Schedule([replace(phase, sigma=0.0) for phase in schedule])
    out = []
    for parts in (steps // 2, steps):
        dt = schedule.duration / parts
        chain = run_of(problem)
        base = chain(problem, weights, still, dt, 1, 0, times).losses(problem)
        run = chain(problem, weights, schedule, dt, 2 * pairs, seed, times, antithetic=True)
        losses = run.losses(problem) - base
        both = 0.5 * (losses[:, :pairs] + losses[:, pairs:])
        out.append(reference.mean_and_error(both))
    return out


def tame(X, weights):
    """Scale inputs so that the steps are far inside stability."""
    size = (X**2).sum() * ((weights.W**2).sum() + (weights.v**2).sum())
    return X * min(1.0, np.sqrt(15 / size))


def linear_case(seed, sigma):
    rng = np.random.default_rng(seed)
    n, d, h = int(rng.integers(1, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 6))
    problem, weights = strategies.general(rng, "linear", "square", n=n, d=d, h=h)
    problem = Problem(tame(problem.X, weights), problem.y, "linear", "square")
    methods = [["fft"], ["lp", "fft"], ["lp"]][seed % 3]
    return problem, weights, Schedule([Phase(m, 0.25, sigma) for m in methods])


def collapsed_case(seed, sigma):
    rng = np.random.default_rng(seed)
    n, h = int(rng.integers(1, 4)), int(rng.integers(1, 6))
    x = rng.standard_normal(2)
    loss: Any = ["logistic", "square"][seed % 2]
    weights = Weights(rng.standard_normal((h, 2)), rng.standard_normal(h))
    X = tame(np.repeat(x[None], n, 0), weights)
    problem = Problem(X, np.ones(n), "linear", loss)
    clip = None if seed % 3 == 0 else float(np.exp(rng.uniform(-1, 0.5)))
    return problem, weights, Schedule.fft(time=0.5, sigma=sigma, clip=clip)


OUTPUTS = ("softmax", "ovr", "square", "logistic")


def outputs_case(seed, sigma):
    """Linear nets of K outputs, classes of unequal sizes; a scalar head with the logistic loss."""
    rng = np.random.default_rng(seed)
    K = strategies.CLASSES[seed // 4 % 4]
    loss: Any = OUTPUTS[seed % 4]
    d, h = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    if loss == "logistic":
        problem, weights = strategies.general(rng, "linear", loss, d=d, h=h)
    else:
        problem, weights = strategies.several(rng, K=K, loss=loss, activation="linear", d=d, h=h)
    problem = Problem(tame(problem.X, weights), problem.y, "linear", loss)
    methods = [["fft"], ["lp", "fft"], ["lp"]][seed % 3]
    return problem, weights, Schedule([Phase(m, 0.25, sigma) for m in methods])


def check(case, seeds, pairs, steps=256):
    """Hold the estimate against Monte Carlo; where sigma is too large for first order, at a quarter of it."""
    far, smaller = [], 0
    for seed in seeds:
        seen = compare(case(seed, 0.02), seed, pairs, steps)
        if seen is None:
            smaller += 1
            seen = compare(case(seed, 0.005), seed, pairs, steps)
        assert seen is not None, seed
        far += seen
    assert smaller <= 0.02 * len(seeds)
    return np.mean(far)


def compare(instance, seed, pairs, steps=256):
    """Return where 0.7 of the correction is seen to be wrong, or None if the correction is."""
    problem, weights, schedule = instance
    times = np.array([0.5, 1.0]) * schedule.duration
    found = bounds.first_order_loss(problem, weights, schedule, times)
    assert found.valid.all(), found.reason
    (coarse, e0), (mean, error) = measured(problem, weights, schedule, times, seed, pairs, steps)
    assert found.zeroth == pytest.approx(flow_of(problem, weights, schedule, times), rel=1e-6, abs=1e-8)
    bias = np.maximum(np.abs(mean - coarse) - 3 * np.hypot(error, e0), 0)
    slack = 4.5 * error + bias
    if (np.abs(mean - found.correction) > slack).any():
        return None
    return list((np.abs(mean - 0.7 * found.correction) > slack) & (np.abs(found.correction) > 0))


def test_linear_nets():
    # negative control: a correction scaled by 0.7 is seen in a fair share of the cases
    assert check(linear_case, range(6), 1000) > 0.3


def test_collapsed_blocks():
    assert check(collapsed_case, range(6), 1000) > 0.3


def test_linear_nets_of_several_outputs():
    assert check(outputs_case, range(20), 300, steps=64) > 0.3


@pytest.mark.parametrize(("scale", "right"), [(np.sqrt(2), True), (1.0, False)])
def test_two_classes_are_the_logistic_net_on_longer_inputs(scale, right):
    rng = np.random.default_rng(3)
    problem, weights = strategies.several(rng, K=2, loss="softmax", activation="linear", n=5, d=3, h=4)
    schedule = Schedule([Phase("lp", 0.25, 0.02), Phase("fft", 0.25, 0.02)])
    scalar = Problem(scale * problem.X, 2.0 * problem.y - 1, "linear")
    head = (weights.v[:, 1] - weights.v[:, 0]) / scale
    ours = bounds.first_order_loss(problem, weights, schedule, [0.1, 0.5])
    theirs = bounds.first_order_loss(scalar, Weights(weights.W, head), schedule, [0.1, 0.5])
    assert (ours.correction == pytest.approx(theirs.correction, rel=1e-6)) == right


@pytest.mark.parametrize("K", strategies.CLASSES)
def test_it_is_exact_in_linear_probing_with_the_square_loss(K):
    rng = np.random.default_rng(K)
    problem, weights = strategies.several(rng, K=K, loss="square", activation="linear", d=2, h=3)
    schedule, times = Schedule.lp(time=0.5, sigma=0.3), [0.1, 0.5]
    exact = bounds.lp_expected_loss(problem, weights, schedule, times)
    assert bounds.first_order_loss(problem, weights, schedule, times).value == pytest.approx(exact.lower)
    assert bounds.first_order_loss(problem, weights, schedule, times).zeroth != pytest.approx(exact.lower)


def test_too_many_dimensions_are_refused():
    problem, weights = strategies.several(
        np.random.default_rng(0), K=10, loss="softmax", activation="linear", n=12, d=4
    )
    found = bounds.first_order_loss(problem, weights, Schedule.fft(time=1.0, sigma=0.1))
    assert not found.valid.any()
    assert "14 dimensions, and 13 are the most" in found.reason


@pytest.mark.slow
@pytest.mark.parametrize(("case", "steps"), [(linear_case, 256), (collapsed_case, 256), (outputs_case, 64)])
def test_first_order_many(case, steps):
    # long steps keep the many outputs cheap: their bias is measured, and the control shows what power is left
    assert check(case, range(200), 1200, steps) > 0.3


def block_and_general(seed):
    """Corrections of a collapsed block by its own method and by the Gram matrix."""
    problem, weights, _ = collapsed_case(seed, 0.02)
    schedule = Schedule.fft(time=0.5, sigma=0.02)
    through_gram = bounds.first_order_loss(problem, weights, schedule, [0.25, 0.5])
    # a threshold that is never reached leaves the block method
    block = bounds.first_order_loss(
        problem, weights, Schedule.fft(time=0.5, sigma=0.02, clip=1e6), [0.25, 0.5]
    )
    return block, through_gram


def test_both_methods_agree():
    for seed in range(1, 20, 3):
        block, through_gram = block_and_general(seed)
        assert block.value == pytest.approx(through_gram.value, rel=1e-4)
        assert block.correction == pytest.approx(through_gram.correction, rel=1e-4)


def test_the_third_derivative_counts(monkeypatch):
    monkeypatch.setitem(first_order.THIRD, "logistic", lambda R, Y, S: 0 * R)
    block, through_gram = block_and_general(4)
    assert block.correction != pytest.approx(through_gram.correction, rel=1e-4)


@pytest.mark.parametrize("loss", ["logistic", "softmax", "ovr"])
def test_third_derivatives(loss):
    """Against differences of the curvature."""
    rng = np.random.default_rng(0)
    K = 1 if loss == "logistic" else 4
    labels = [1, -1, 1, -1] if K == 1 else range(4)
    net = first_order._Outputs(Problem(np.eye(4), labels, "linear", loss))
    F, A = rng.standard_normal((4, K)), rng.standard_normal((4, K, K))
    S = A @ A.swapaxes(1, 2)
    found = net.bend(F, S)
    for a in range(K):
        step = 1e-5 * np.eye(K)[a]
        slope = (net.curvature(F + step) - net.curvature(F - step)) / 2e-5
        np.testing.assert_allclose(found[:, a], (slope * S).sum((1, 2)), rtol=1e-6, atol=1e-9)


def test_floor_at_an_interpolating_minimiser():
    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal((5, 3)), rng.standard_normal(5), "linear", "square")
    exact = Problem(problem.X, problem.X @ np.array([0.3, -0.2, 0.1]), "linear", "square")
    weights = Weights(1.5 * rng.standard_normal((6, 3)), 0.1 * rng.standard_normal(6))
    found = bounds.first_order_loss(exact, weights, Schedule.fft(time=30.0, sigma=0.01), [30.0])
    assert found.correction == pytest.approx(0.5 * 3 * 1e-4, rel=1e-4)


def test_where_it_does_not_hold():
    problem, weights = strategies.general(np.random.default_rng(0), "relu", "logistic", n=4, d=2)
    found = bounds.first_order_loss(problem, weights, Schedule.fft(time=1.0, sigma=0.1))
    assert not found.valid.any()
    assert np.isnan(found.value).all()
    assert "equal" in found.reason


def test_times_of_a_later_phase_alone():
    problem = Problem([[1.0, 0.5], [0.0, 1.0]], [1, -1], "linear", "square")
    weights = Weights([[1.0, 0.2], [0.0, 1.0]], [0.3, -0.1])
    schedule = Schedule([Phase("lp", 1.0, 0.1), Phase("fft", 0.5, 0.2)])
    all_, late = (bounds.first_order_loss(problem, weights, schedule, t) for t in ([0, 0.5, 1.3], [1.3]))
    # steps of the integrator do not depend on what is asked for; products round by their shapes
    assert late.value[0] == pytest.approx(all_.value[-1], rel=1e-13)


def test_inputs_of_zeros_leave_the_loss_as_it_is():
    problem = Problem(np.zeros((2, 3)), [1, -2], "linear", "square")
    weights = Weights(np.ones((2, 3)), np.ones(2))
    schedule = Schedule([Phase("fft", 1.0, 1e6), Phase("fft", 0.3, 1.0)])
    assert bounds.first_order_loss(problem, weights, schedule, [0.2, 1.3]).value == pytest.approx(2.5)


def test_moments_beyond_all_numbers_are_said_to_be():
    problem = Problem([[1.69e6] + 4 * [0.0]], [1], "linear", "logistic")
    weights = Weights(2.45e28 * np.ones((3, 5)), 1.18e-28 * np.ones(3))
    schedule = Schedule.fft(time=1.0, sigma=0.0, clip=1e29)
    with pytest.raises(ArithmeticError, match="the expansion diverged at time"):
        bounds.first_order_loss(problem, weights, schedule, [1.0])
