"""Plans over a range of a setting, plans that were interrupted, and the data that plans take."""

import itertools
import json
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from empirical import plan_curve, plan_share
from empirical.planning import curve as curves
from empirical.planning import theory
from empirical.planning.report import text
from empirical.planning.stand_in import StandIn
from tests.empirical.planning.test_hedge import features

HOW: dict[str, Any] = dict(
    delta=1e-4, steps=20, draws=8, shares=[0.0, 0.5, 1.0], heads=["gaussian"], hedge=False, theory=False
)


def test_more_budget_buys_more_accuracy(tmp_path):
    X, y = features(2.0)
    found = plan_curve(X, y, parameter="epsilon", low=0.1, high=10.0, points=3, **HOW)
    assert found.values.tolist() == pytest.approx([0.1, 1.0, 10.0])
    mean, error = found.accuracy
    assert mean[2] - mean[0] > 4 * np.hypot(error[0], error[2]) > 0
    # each is the plan of its value
    alone = plan_share(X, y, epsilon=10.0, **HOW)
    assert np.array_equal(found.plans[2].accuracy, alone.accuracy)
    said = found.table().text()
    assert [line.split()[0] for line in said.splitlines()] == ["epsilon", "0.1", "1", "10"]
    assert found.to_dataset().accuracy.values.tolist() == found.to_dict()["accuracy"]
    curves.draw(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("parameter", "low", "high"), [("steps", 5, 20), ("batch", 12, 48), ("clip", 0.1, 1.0)]
)
def test_other_settings_are_swept(parameter, low, high):
    X, y = features(2.0)
    done = []
    how = {**HOW, "epsilon": 1.0, "draws": 2}
    found = plan_curve(X, y, parameter=parameter, low=low, high=high, points=2, progress=done.append, **how)
    assert found.values.tolist() == [low, high]
    of = {
        "steps": lambda plan: plan.steps,
        "batch": lambda plan: plan.batch,
        "clip": lambda plan: plan.clip,
    }[parameter]
    assert [of(plan) for plan in found.plans] == [low, high]
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parameter": "delta"}, "parameter must be one of"),
        ({"low": 10.0}, "low=10 must be below high=10"),
        ({"low": 0.0}, "low must be positive"),
        ({"points": 1}, "points must be at least 2"),
    ],
)
def test_bad_ranges_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        plan_curve(*features(1.0), **{"parameter": "epsilon", "low": 0.1, "high": 10.0, **given}, **HOW)


def test_an_interrupted_plan_resumes(tmp_path, monkeypatch: pytest.MonkeyPatch):
    X, y = features(2.0)
    how = {**HOW, "epsilon": 1.0}
    whole = plan_share(X, y, **how)
    calls, run = itertools.count(), StandIn.run

    def counted(self, *given):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return run(self, *given)

    monkeypatch.setattr(StandIn, "run", counted)
    keep = tmp_path / "plan.jsonl"
    with pytest.raises(KeyboardInterrupt):
        plan_share(X, y, keep=keep, **how)
    first = next(calls)
    found = plan_share(X, y, keep=keep, **how)
    assert np.array_equal(found.accuracy, whole.accuracy)
    assert np.array_equal(found.loss, whole.loss)
    assert json.dumps(found.to_dict()) == json.dumps(whole.to_dict())
    resumed = next(calls) - first
    # nothing is left to run, and for other data everything is
    plan_share(X, y, keep=keep, **how)
    assert next(calls) - first == resumed + 1
    plan_share(1.1 * X, y, keep=keep, **how)
    assert next(calls) - first > resumed + 4


def test_an_interrupt_does_not_wait_for_the_forecast(monkeypatch: pytest.MonkeyPatch):
    go, ended = threading.Event(), []

    def forecast(*given):
        go.wait(60)
        ended.append(given)

    def run(self, *given):
        raise KeyboardInterrupt

    monkeypatch.setattr(theory, "forecast", forecast)
    monkeypatch.setattr(StandIn, "run", run)
    with pytest.raises(KeyboardInterrupt):
        plan_share(*features(2.0), epsilon=1.0, **{**HOW, "theory": True})
    assert not ended
    go.set()


@pytest.mark.parametrize("classes", [2, 3, 50])
@pytest.mark.parametrize("named", [False, True])
def test_two_to_fifty_classes_of_numbers_or_text(classes, named):
    random = np.random.default_rng(0)
    labels = np.arange(4 * classes) % classes
    X = np.abs(np.eye(classes)[labels] + 0.1 * random.standard_normal((len(labels), classes)))
    names = np.array([f"kind {label:02d}" for label in range(classes)])
    y = names[labels] if named else labels
    how = {**HOW, "epsilon": 5.0, "steps": 6, "draws": 2, "shares": [0.0, 1.0], "delta": 1e-3}
    found = plan_share(X, y, **{**how, "heads": ["gaussian", "zero", "prototype"], "hedge": True})
    assert found.classes == tuple(names if named else map(str, range(classes)))
    assert set(found.runs) == {"gaussian", "zero", "prototype"}
    assert found.accuracy.shape == (2, 2)


def test_a_class_of_one_sample_is_named():
    X, y = features(1.0)
    y[0] = 7
    with pytest.raises(ValueError, match="y must hold two samples or more of each class, got 1 of class '7'"):
        plan_share(X, y, epsilon=1.0, **HOW)
    # or held out by the user
    rest = X[1:], y[1:]
    assert (
        plan_share(X, y, X_test=rest[0], y_test=rest[1], epsilon=1.0, **{**HOW, "draws": 2}).classes[-1]
        == "7"
    )


def test_columns_that_are_constant_or_not_finite_are_named():
    X, y = features(1.0)
    X[:, [2, 5]] = 3.0
    with pytest.raises(
        ValueError, match="X must not hold constant columns, got 2 of 8, counted from 0: 2, 5: leave them out"
    ):
        plan_share(X, y, epsilon=1.0, **HOW)
    # a column of ones is what a bias needs
    plan_share(X, y, W=np.eye(8), epsilon=1.0, **{**HOW, "draws": 2})
    X[3, 4] = np.nan
    with pytest.raises(ValueError, match=r"X must be finite, got nan at index \(3, 4\)"):
        plan_share(X, y, epsilon=1.0, **HOW)


def test_a_zero_head_needs_no_probing_on_separable_data():
    from langevin import collapsed_features, orthogonally_separable

    data = orthogonally_separable(120, 6, spread=0.05, rng=0)
    weights = collapsed_features(data, 8, rng=0)
    how = {**HOW, "epsilon": 8.0, "draws": 8, "heads": ["zero", "gaussian"], "theory": True, "hedge": True}
    found = plan_share(data.X, data.y, W=weights.W, X_test=data.X, y_test=data.y, **how)
    assert all(advice.assumptions.hold for advice in found.theory.values())
    # theory: from a zero head there is nothing to align, so that no probing is needed
    assert {advice.minimum_share[0] for advice in found.theory.values()} == {0.0}
    assert found.probing_needed is False
    assert found.runs["zero"].accuracy[0].mean() == pytest.approx(1.0)
    zero = replace(found, runs={"zero": found.runs["zero"]})
    assert zero.unprobed == "zero"
    assert "as theory says: from a zero head probing prevents no distortion" in text(zero, "")
    # the control: without the assumptions theory does not say so
    other = replace(zero, theory={})
    assert "not needed" in text(other, "")
    assert "as theory says" not in text(other, "")
