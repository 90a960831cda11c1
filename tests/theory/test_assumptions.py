"""Assumptions 3.1 and 3.2 on made and on real data."""

import json
from typing import Any

import numpy as np
import pytest

import bounds
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from tests.theory import strategies


def test_made_to_hold():
    for seed in range(20):
        problem, weights = strategies.decoupled(np.random.default_rng(seed), spread=0.3)
        found = bounds.check_assumptions(problem, weights)
        assert found.hold
        assert found.collapse is not None
        assert found.collapse.margins.min() > 0
        assert found.separability.violations == 0 or np.isnan(found.separability.violations)


def test_against_brute_force():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        problem, weights = strategies.general(rng, n=7, d=3, h=5)
        found = bounds.check_assumptions(problem, weights)
        X, y = problem.X, problem.y
        pairs = [(i, k) for i in range(7) for k in range(i)]
        bad = [(X[i] @ X[k] <= 0) if y[i] == y[k] else (X[i] @ X[k] > 0) for i, k in pairs]
        assert found.separability.violations == pytest.approx(np.mean(bad))
        assert found.separability.holds == (not any(bad))
        cones = [
            any(all((w @ x > 0) == (label == s) for x, label in zip(X, y, strict=True)) for s in (1, -1))
            for w in weights.W
        ]
        assert found.collapse is not None
        assert found.collapse.violations == pytest.approx(1 - np.mean(cones))
        json.dumps(found.to_dict())


def test_zero_input_and_a_single_flaw_are_seen():
    X = np.array([[1.0, 0.0], [1.0, 0.1], [0.0, -1.0], [0.0, 0.0]])
    found = bounds.check_assumptions(Problem(X, [1, 1, -1, -1]), Weights([[1.0, 1.0]], [1.0]))
    assert found.separability.zero_inputs == 1
    assert not found.separability.holds
    tilted = Problem([X[0], X[1], [2.0, -1.0]], [1, 1, -1])
    flawed = bounds.check_assumptions(tilted, Weights([[1.0, 1.0]], [1]))
    assert [(i, k) for i, k, _ in flawed.separability.worst] == [(0, 2), (1, 2)]
    assert flawed.collapse is not None
    assert flawed.collapse.worst[0][:2] == (0, 2)


def test_digits():
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    X, labels = digits.data / 16, digits.target
    keep = labels < 2
    y = np.where(labels[keep] == 0, 1.0, -1.0)
    W = np.random.default_rng(0).standard_normal((32, 64)) / 8
    raw = bounds.check_assumptions(Problem(X[keep], y), Weights(W, np.ones(32)))
    # pixels are positive, so all pairs across the classes violate 3.1 and none within does
    assert raw.separability.across_violations > 0.99
    assert raw.separability.within_violations == 0
    centred = bounds.check_assumptions(Problem(X[keep] - X[keep].mean(0), y), Weights(W, np.ones(32)))
    assert centred.separability.violations < 0.2
    assert "fails" in str(centred)


# --- K classes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["softmax", "ovr"])
def test_made_to_hold_for_k_classes(loss):
    for seed in range(20):
        K = strategies.CLASSES[seed % 4]
        problem, weights = strategies.classes(np.random.default_rng(seed), K, loss, 0.3)
        found = bounds.check_assumptions(problem, weights)
        assert found.hold
        assert found.collapse is not None
        distortion = bounds.distortion(problem, weights)
        assert distortion.valid
        assert (found.collapse.classes == distortion.classes).all()
        assert found.collapse.misaligned == pytest.approx(distortion.misaligned.mean())
        assert found.centred is None
        assert "3.1' orthogonal separability: holds" in str(found)
        assert "3.2' collapsed features: holds" in str(found)


def test_k_classes_against_brute_force():
    fails = 0
    for seed in range(20):
        problem, weights = strategies.several(np.random.default_rng(seed), 3, "softmax", "relu", n=8, h=6)
        found, collapse = bounds.check_assumptions(problem, weights), None
        X, y = problem.X, problem.y
        bad = [(X[i] @ X[k] <= 0) if y[i] == y[k] else (X[i] @ X[k] > 0) for i in range(8) for k in range(i)]
        assert found.separability.violations == pytest.approx(np.mean(bad))
        collapse = found.collapse
        assert collapse is not None
        pre = weights.W @ X.T
        wrong = np.array([((pre > 0) != (y == c)).sum(1) for c in range(3)])
        idle = (pre < 0).all(1)
        assert collapse.violations == pytest.approx(((wrong.min(0) > 0) & ~idle).mean())
        assert collapse.pair_violations == pytest.approx(np.where(idle, 0, wrong.min(0)).mean() / 8)
        assert np.isnan(collapse.classes[idle]).all()
        best = collapse.classes[~idle].astype(int)
        assert (wrong[best, np.flatnonzero(~idle)] == wrong.min(0)[~idle]).all()
        assert collapse.holds == bounds.alignment_time(problem, weights).valid
        assert found.hold == bounds.distortion(problem, weights).valid
        for j, i, margin in collapse.worst:
            sign = 1 if y[i] == collapse.classes[j] else -1
            cosine = pre[j, i] / np.linalg.norm(X[i]) / np.linalg.norm(weights.W[j])
            assert margin == pytest.approx(sign * cosine)
        fails += not found.hold
        json.dumps(found.to_dict())
    assert fails > 10


def test_features_after_a_relu_are_told_to_be_centred():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = np.maximum(np.eye(3, 12)[y] * 3 + 1 + 0.2 * rng.standard_normal((60, 12)), 0)
    W = rng.standard_normal((5, 12))
    for loss, labels in (("softmax", y), ("logistic", np.where(y == 0, 1.0, -1.0))):
        head = np.zeros((5, 3) if loss == "softmax" else 5)
        raw = bounds.check_assumptions(Problem(X, labels, loss=loss), Weights(W, head))
        assert raw.separability.across_violations == 1
        assert raw.centred is not None
        assert "the mean of public features: that of private ones is a release and costs privacy" in str(raw)
        centred = bounds.check_assumptions(Problem(X - X.mean(0), labels, loss=loss), Weights(W, head))
        assert raw.centred == centred.separability
        assert centred.centred is None
        if loss == "softmax":
            # classes of equal sizes: what is left is their simplex
            assert raw.centred.across_violations < 0.01
    # features that no two classes share need no centring
    apart = bounds.check_assumptions(
        Problem(np.eye(3), [0, 1, 2], loss="softmax"), Weights(np.eye(3), np.eye(3))
    )
    assert apart.separability.holds
    assert "public" not in str(apart)


def test_many_classes_are_not_listed_one_by_one():
    problem, weights = strategies.classes(np.random.default_rng(0), 20, "softmax", 0.3)
    assert "degrees in 20 classes" in str(bounds.check_assumptions(problem, weights))
    with pytest.raises(ValueError, match="'square' is not covered, only 'softmax' or 'ovr'"):
        bounds.check_assumptions(
            Problem(np.eye(60), np.eye(60), loss="square"), Weights(weights.W, np.zeros((len(weights.v), 60)))
        )
