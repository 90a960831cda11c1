"""Section 3.3': distortion with K classes, per neuron, against the zeroth-order flow."""

from typing import Any

import numpy as np
import pytest

import bounds
from langevin import euler_maruyama
from langevin.model.alignment import cone_distance, head_excess
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import strategies
from tests.theory.cones import LOSSES, case, lone, own_and_other, trained


def check_distortion(seeds, heads="any", scale=1.0):
    seen: Any = {"survivors": 0, "wholly": 0, "never": 0, "duration": {}, "drop": []}
    for seed in seeds:
        problem, weights, clip = case(seed, heads)
        weights = Weights(weights.W, scale * weights.v)
        found = bounds.distortion(problem, weights, clip=clip)
        assert found.valid, found.reason
        classes = found.classes.astype(int)
        end = float(min(20.0, max(5 * found.duration.max(), 1.0)))
        schedule = Schedule.fft(time=end, clip=clip)
        times, W, V = trained(problem, weights, schedule, np.linspace(0, end, 401))
        distance = np.array([cone_distance(problem, head, classes) for head in V])
        excess = np.array([head_excess(problem, head, classes) for head in V])
        own, other = own_and_other(problem, classes, W)
        assert found.distance == pytest.approx(distance[0], abs=1e-12)
        assert (found.misaligned == (excess[0] > 0).any(1)).all()
        assert (found.wholly == (excess[0] > 0).all(1)).all()
        # the sign of V_j . r_i, by the definition
        r = problem.residuals(problem.outputs(weights))
        pulls = r @ weights.v.T / np.linalg.norm(r, axis=1)[:, None]
        against = ((pulls > 1e-12 * np.abs(weights.v).max()) & (problem.y[:, None] == classes)).any(0)
        assert (found.pushed == against).all()
        for j in np.flatnonzero(found.misaligned):
            aligned = distance[:, j] == 0
            if aligned.any():
                first = times[np.argmax(aligned)]
                assert first >= found.duration[j] * (1 - 1e-6), seed
                if first > 0:
                    seen["duration"].setdefault(problem.outputs_dim, []).append(first / found.duration[j])
            window = np.logical_and.accumulate((excess[:, j] > 0).all(1))
            seen["wholly"] += window.sum() > 2
            mine = problem.y == classes[j]
            assert (np.diff(own[window][:, j][:, mine], axis=0) <= 1e-8).all(), seed
            assert (np.diff(other[window][:, j][:, ~mine], axis=0) >= -1e-8).all(), seed
            if found.never_flips[j]:
                seen["never"] += 1
                assert (distance[:, j] > 0).all()
            if found.survives[j]:
                seen["survivors"] += 1
                drop = np.nanmax(own[0, j] - own[:, j])
                rise = np.nanmax(other[:, j] - other[0, j])
                assert drop <= found.largest_drop[j] + 1e-7, seed
                assert rise <= found.largest_rise[j] + 1e-7, seed
                seen["drop"].append(drop / found.largest_drop[j])
        if found.fixed:
            assert len(times) == 401
        for j in np.flatnonzero(found.cosine_falls & (len(times) > 1)):
            mean, w = problem.X[problem.y == classes[j]].mean(0), W[:2, j]
            cosine = w @ mean / np.linalg.norm(w, axis=1)
            assert distance[1, j] == 0 or cosine[1] < cosine[0] + 1e-12
    return seen


def test_distortion():
    seen = check_distortion(range(20))
    assert seen["survivors"] > 10
    assert seen["wholly"] >= 10
    assert max(seen["drop"]) > 0.5
    assert check_distortion(range(100, 108), "symmetric", 4.0)["never"] > 0


@pytest.mark.slow
def test_distortion_many(tightness):
    seen = check_distortion(range(240))
    for K, ratios in seen["duration"].items():
        tightness(f"3.3': true over least duration, K = {K}", ratios)
    tightness("3.3': largest drop, true over bound", seen["drop"])
    check_distortion(range(240, 340), "symmetric", 4.0)


def test_two_classes_are_the_scalar_net_of_longer_inputs():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.classes(rng, 2, "softmax", 0.4)
        scalar = Problem(np.sqrt(2) * problem.X, 2.0 * problem.y - 1)
        head = Weights(weights.W, (weights.v[:, 1] - weights.v[:, 0]) / np.sqrt(2))
        clip = [None, 0.3][seed % 2]
        one, two = bounds.distortion(scalar, head, clip=clip), bounds.distortion(problem, weights, clip=clip)
        assert (one.classes == 2 * two.classes - 1).all()
        assert one.scope == two.scope
        for name in ("probability", "wholly_probability", "misaligned", "wholly", "pushed", "distance"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-12, abs=1e-14)
        for name in ("duration", "survives", "never_flips", "cosine_falls", "fixed"):
            assert getattr(one, name) == pytest.approx(getattr(two, name), rel=1e-11)
        for name in ("largest_drop", "largest_rise"):
            longer = np.sqrt(2) * getattr(two, name)
            np.testing.assert_allclose(getattr(one, name), longer, rtol=1e-9, atol=1e-12)
        a, b = (
            bounds.alignment_time(scalar, head, clip=clip),
            bounds.alignment_time(problem, weights, clip=clip),
        )
        assert b.time == pytest.approx(a.time, rel=1e-12)
        assert b.sharp == pytest.approx(a.sharp, rel=1e-12)
        assert b.lasting
        assert b.per_class == pytest.approx({0: a.per_class[-1], 1: a.per_class[1]}, rel=1e-12)


