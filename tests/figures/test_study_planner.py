"""The planner's study: resumed from its records, saved in the form of the committed plans."""

import sys

import numpy as np
import pytest

from figures.study import held_out, plans, regret, study_planner
from langevin.store import files


@pytest.fixture
def study(tmp_path, monkeypatch: pytest.MonkeyPatch):
    """Run the command on one new and one earlier task, with plans that are made up; return what was made."""
    made, failing = [], set()

    def make(plan):
        made.append(plan)
        if plan.source in failing:
            raise RuntimeError("no luck")
        numbers = {"share": 0.25 * plan.seed, "seconds": 1.0}
        for name in ("accuracy", "as_good", "nothing hidden"):
            numbers |= {f"{name} {k}": len(plan.task) * k for k in range(5)}
        return numbers, None

    for module in (study_planner, plans, held_out):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(study_planner, "make", make)
    monkeypatch.setattr(study_planner, "prepare", lambda of: ({}, None))
    path = tmp_path / held_out.path_of("wine")
    path.parent.mkdir(parents=True)
    np.savez(path, X=np.eye(3), y=[0, 1, 2])
    out = tmp_path / "plans.nc"

    def run(*options: str) -> int:
        argv = ["study", "--tasks", "glyphs", "wine", "--seeds", "2", "--workers", "1", "--out", str(out)]
        monkeypatch.setattr(sys, "argv", [*argv, *options])
        return study_planner.main()

    return run, out, made, failing


def test_plans_are_resumed_and_saved_like_the_committed_ones(study) -> None:
    run, out, made, failing = study
    failing.add("private features")
    assert run() == 1
    first = files.load(out)
    assert first.share.sel(source="private features").isnull().all()
    failing.clear()
    made.clear()
    assert run() == 0
    # those that failed alone: two tasks, two seeds, five budgets
    assert len(made) == 20
    assert {plan.source for plan in made} == {"private features"}
    found, committed = files.load(out), regret.planned()
    for name, variable in committed.data_vars.items():
        assert (found[name].dims, found[name].attrs) == (variable.dims, variable.attrs)
    assert set(committed.source.values) <= set(found.source.values)
    assert (found.share.sel(task="glyphs") == 0.25 * found.seed).all()
    assert found.accuracy.sel(task="glyphs", lp_share=0.5).values == pytest.approx(12.0)
    # of wine there is nothing but the table
    there = found.share.sel(task="wine").notnull().all(("seed", "epsilon"))
    assert there.source.values[there].tolist() == ["private features", "private, no hedge"]


def test_saved_plans_need_no_records(study, tmp_path) -> None:
    run, out, made, _ = study
    assert run("--sources", "private features") == 0
    first, kept = files.load(out), tmp_path / "runs/plans.jsonl"
    # made, as no two numbers of a record are equal
    first = first.assign(
        {
            name: first[name].copy(data=np.random.default_rng(k).random(first[name].shape))
            for k, name in enumerate(first.data_vars)
        }
    ).assign_attrs(machine="another")
    first["hidden_directions"] = first.hidden_directions * np.nan
    files.save(first, out)
    kept.unlink()
    made.clear()
    assert run("--sources", "private, last layer") == 0
    assert {plan.source for plan in made} == {"private, last layer"}
    found = files.load(out)
    for name in first.data_vars:
        np.testing.assert_array_equal(found[name].sel(source=first.source), first[name])
    assert found.machine.split("; ")[0] == "another" != found.machine
    # those made in another way are made again
    files.save(found.assign_attrs(format=plans.FORMAT - 1), out)
    kept.unlink()
    made.clear()
    assert run("--sources", "private features") == 0
    assert len(made) == 20
    assert "another" not in files.load(out).machine


def test_the_machine_of_a_run_that_did_not_end_is_named(study) -> None:
    run, out, made, _ = study
    assert run("--sources", "private features") == 0
    here = files.load(out)
    files.save(here.isel(seed=slice(-1)).assign_attrs(machine="another"), out)
    made.clear()
    assert run("--sources", "private features") == 0
    assert not made
    assert files.load(out).machine == f"another; {here.machine}"
    # nothing was made since
    files.save(here.assign_attrs(machine="another"), out)
    assert run("--sources", "private features") == 0
    assert files.load(out).machine == "another"


def test_no_plan_begins_after_the_time_limit(study, capsys: pytest.CaptureFixture) -> None:
    run, out, made, _ = study
    assert run("--time-limit", "1e-9") == 0
    assert not made
    assert "60 of 60 plans are left" in capsys.readouterr().out
    assert files.load(out).share.isnull().all()


def test_a_plan_of_a_table_and_one_of_its_layer_see_training_rows_alone(tmp_path, monkeypatch) -> None:
    random = np.random.default_rng(0)
    X, W = random.standard_normal((30, 4)), random.standard_normal((6, 4))
    W[0] = 0
    arrays = {"X": X, "y": np.arange(30) % 2, "X_test": X[:5] + 9, "y_test": np.arange(5) % 2, "W": W}
    for module in (plans, held_out):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    path = tmp_path / held_out.path_of("elpv-poly")
    path.parent.mkdir(parents=True)
    np.savez(path, **arrays, X_source=X + 1, y_source=arrays["y"])
    plans._arrays.cache_clear()
    layer = plans.inputs("elpv-poly", 0, "private, last layer")
    assert layer["X"] == pytest.approx(X, abs=1e-6)
    features = plans.inputs("elpv-poly", 0, "private, public source")
    # without the neuron that is never active
    active = np.maximum(X @ W.T, 0)[:, 1:]
    assert features["X"] == pytest.approx(active, abs=1e-5)
    assert features["X_source"] == pytest.approx(np.maximum((X + 1) @ W.T, 0)[:, 1:], abs=1e-5)
    assert plans.possible("elpv-poly", "private, last layer")
    plans._arrays.cache_clear()
