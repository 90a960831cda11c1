"""The study of features: all from a grid, resumed, with missing runs."""

import json
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

pytest.importorskip("torch")

from empirical import Recipe, Setting
from figures.study import study_features
from figures.study.study_features import RUNS
from langevin.store import files

ARMS, EPSILON = ["lp", "fft", "lp-fft 0.5"], 3.0


@pytest.fixture
def wanted():
    setting = Setting("glyphs", size=8, images=60, body="mlp", widths=(6,), epochs=1)
    recipe = Recipe("fft", steps=4, batch=20, delta=1e-3)
    rates = {name: (("arm", "epsilon"), np.array([[0.5], [0.25], [0.125]])) for name in ("lr", "lp_lr")}
    tuned = xr.Dataset(rates, {"arm": ARMS, "epsilon": [EPSILON]})
    tuned.attrs = {"setting": json.dumps(setting.as_dict()), "recipe": json.dumps(recipe.as_dict())}
    return study_features.runs(
        tuned, epsilons=[EPSILON], seeds=1, device="cpu", evaluations=2, tested=40, epochs=2
    )


def test_rates_setting_and_recipe_are_those_of_the_grid(wanted):
    assert list(wanted) == [(EPSILON, name, 0) for name in RUNS]
    run = wanted[EPSILON, "lp-fft, large head, no noise", 0]
    assert (run.recipe.lr, run.recipe.lp_lr, run.recipe.head_scale) == (0.125, 0.125, study_features.LARGE)
    assert (run.recipe.epsilon, run.recipe.steps, run.recipe.delta) == (float("inf"), 4, 1e-3)
    assert wanted[EPSILON, "fft, zero head", 0].recipe.lr == 0.25
    assert (run.setting.size, run.setting.images, run.setting.epochs) == (8, 60, 2)
    assert len({run.key for run in wanted.values()}) == len(RUNS)
    assert len(run.task().test) == 40


def test_runs_are_resumed(wanted, tmp_path, monkeypatch):
    cells, first = tmp_path / "cells.jsonl", dict(list(wanted.items())[:2])
    found = study_features.measure(first, cells=cells)
    assert found.attrs["left"] == 0
    measured, real = [], study_features._measured
    monkeypatch.setattr(study_features, "_measured", lambda run: measured.append(run) or real(run))
    # the time is up: what is finished is there, the rest is missing
    part = study_features.measure(wanted, cells=cells, time_limit=1e-9)
    assert not measured
    assert part.attrs["left"] == len(RUNS) - 2
    for name in ("knn_accuracy", "nc1", "test_accuracy"):
        known = part[name].sel(run=["lp", "fft"])
        np.testing.assert_array_equal(known, found[name].sel(run=["lp", "fft"]))
        assert known.sizes["step"] == 3
        assert known.notnull().all()
        assert part[name].drop_sel(run=["lp", "fft"]).isnull().all()
    # probing leaves the features as they are, fine-tuning does not
    assert (part.cka.sel(run="lp") > 1 - 1e-6).all()
    assert (part.cka.sel(run="fft").isel(step=-1) < 1 - 1e-6).all()
    assert part.baseline.notnull().all()
    more = dict(list(wanted.items())[:3])
    assert study_features.measure(more, cells=cells).attrs["left"] == 0
    assert measured == [wanted[EPSILON, "lp-fft", 0]]


def test_runs_of_an_earlier_result_are_not_repeated(wanted, tmp_path, monkeypatch):
    some = dict(list(wanted.items())[:2])
    known = study_features.measure(some)
    path = tmp_path / "known.nc"
    files.save(known, path)
    measured, real = [], study_features._measured
    monkeypatch.setattr(study_features, "_measured", lambda run: measured.append(run) or real(run))
    more = dict(list(wanted.items())[:3])
    found = study_features.measure(more, known=files.load(path))
    assert measured == [wanted[EPSILON, "lp-fft", 0]]
    assert found.attrs["left"] == 0
    xr.testing.assert_equal(
        found[list(study_features.MEASURES)].sel(run=["lp", "fft"]),
        known[list(study_features.MEASURES)].sel(run=["lp", "fft"]),
    )
    # a run that is not finished there is measured
    known.test_accuracy.loc[{"run": "fft", "step": 4}] = np.nan
    # a head of zeros has no angles
    known.nc3.loc[{"run": "lp", "step": 0}] = np.nan
    assert set(study_features.finished(known, some)) == {(EPSILON, "lp", 0)}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"setting": {"size": 16}}, "setting"),
        ({"recipe": {"steps": 8}}, "recipe"),
        ({"evaluations": 4}, "steps"),
        ({"setting": {"device": "cuda"}}, None),
    ],
)
def test_an_earlier_result_of_another_kind_is_refused(wanted, change, what):
    run = wanted[EPSILON, "lp", 0]
    known = study_features.measure({(EPSILON, "lp", 0): run})
    other = replace(
        run,
        setting=replace(run.setting, **change.get("setting", {})),
        recipe=replace(run.recipe, **change.get("recipe", {})),
        evaluations=change.get("evaluations", run.evaluations),
    )
    asked = {(EPSILON, "lp", 0): other}
    if what is None:
        assert set(study_features.finished(known, asked)) == set(asked)
        return
    with pytest.raises(ValueError, match=f"with another {what}"):
        study_features.finished(known, asked)
