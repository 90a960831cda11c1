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
