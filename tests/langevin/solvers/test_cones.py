"""The zeroth-order flow class by class: equal to the full one while neurons stay in their cones."""

import json
from typing import Any

import numpy as np
import pytest
import xarray as xr

from langevin import (
    Phase,
    Problem,
    Schedule,
    Weights,
    collapsed_features,
    orthogonally_separable,
    zeroth_order,
)
from langevin.model import losses
from tests.helpers import random_problem, random_weights

RELU = random_problem(1, n=4, d=6)
SEPARABLE = orthogonally_separable(12, 4, rng=0)
FFT = Schedule.fft(time=0.2, sigma=0.3, clip=1.0)
LP_FFT = Schedule.lp_fft(lp_time=0.1, fft_time=0.1, sigma=0.3, clip=1.0)
NEURONS = ["misaligned", "alignment"]


def taken(run: xr.Dataset) -> str:
    return json.loads(run.attrs["config"])["reduction"]


@pytest.mark.parametrize("schedule", [FFT, LP_FFT, Schedule.lp_fft(lp_time=1.0, fft_time=2.0)])
@pytest.mark.parametrize("samples", [12, 11])
def test_blocks_follow_the_zeroth_order_flow(schedule, samples):
    problem = orthogonally_separable(samples, 4, rng=1)
    weights = collapsed_features(problem, 50, head_scale=0.02, rng=1)
    ask: dict[str, Any] = dict(rtol=1e-11, atol=1e-13, observables=NEURONS)
    full = zeroth_order(problem, weights, schedule, reduce="none", **ask)
    short = zeroth_order(problem, weights, schedule, reduce="blocks", **ask)
    assert taken(short) == "blocks"
    assert full.misaligned[0] > 0.2
    for name in full.data_vars:
        np.testing.assert_allclose(short[name], full[name], rtol=1e-8, atol=1e-9, err_msg=name)


def test_blocks_of_one_class():
    problem = orthogonally_separable(12, 4, rng=1)
    one = Problem(problem.X[problem.y > 0], problem.y[problem.y > 0])
    weights = collapsed_features(problem, 50, head_scale=0.02, rng=1)
    full, short = (zeroth_order(one, weights, FFT, reduce=name) for name in ("none", "blocks"))
    np.testing.assert_allclose(short.loss, full.loss, rtol=1e-6)


def test_blocks_end_when_a_neuron_may_leave_its_cone():
    problem = orthogonally_separable(12, 4, rng=1)
    weights = collapsed_features(problem, 50, head_scale=1.0, rng=1)
    with pytest.raises(ValueError, match="'blocks' does not all along: neurons may leave the cones"):
        zeroth_order(problem, weights, Schedule.fft(time=2.0), reduce="blocks")
    # and some do: a linear network for each class would be wrong
    full = zeroth_order(problem, weights, Schedule.fft(time=2.0), observables=["preactivation"])
    assert taken(full) in ("none", "span")
    assert (full.preactivation[-1] * full.own_class <= 0).any() or (full.dead[-1] > 0)


def test_blocks_allow_for_longer_gradients_with_normalised_clipping():
    """Every head of a class misaligned: only time, times the largest clipping factor, bounds the clock."""
    problem = orthogonally_separable(8, 3, spread=0.4, rng=69)
    W = collapsed_features(problem, 4, spread=0.99, scale=0.3, rng=69).W
    weights = Weights(W, [-0.25, 0.25, -0.25, 0.25])
    schedule = Schedule.fft(time=4e-5, clip=1e6, clipping="normalised")
    with pytest.raises(ValueError, match="neurons may leave the cones"):
        zeroth_order(problem, weights, schedule, reduce="blocks")
    auto, full = (zeroth_order(problem, weights, schedule, reduce=name) for name in ("auto", "none"))
    np.testing.assert_allclose(auto.loss, full.loss, rtol=1e-6)
    gentle = Schedule.fft(time=1.0, clip=1.0, clipping="normalised", stabiliser=1.0)
    weights = Weights(W, 0.1 * weights.v)
    short, full = (zeroth_order(problem, weights, gentle, reduce=name) for name in ("blocks", "none"))
    np.testing.assert_allclose(short.loss, full.loss, rtol=1e-6)


