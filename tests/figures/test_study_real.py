"""The two-layer network on features of a file: simulated, trained with torch, and forecast."""

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

from empirical import Recipe, Setting
from empirical.studies.grid import compute_cell
from figures.study import study_real

SEEDS, SURE = 24, 4.5


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    rng = np.random.default_rng(0)
    means, W = 1.5 * rng.standard_normal((3, 6)), rng.standard_normal((16, 6))
    parts = {}
    for end, count in (("", 240), ("_test", 900)):
        y = np.arange(count) % 3
        parts |= {f"X{end}": means[y] + rng.standard_normal((count, 6)), f"y{end}": y}
    file = tmp_path_factory.mktemp("features") / "features.npz"
    np.savez(file, allow_pickle=False, W=W, **parts)
    return file


@pytest.mark.parametrize("method", ["lp", "fft", "lp-fft"])
def test_the_simulation_is_dpsgd(path, method):
    setting = Setting(str(path), body="layer")
    recipe = Recipe(method, steps=6, batch=60, epsilon=3, delta=1e-3, lr=0.4)

    def accuracies(compute, recipe):
        return np.array([compute(setting, recipe, seed)["test_accuracy"] for seed in range(SEEDS)])

    def differ(one, other):
        return abs(one.mean() - other.mean()) / np.sqrt((one.var(ddof=1) + other.var(ddof=1)) / SEEDS)

    trained = accuracies(compute_cell, recipe)
    assert differ(accuracies(study_real.simulate, recipe), trained) < SURE
    # negative control: a rate forty times lower
    assert differ(accuracies(study_real.simulate, replace(recipe, lr=0.01)), trained) > SURE


def test_a_small_study_is_resumed(path, tmp_path, monkeypatch):
    small = {
        "epsilons": (3.0,),
        "seeds": 2,
        "trials": 1,
        "steps": 4,
        "batch": 60,
        "cells": str(tmp_path / "c"),
    }
    monkeypatch.setattr(study_real, "SHARES", (0.5,))
    found = study_real.measure(path, **small)
    assert found.test_accuracy.sizes == {"how": 2, "arm": 3, "epsilon": 1, "seed": 2}
    assert found.test_accuracy.notnull().all()
    assert found.attrs["left"] == 0
    assert 0.34 < found.forecast.item() <= 1
    # finished runs are taken from their files
    monkeypatch.setattr(study_real, "simulate", None)
    assert study_real.measure(path, **small).equals(found)
