"""The planner's study: resumed from its sweep, saved in the form of the committed plans."""

import functools
import sys

import numpy as np
import pytest

from figures.study import regret, study_planner
from langevin.store import files


def test_plans_are_resumed_and_saved_like_the_committed_ones(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed, failing = [], {("public features", 0)}

    def compute(self, values, record):
        place = values["source"], values["seed"]
        computed.append(place)
        if place in failing:
            raise RuntimeError("no luck")
        return {"share": np.full(5, values["seed"]), "accuracy": np.full((5, 5), len(values["task"]))}, None

    monkeypatch.setattr(study_planner.Plans, "compute", compute)
    monkeypatch.setattr(study_planner, "ROOT", tmp_path)
    monkeypatch.setattr(study_planner, "run_sweep", functools.partial(study_planner.run_sweep, threads=True))
    out = tmp_path / "plans.nc"
    monkeypatch.setattr(sys, "argv", ["study", "--seeds", "2", "--workers", "1", "--out", str(out)])
    assert study_planner.main() == 1
    assert files.load(out).share.isnull().sum() == 6 * 5
    failing.clear()
    computed.clear()
    assert study_planner.main() == 0
    # those that failed alone
    assert computed == [("public features", 0)] * 6
    run, committed = files.load(out), regret.planned().isel(seed=slice(2))
    assert run.sizes == committed.sizes
    for name, variable in run.variables.items():
        assert (variable.dims, variable.attrs) == (committed[name].dims, committed[name].attrs)
    assert run.source.values.tolist() == committed.source.values.tolist()
    assert (run.share == run.seed).all()
    assert (run.accuracy.sel(task="glyphs") == len("glyphs")).all()