@pytest.mark.parametrize(
    ("problem", "weights", "reason"),
    [
        (RELU, random_weights(1, h=300, d=6, scale=0.3), "Assumption 3.1"),
        (SEPARABLE, random_weights(1, h=9), "Assumption 3.2"),
        (Problem(SEPARABLE.X, 0.5 * SEPARABLE.y, loss="square"), random_weights(1, h=9), "labels -1"),
    ],
)
def test_blocks_are_refused(problem, weights, reason):
    with pytest.raises(ValueError, match=f"'blocks' needs .*{reason}"):
        zeroth_order(problem, weights, FFT, reduce="blocks")
    with pytest.raises(ValueError, match="or in whole steps"):
        zeroth_order(problem, weights, FFT, reduce="blocks", dt=0.01)


# --- K classes (section 7d') ------------------------------------------------------------------------

SCHEDULES = {
    "fft": Schedule.fft(time=1.0),
    "lp-fft, clipped": Schedule.lp_fft(lp_time=0.3, fft_time=1.0, clip=0.5),
    "normalised": Schedule.fft(time=1.0, clip=1.0, clipping="normalised", stabiliser=1.0),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("loss", ["softmax", "ovr"])
@pytest.mark.parametrize("outputs", [2, 3, 5])
def test_classes_train_apart_from_each_other(loss, outputs, schedule):
    problem = orthogonally_separable(13, 8, classes=outputs, loss=loss, rng=outputs)
    weights = collapsed_features(problem, 40, head_scale=0.02, rng=1)
    ask: dict[str, Any] = dict(rtol=1e-11, atol=1e-13, observables=["cone_distance", "preactivation"])
    full, short = (
        zeroth_order(problem, weights, SCHEDULES[schedule], reduce=name, **ask) for name in ("none", "blocks")
    )
    assert full.misaligned[0] > 0.2
    for name in full.data_vars:
        np.testing.assert_allclose(short[name], full[name], rtol=1e-7, atol=1e-8, err_msg=name)


@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_blocks_of_classes_end_when_a_neuron_may_leave_its_cone(loss):
    problem = orthogonally_separable(12, 8, classes=3, loss=loss, rng=1)
    weights = collapsed_features(problem, 40, head_scale=1.0, rng=1)
    with pytest.raises(ValueError, match="'blocks' does not all along: neurons may leave the cones"):
        zeroth_order(problem, weights, Schedule.fft(time=2.0), reduce="blocks")
    # and some do
    run = zeroth_order(
        problem, weights, Schedule.fft(time=2.0), dt=1e-3, reduce="none", observables=["preactivation"]
    )
    assert (run.preactivation[-1] <= 0).any() or run.dead[-1] > 0


@pytest.mark.parametrize("method", ["fft", "lp-fft"])
@pytest.mark.parametrize("shift", [True, False])
def test_symmetric_heads_are_a_scalar_net_per_class(method, shift):
    """4b'(a): on ``sqrt(K / (K - 1)) x``, with loss ``log(1 + (K - 1) exp(-m))`` and not the logistic one."""
    K = 4
    problem = orthogonally_separable(14, 8, classes=K, loss="softmax", rng=2)
    weights = collapsed_features(problem, 24, rng=3)
    own, rng = np.arange(24) % K, np.random.default_rng(4)
    # the heads of a class: any number for it, and any other for all other classes
    lead, rest = 0.05 * rng.standard_normal((2, 24))
    V = np.where(np.arange(K) == own[:, None], lead[:, None], rest[:, None])
    phases: list[Any] = [Phase(one, 0.5, clip=0.5) for one in method.split("-")]  # pyright: ignore
    schedule, times = Schedule(phases), [0.0, 0.25, len(phases) * 0.5]
    ask: dict[str, Any] = dict(times=times, rtol=1e-10, atol=1e-12)
    whole = zeroth_order(problem, Weights(weights.W, V), schedule, **ask)
    scale, odds = (K / (K - 1)) ** 0.5, float(K - 1) if shift else 1.0
    losses.register(
        losses.Loss(
            "shifted",
            lambda f, y: np.log1p(odds * np.exp(-y * f)),
            lambda f, y: -y * odds / (odds + np.exp(y * f)),
            lambda f, y: odds * np.exp(y * f) / (odds + np.exp(y * f)) ** 2,
            smoothness=0.25,
            signs=True,
            largest_residual=1.0,
        )
    )
    try:
        total = np.zeros(len(times))
        for label in range(K):
            members, neurons = problem.y == label, own == label
            scalar = Problem(scale * problem.X[members], np.ones(members.sum()), "relu", "shifted")
            start = Weights(weights.W[neurons], (lead - rest)[neurons] / scale)
            total += zeroth_order(scalar, start, schedule, reduce="none", **ask).loss.values
    finally:
        del losses.LOSSES["shifted"]
    assert (np.abs(total / whole.loss - 1).max() < 1e-7) == shift
