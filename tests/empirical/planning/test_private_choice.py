"""Private plans: the law of the choice on neighbours, its sensitivity, and what it spends."""

from typing import Any

import numpy as np
import pytest

from empirical import account, plan_share
from empirical.planning import private_choice
from empirical.planning.private_choice import alternatives, choose, probabilities
from empirical.planning.settings import PlanSettings
from tests.empirical.planning.test_hedge import features

HOW: dict[str, Any] = dict(
    epsilon=2.0,
    delta=1e-4,
    steps=20,
    draws=4,
    shares=[0.0, 0.5, 1.0],
    heads=["gaussian", "zero"],
    theory=False,
)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 3.0])
def test_the_choice_is_private_on_neighbours(epsilon):
    random = np.random.default_rng(0)
    largest = 0.0
    for _ in range(500):
        scores = 20 * random.random(5)
        # one row more: each alternative gets it right in some of the runs, in the worst case in all or none
        more = scores + np.where(random.random(5) < 0.5, random.integers(2, size=5), random.random(5))
        ratio = np.log(probabilities(more, epsilon) / probabilities(scores, epsilon))
        largest = max(largest, np.abs(ratio).max())
        # the control: rows that count twice
        assert largest <= epsilon * (1 + 1e-12)
    assert largest > 0.8 * epsilon
    twice = [np.array([5.0, 5.0]), np.array([5.0, 7.0])]
    ratio = np.log(probabilities(twice[1], epsilon) / probabilities(twice[0], epsilon))
    loose = np.log(probabilities(twice[1], 3 * epsilon) / probabilities(twice[0], 3 * epsilon))
    assert np.abs(loose).max() > epsilon
    assert np.abs(ratio).max() < np.abs(loose).max()


def test_choices_are_drawn_with_their_chances():
    scores, random, draws = np.array([3.0, 2.0, 2.5]), np.random.default_rng(0), 20_000
    seen = np.bincount([choose(scores, 1.0, random) for _ in range(draws)], minlength=3) / draws
    expected = probabilities(scores, 1.0)
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(seen - expected) < 4 * error).all()
    # the control: twice the epsilon
    assert (np.abs(seen - probabilities(scores, 2.0)) > 4 * error).any()
    assert probabilities(np.array([0.0, 5000.0]), 1.0).tolist() == [0.0, 1.0]


def test_one_private_row_moves_no_score_by_more_than_one(monkeypatch: pytest.MonkeyPatch):
    X, y = features(1.0)
    rows, labels = features(1.0, seed=5, each=10)
    seen = []

    def recorded(trials, plan, given):
        found = alternatives(trials, plan, given)
        seen.append((found[1], plan))
        return found

    monkeypatch.setattr(private_choice, "alternatives", recorded)
    for kept in (slice(None), slice(1, None), slice(None, -7)):
        plan_share(X, y, X_test=rows[kept], y_test=labels[kept], plan_epsilon=0.5, **HOW)
    (whole, plan), (less, other), (far, _) = seen
    moved = whole - less
    assert len(whole) == 6
    assert (moved >= -1e-9).all()
    assert (moved <= 1 + 1e-9).all()
    # in quarters, as there are four draws
    assert 4 * moved == pytest.approx(np.rint(4 * moved))
    # the control: seven rows less move some by more
    assert (whole - far).max() > 1
    # and nothing else knows of the rows
    for head, runs in plan.runs.items():
        assert np.array_equal(runs.accuracy, other.runs[head].accuracy)
        assert np.array_equal(runs.lr, other.runs[head].lr, equal_nan=True)


def test_choice_and_training_together_spend_the_budget():
    X, y = features(1.0)
    rows, labels = features(1.0, seed=5, each=10)
    found = plan_share(X, y, X_test=rows, y_test=labels, plan_epsilon=0.5, samples=1000, **HOW)
    assert found.released is not None
    assert found.released.epsilon == 0.5
    assert found.training_epsilon == found.recipe.epsilon == 1.5
    spent = account(found.history).epsilon
    assert 0.995 * 1.5 <= spent <= 1.5
    assert (found.head, found.recommended) == (found.released.head, found.released.place)
    # accuracies are of public rows
    assert np.allclose(found.accuracy * 48 % 1, 0, atol=1e-9) or np.allclose(
        found.accuracy * 48 % 1, 1, atol=1e-9
    )


@pytest.mark.slow
def test_an_ample_choice_is_the_best_and_a_tight_one_is_random():
    X, y = features(1.0, each=200)
    rows, labels = features(1.0, seed=5, each=200)
    how = {**HOW, "epsilon": 200.0, "W": np.full((8, 8), 0.2), "heads": ["gaussian"]}
    found = [plan_share(X, y, X_test=rows, y_test=labels, plan_epsilon=e, **how).share for e in [100.0] * 5]
    # probing sees the sum of the coordinates alone
    assert max(found) < 1


def test_what_has_no_bounded_sensitivity_is_refused():
    X, y = features(1.0)
    with pytest.raises(ValueError, match="plan_epsilon must be None without X_test and y_test"):
        plan_share(X, y, plan_epsilon=0.5, **HOW)
    with pytest.raises(
        ValueError, match=r"plan_epsilon must be below epsilon=1, of which it is a part, got 1"
    ):
        PlanSettings(1.0, plan_epsilon=1.0)
    with pytest.raises(ValueError, match="plan_epsilon must be positive"):
        PlanSettings(1.0, plan_epsilon=0.0)