# --- the counterexamples, and where constants are attained -----------------------------------------


def test_a_head_longer_than_its_neuron_may_still_become_aligned():
    """With K >= 3 balancedness forbids no flip: alignment takes no zero head."""
    problem, weights = lone([0.0, 0.1, -5.0], w=0.2)
    assert np.linalg.norm(weights.v) > np.linalg.norm(weights.W)
    found = bounds.distortion(problem, weights)
    assert found.distance[0] == pytest.approx(0.1 / np.sqrt(2))
    assert not found.never_flips[0]
    assert found.survives[0]
    *_, V = trained(problem, weights, Schedule.fft(time=5.0), [0.0, 5.0])
    assert cone_distance(problem, V[-1], np.array([0]))[0] == 0
    # the control: a head along the line of the scalar net
    problem, weights = lone([0.0, 5.0, 5.0], w=0.2)
    assert bounds.distortion(problem, weights).never_flips[0]
    times, _, V = trained(problem, weights, Schedule.fft(time=50.0), np.linspace(0, 50, 11))
    assert len(times) < 11
    assert cone_distance(problem, V[-1], np.array([0]))[0] > 1


def test_the_largest_drop_is_attained_and_survival_is_sharp():
    for K in strategies.CLASSES:
        scale = np.sqrt((K - 1) / K)
        for size in (0.8, 0.99, 1.01):
            problem, weights = lone([-size / scale, *[0.0] * (K - 1)])
            found = bounds.distortion(problem, weights)
            assert found.distance[0] == pytest.approx(size)
            times, W, _ = trained(problem, weights, Schedule.fft(time=80.0), np.linspace(0, 80, 4001))
            if size < 1:
                assert found.survives[0]
                drop = 1 - W[:, 0, 0].min()
                assert drop == pytest.approx(found.largest_drop[0], rel=2e-3)
            else:
                assert not found.survives[0]
                assert len(times) < 4001


def test_neurons_that_are_not_sure_to_survive_are_lost():
    """Control of survival: for larger heads the bound of the drop has no ground."""
    lost = 0
    for seed in range(12):
        problem, weights, clip = case(seed)
        weights = Weights(weights.W, 6 * weights.v)
        found = bounds.distortion(problem, weights, clip=clip)
        if found.survives.all():
            continue
        times, *_ = trained(problem, weights, Schedule.fft(time=20.0, clip=clip), np.linspace(0, 20, 11))
        lost += len(times) < 11
    assert lost >= 3


def test_the_least_duration_needs_its_constant():
    """Clipped throughout, one sample: the head moves at nearly the speed of C."""
    for loss in LOSSES:
        problem, weights = lone([-0.5, 0.0, 0.0] if loss == "softmax" else [-0.5, 0.5, 0.5], 3.0, loss)
        clip = 0.05
        found = bounds.distortion(problem, weights, clip=clip)
        assert found.duration[0] >= found.distance[0] / clip * (1 - 1e-12)
        end = 1.2 * found.duration[0]
        times, _, V = trained(problem, weights, Schedule.fft(time=end, clip=clip), np.linspace(0, end, 1001))
        first = times[np.argmax([cone_distance(problem, head, np.array([0]))[0] == 0 for head in V])]
        assert found.duration[0] <= first < 1.1 * found.duration[0]


def test_without_a_clip_and_between_the_cones_the_duration_still_holds():
    """The head is not wholly misaligned, so that its neuron may grow meanwhile."""
    problem, weights = lone([0.0, 2.0, -30.0], 0.1)
    found = bounds.distortion(problem, weights)
    assert found.misaligned[0]
    assert not found.wholly[0]
    times, _, V = trained(problem, weights, Schedule.fft(time=60.0), np.linspace(0, 60, 6001))
    first = times[np.argmax(V[:, 0, 0] >= V[:, 0, 1])]
    assert 0 < found.duration[0] < first
    # with the pre-activations of the start alone it would be longer
    assert found.duration[0] < found.distance[0] / (np.sqrt(2) * 0.1)


