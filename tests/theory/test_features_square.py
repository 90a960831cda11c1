"""Section 3.3' with the square loss and K targets: until a residual changes its sign, and not beyond."""

import numpy as np
import pytest

import bounds
from bounds.features import effects
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from tests.theory import strategies
from tests.theory.cones import own_and_other, trained


def labelled(problem):
    """The same samples with the number of their class."""
    return Problem(problem.X, problem.targets.argmax(1), "relu", "softmax")


def case(seed, heads="any"):
    """One-hot targets; heads small enough that residuals of a class have the same signs."""
    rng = np.random.default_rng(seed)
    K = strategies.CLASSES[seed % 4]
    spread = [None, 0.05, 0.5][rng.integers(3)]
    drawn, weights = strategies.classes(rng, K, spread=spread, h=int(rng.integers(K, 3 * K)))
    targets = np.eye(K)[drawn.y]
    own = (drawn.X @ weights.W.T > 0).argmax(0)
    # heads of a class lean to one side, a few neurons apart
    lean = rng.choice([-1.0, 1.0], (K, K))[drawn.y[own]]
    V = lean * np.abs(weights.v) * rng.choice([1.0, -0.3], weights.v.shape, p=[0.85, 0.15])
    problem = Problem(drawn.X, targets, "relu", "square")
    V = 0.5 * V / max(np.abs(problem.outputs(Weights(weights.W, V))).max(), 0.5) * (heads != "zero")
    clip = None if rng.random() < 0.3 else float(np.exp(rng.uniform(-1.5, 1.0)))
    return problem, Weights(weights.W, V), clip


def followed(problem, weights, clip, time):
    """Flow of full fine-tuning until a neuron leaves its cone, and up to when residuals keep their signs."""
    schedule = Schedule.fft(time=time, clip=clip)
    times, W, V = trained(problem, weights, schedule, np.linspace(0, time, 401))
    R = problem.activate(problem.X @ W.swapaxes(1, 2)) @ V - problem.targets
    kept = np.logical_and.accumulate((R * np.sign(R[0]) >= 0).all((1, 2)))
    return times, W, V, kept, R


def check(seeds, heads="any"):
    """Ratios of the duration seen to its bound, and of the drop's bound to that seen."""
    durations, drops, valid = [], [], 0
    for seed in seeds:
        problem, weights, clip = case(seed, heads)
        found = bounds.distortion(problem, weights, clip=clip)
        if not found.valid:
            assert "have both signs" in found.reason
            continue
        valid += 1
        assert found.scope == "until a residual changes its sign (square loss)"
        assert np.isnan(found.probability)
        times, W, V, kept, R = followed(
            problem, weights, clip, float(np.clip(4 * found.duration.max(), 0.5, 10))
        )
        classes, k = found.classes.astype(int), int(kept.sum())
        times, W, V = times[:k], W[:k], V[:k]
        own, other = own_and_other(labelled(problem), classes, W)
        # signs of the residuals per class and output; a residual of 0 pulls no head
        pull = -np.array([np.sign(R[0][problem.targets.argmax(1) == c][0]) for c in classes])
        outside = (pull * V < 0).any(2)
        assert (found.misaligned == outside[0]).all()
        for j in range(len(classes)):
            scale = 1e-7 * (1 + np.abs(own[0, j][~np.isnan(own[0, j])]).max())
            drop = np.nanmax(own[0, j] - own[:, j])
            if not found.misaligned[j]:
                rises, falls = np.diff(own[:, j], axis=0), np.diff(other[:, j], axis=0)
                assert not (rises < -scale).any()
                assert not (falls > scale).any()
                continue
            ended = np.flatnonzero(~outside[:, j])
            if len(ended):
                assert times[ended[0]] >= found.duration[j] * (1 - 1e-6)
                durations.append(times[ended[0]] / found.duration[j])
            if not np.isnan(found.largest_drop[j]):
                assert drop <= found.largest_drop[j] * (1 + 1e-6) + scale
                drops.append(found.largest_drop[j] / max(drop, 1e-9))
            early = int(np.logical_and.accumulate((pull * V < 0).all(2)[:, j]).sum())
            assert (early > 0) == found.wholly[j]
            assert not (np.diff(own[:early, j], axis=0) > scale).any()
    return valid, durations, drops


def test_residuals_of_one_sign_distort_as_one_vs_rest_does():
    valid, durations, drops = check(range(32))
    assert valid >= 20
    assert len(durations) > 5
    assert min(drops) < 2


def test_a_zero_head_distorts_nothing_until_a_residual_changes_its_sign():
    valid, _, _ = check(range(20), "zero")
    assert valid == 20


@pytest.mark.parametrize(("factor", "right"), [(1.0, True), (0.7, False)])
def test_the_drop_needs_the_whole_distance(factor, right, monkeypatch):
    plain = effects._survival
    monkeypatch.setattr(effects, "_survival", lambda block, distance: plain(block, factor * distance))
    if right:
        check(range(12))
    else:
        with pytest.raises(AssertionError):
            check(range(12))


@pytest.mark.parametrize("seed", [14, 21])
def test_aligned_neurons_may_be_turned_away_once_a_residual_has_changed_its_sign(seed):
    """A zero head: some samples overshoot, and their residuals then push the features of others back."""
    problem, weights, clip = case(seed, "zero")
    _, W, _, kept, _ = followed(problem, weights, clip, 5.0)
    classes = bounds.distortion(problem, weights, clip=clip).classes.astype(int)
    own, _ = own_and_other(labelled(problem), classes, W)
    before = int(kept.sum())
    assert not kept.all()
    assert (np.nanmin(np.diff(own[:before], axis=0)) >= 0).all()
    assert np.nanmax(own.max(0) - own[-1]) > 0.05


@pytest.mark.slow
def test_residuals_of_one_sign_many(tightness):
    valid, durations, drops = check(range(32, 352))
    assert valid >= 200
    tightness("3.3', square loss: time misaligned / bound", durations)
    tightness("3.3', square loss: bound / largest drop", [drop for drop in drops if drop < 1e6])