def test_noise_may_misalign_a_zero_head():
    problem, weights, _ = case(2, "zero")
    how: Any = dict(dt=0.01, rng=0, paths=20, times=[0.0, 1.0])
    noisy, still = (
        euler_maruyama(problem, weights, Schedule.fft(time=1.0, sigma=sigma, clip=1.0), **how)
        for sigma in (0.5, 0.0)
    )
    assert noisy.misaligned[:, -1].mean() > 0.1
    assert noisy.distorted[:, -1].mean() > 0.1
    assert still.misaligned.max() == still.distorted.max() == 0


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("K", strategies.CLASSES)
def test_gaussian_heads_are_misaligned_as_often_as_stated(K, loss):
    rng = np.random.default_rng(K)
    draws, controls = 60_000, 0
    one = 1 / K if loss == "softmax" else 2.0**-K
    more = 1 / (K + 1) if loss == "softmax" else 2.0 ** -(K + 1)
    for h in (1, 2, 4):
        problem, weights = strategies.classes(rng, K, loss, 0.3, h=h)
        # many heads of the same neurons at once: of each neuron's own head alone
        many = Weights(np.tile(weights.W, (draws, 1)), rng.standard_normal((draws * h, K)))
        found, small = bounds.distortion(problem, many), bounds.distortion(problem, weights)
        for field, stated, wrong in (
            ("misaligned", small.probability, 1 - more**h),
            ("wholly", small.wholly_probability, 1 - (1 - more) ** h),
        ):
            assert stated == pytest.approx(1 - one**h if field == "misaligned" else 1 - (1 - one) ** h)
            share = getattr(found, field).reshape(draws, h).any(1).mean()
            error = max((stated * (1 - stated) / draws) ** 0.5, 0.5 / draws)
            assert abs(share - stated) <= 4 * error
            # the control: one class more, where that makes a difference
            if abs(stated - wrong) > 7 * error:
                assert abs(share - wrong) > 4 * error
                controls += 1
    assert controls


@pytest.mark.parametrize("loss", LOSSES)
def test_a_sample_pushes_a_neuron_away_with_at_least_even_odds(loss):
    rng = np.random.default_rng(5)
    shares = {}
    for scale in (0.01, 6.0):
        pushed = []
        for _ in range(10):
            problem, weights = strategies.classes(rng, 5, loss, 0.3, h=6)
            W, samples = weights.W, problem.samples
            A = problem.features(W)
            V = scale * rng.standard_normal((400, 6, 5))
            r = np.array([problem.residuals(A @ head) for head in V])
            active = (A > 0) & np.ones((samples, 6), dtype=bool)
            pushed += [((r @ V.swapaxes(1, 2)) > 0)[:, active].ravel()]
        shares[scale] = np.mean(np.concatenate(pushed))
    # draws of one problem depend on each other: by the number of heads, not of pairs
    error = (0.25 / 4000) ** 0.5
    assert shares[0.01] == pytest.approx(0.5, abs=4 * error + 0.01)
    assert shares[6.0] > 0.5 + 4 * error


def test_the_cosine_to_the_class_mean_may_still_fall():
    """What aligned neurons keep are their pre-activations, not their direction."""
    # the second neuron leaves the first sample no loss, so that the first one turns to the second sample
    X = np.zeros((4, 4))
    X[0, 0], X[1, :2], X[2:, 2:] = 1.0, (np.cos(1.4), np.sin(1.4)), np.eye(2)
    problem = Problem(X, [0, 0, 1, 2], loss="softmax")
    W = np.array([[*(0.1 * X[:2, :2].sum(0)), -0.01, -0.01], [10.0, 0.0, -0.1, -0.1]])
    weights = Weights(W, [[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    found = bounds.distortion(problem, weights)
    assert found.fixed
    assert not found.misaligned.any()
    _, W, _ = trained(problem, weights, Schedule.fft(time=30.0), [0.0, 30.0])
    own, _ = own_and_other(problem, found.classes, W)
    assert (own[1] >= own[0])[:, :2].all()
    mean = X[:2].mean(0)
    cosine = W[:, 0] @ mean / np.linalg.norm(W[:, 0], axis=1)
    assert cosine[1] < cosine[0] - 0.01


def test_where_they_do_not_hold():
    mixed = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    both = Weights([[1.0, 1.0, -1.0]], np.zeros((1, 3)))
    for found in (bounds.distortion(mixed, both), bounds.alignment_time(mixed, both)):
        assert not found.valid
        assert "3.2' fails" in found.reason
    across = Problem([[1.0, 0.0, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 1.0]], [0, 1, 2], loss="ovr")
    one = Weights([[1.0, -1.0, -1.0]], [[-1.0, 0.0, 0.0]])
    assert "3.1' fails" in bounds.distortion(across, one).reason
    # probing needs no 3.1', but what is said after it does
    found = bounds.alignment_time(across, one)
    assert found.valid
    assert not found.lasting
    square = Problem(np.eye(3), np.eye(3), loss="square")
    assert "'square' is not covered" in bounds.alignment_time(square, one).reason
    smooth = Problem(np.eye(3), [0, 1, 2], "gelu", "softmax")
    assert "only 'relu'" in bounds.distortion(smooth, one).reason
