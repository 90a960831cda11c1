"""The command that plans a budget, end to end."""

import json
import os
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest

from bounds.plan import main
from empirical import Setting, Shift, last_layer
from empirical.finetune import main as finetune
from langevin import class_ring, collapsed_features, orthogonally_separable, report
from langevin.data.files import from_file
from langevin.store import files
from tests.helpers import execute

DATA = orthogonally_separable(60, 6, spread=0.05, rng=0)
FEW = ["--epsilon", "1", "--delta", "1e-3", "--steps", "20", "--draws", "2", "--shares", "0", "0.5", "1"]


@pytest.fixture
def features(tmp_path):
    path = tmp_path / "features.npz"
    np.savez(path, X=DATA.X, y=DATA.y, W=collapsed_features(DATA, 8, rng=0).W)
    return path


def write(path, **arrays):
    np.savez(path, **{"X": np.abs(DATA.X), "y": DATA.y, **arrays})
    return str(path)


def test_a_missing_package_is_named(tmp_path):
    np.savez(tmp_path / "features.npz", X=np.eye(8), y=np.arange(8) % 2)
    script = (
        "import sys\nsys.modules['dp_accounting'] = None\n"
        "from bounds.plan import main\nmain(['features.npz', '--epsilon', '1', '--delta', '1e-2'])\n"
    )
    done = execute(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.returncode == 2, done.stderr
    assert (
        f"error: dp_accounting is not installed: pip install -e '{Path(__file__).parents[2]}[dpsgd]'"
        in done.stderr
    )


def test_it_plans_saves_and_draws(tmp_path, features, capfd):
    out, plot = tmp_path / "plan.nc", tmp_path / "plan.png"
    assert main([str(features), *FEW, "--out", str(out), "--plot", str(plot), "--verbose"]) == 0
    done = capfd.readouterr()
    assert done.err == ""
    for said in ("3.1 orthogonal separability: holds", "minimum share", "loss-optimal", "sandwich"):
        assert said in done.out
    for said in ("recommended", "noise multiplier", "a plan read off private data is itself a release"):
        assert said in done.out
    run = files.load(out)
    assert dict(run.sizes) == {"head": 3, "share": 3, "draw": 2}
    assert np.isfinite(run.accuracy).all()
    assert json.loads(run.attrs["command"])["steps"] == 20
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_json_has_null_where_the_theory_gives_no_number(tmp_path, capsys):
    # three classes on features that are all positive: assumption 3.1 fails, and 3.2
    y = np.array(["cat", "dog", "eel"])[np.arange(60) % 3]
    path = write(tmp_path / "f.npz", y=y)
    assert main([path, *FEW, "--json", "--batch", "30"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert set(said["theory"]) == {"3 classes"}
    for about in said["theory"].values():
        assert about["minimum lp share"]["mean"] is None
        assert "3.2' fails" in about["minimum lp share"]["reason"]
        assert about["loss-optimal share"]["share"] is None
    assert said["privacy of the plan"].startswith("the data are taken to be public")
    assert said["recommended lp share"] in said["as good"]
    proposed = said["probing by theory"]
    assert proposed["valid"] is True
    assert proposed["steps"] >= 1
    assert 0 < proposed["accuracy"] < 1
    assert {phase["expected batch"] for phase in said["DP-SGD"]} == {30.0}
    assert said["failure"] is None


def test_private_data_need_a_budget_for_the_plan(tmp_path, capsys):
    held = {"X_test": np.abs(DATA.X[:20]), "y_test": DATA.y[:20]}
    path = write(tmp_path / "f.npz", **held)
    given = [path, *FEW, "--no-theory", "--data-are", "private"]
    with pytest.raises(SystemExit) as ended:
        main(given)
    assert ended.value.code == 2
    assert "--data-are must be public without plan_epsilon" in capsys.readouterr().err
    assert main([*given, "--plan-epsilon", "0.25"]) == 0
    said = capsys.readouterr().out
    assert "spends epsilon 0.25 (exponential mechanism), the training 0.75: 1 at delta 0.001 together" in said
    assert "--epsilon 0.75" in said
    # a file with held-out rows is trained on as a whole, at the rate of the plan
    assert f" --batch {len(DATA.X) / 10:g} " in said
    assert "samples of this file" not in said
    assert "a private random choice" in said
    assert "the most accurate" not in said
    # and held-out rows that are private
    with pytest.raises(SystemExit):
        main([write(tmp_path / "g.npz"), *FEW, "--plan-epsilon", "0.25"])
    assert "--plan-epsilon must be None without X_test and y_test" in capsys.readouterr().err


def test_a_head_has_one_shape_for_plans_and_simulations(tmp_path):
    data = class_ring(30, classes=3, rng=0)
    start = collapsed_features(data, 6, rng=0)
    path = str(tmp_path / "f.npz")
    np.savez(path, X=data.X, y=data.y, W=start.W, v=start.v)
    assert start.v.shape == (6, 3)
    assert main([path, *FEW, "--no-theory"]) == 0
    v = from_file(path, loss="softmax").v
    assert v is not None
    assert np.array_equal(v, start.v)


def test_a_keep_file_is_called_by_its_option(tmp_path, capsys):
    other = tmp_path / "other.txt"
    other.write_text("no record\n")
    with pytest.raises(SystemExit):
        main([write(tmp_path / "f.npz"), *FEW, "--keep", str(other)])
    assert f"--keep '{other}' is damaged in line 1" in capsys.readouterr().err


def test_the_report_of_a_run_is_not_that_of_a_plan(tmp_path, capsys):
    out = str(tmp_path / "plan.nc")
    assert main([write(tmp_path / "f.npz"), *FEW, "--no-theory", "--out", out]) == 0
    for more in ([], ["--plot"]):
        with pytest.raises(SystemExit):
            report.main([out, *more])
        assert "plan.nc holds a plan: give a run of langevin.simulate" in capsys.readouterr().err


TASK = ["--data", "digits", "--rotation", "20", "--pretrain-epochs", "2"]


def test_a_task_and_its_body_give_what_a_file_of_their_layer_gives(tmp_path, capsys):
    assert main([*TASK, *FEW, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    setting = Setting("digits", shift=Shift(rotation=20), epochs=2)
    task, last = setting.task(0), last_layer(setting.network(0))
    assert task.public is not None
    X = last.inputs(task.normalised(task.public))
    np.savez(tmp_path / "layer.npz", X=X, W=last.W, y=task.public.labels)
    assert main([str(tmp_path / "layer.npz"), *FEW, "--json", "--samples", "1097"]) == 0
    by_file = json.loads(capsys.readouterr().out)
    assert found["simulation"] == by_file["simulation"]
    assert found["samples"] == 1097
    # the private images play no part: those of another rotation give the same plan
    assert main([*TASK, "--rotation", "90", *FEW, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["simulation"] == found["simulation"]


def test_the_command_of_a_task_runs_as_printed_on_its_private_images(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([*TASK, "--seed", "3", *FEW]) == 0
    said = capsys.readouterr().out
    (line,) = (line for line in said.splitlines() if line.startswith("command"))
    words = shlex.split(line.partition("empirical.finetune ")[2])
    assert {*TASK, "--seed", "109.7"} <= {word.replace("20.0", "20") for word in words}
    assert "samples of this file" not in said
    assert finetune([*words, "--evaluations", "1", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert "1097 private images" in report["task"]


def test_a_body_without_a_last_layer_to_read_is_hedged(capsys):
    options = ["--body", "conv", "--widths", "8", "--heads", "zero", *FEW, "--json"]
    assert main(["--data", "digits", "--pretrain-epochs", "1", *options]) == 0
    said = json.loads(capsys.readouterr().out)
    assert any("full fine-tuning is guessed" in note for note in said["warnings"])
    assert set(said["simulation"]["worlds"]) == {"nothing hidden", "hidden directions"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give FILE or --data, got neither"),
        (["x.npz", "--data", "digits"], "give FILE or --data, got both"),
        (["x.npz", "--rotation", "20"], "--rotation has no effect with a file of features"),
        (["x.npz", "--body", "mlp"], "--body has no effect with a file of features"),
        (["--data", "fashion-mnist"], "must have a public part"),
        (["--data", "features.npz"], "must be images"),
        (["--data", "digit"], "--data must be one of"),
    ],
)
def test_a_task_is_asked_for_by_name(capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--epsilon", "1"])
    assert message in capsys.readouterr().err


def test_a_sweep_says_what_a_budget_buys(tmp_path, capsys):
    path, out, plot = write(tmp_path / "f.npz"), tmp_path / "sweep.nc", tmp_path / "sweep.png"
    few = [*FEW, "--no-theory", "--no-hedge", "--heads", "gaussian", "--sweep", "epsilon", ".5", "4"]
    assert main([path, *few, "--out", str(out), "--plot", str(plot)]) == 0
    said = capsys.readouterr().out.splitlines()
    first = next(place for place, line in enumerate(said) if line.startswith("sweep"))
    assert said[first].split()[:3] == ["sweep", "epsilon", "held-out"]
    assert [line.split()[0] for line in said[first + 1 : first + 6]] == [
        "0.5",
        "0.8409",
        "1.414",
        "2.378",
        "4",
    ]
    run = files.load(out)
    assert run.epsilon.values[[0, -1]].tolist() == [0.5, 4.0]
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_an_interrupted_command_is_repeated(features, tmp_path, capsys, monkeypatch):
    from empirical.planning.stand_in import StandIn

    keep = str(tmp_path / "plan.jsonl")
    given = [str(features), *FEW, "--no-theory", "--json"]
    assert main(given) == 0
    whole = json.loads(capsys.readouterr().out)
    run, calls = StandIn.run, []

    def stopped(self, *arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return run(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(StandIn, "run", stopped)
        assert main([*given, "--keep", keep]) == 130
    assert f"interrupted; finished runs are in {keep}: repeat the command" in capsys.readouterr().err
    assert main([*given, "--keep", keep]) == 0
    assert json.loads(capsys.readouterr().out)["simulation"] == whole["simulation"]


def test_the_same_seed_gives_the_same_plan(features, capsys):
    plans = []
    for seed in ("3", "3", "4"):
        assert main([str(features), *FEW, "--json", "--no-theory", "--seed", seed]) == 0
        plans.append(json.loads(capsys.readouterr().out)["simulation"]["loss"])
    assert plans[0] == plans[1]
    assert plans[0] != plans[2]


def test_a_delta_without_protection_is_reported(features, capsys):
    assert main([str(features), *FEW, "--delta", "0.1", "--no-theory"]) == 0
    assert "warning       delta should be below 1 / samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({}, ["--epsilon", "0"], "--epsilon must be positive, got 0.0"),
        ({}, ["--epsilon", "-1"], "--epsilon must be positive, got -1.0"),
        ({}, ["--epsilon", "nan"], "--epsilon must be finite, got nan"),
        ({}, ["--epsilon", "inf"], "--epsilon must be finite, got inf"),
        ({}, ["--delta", "0"], "--delta must be positive, got 0.0"),
        ({}, ["--delta", "1"], "--delta must be below 1, got 1"),
        ({}, ["--clip", "0"], "--clip must be positive, got 0.0"),
        ({}, ["--steps", "0"], "--steps must be at least 1, got 0"),
        ({}, ["--draws", "1"], "--draws must be at least 2, got 1"),
        ({}, ["--resolution", "-1"], "--resolution must be zero or positive, got -1.0"),
        ({}, ["--batch", "100"], "--batch must be at most samples=60, got 100"),
        ({}, ["--samples", "0"], "--samples must be at least 1, got 0"),
        ({}, ["--seed", "-1"], "--seed must be a seed, a whole number from 0"),
        ({}, ["--shares", "0", "1.5"], "--shares must lie in [0, 1], got 1.5"),
        ({}, ["--shares", "0.5"], "--shares must be two or more that differ by a step of 20, got [0.5]"),
        ({}, ["--heads", "gaussian", "gaussian"], "--heads must be one or more different ones"),
        ({}, ["--plan-epsilon", "1"], "--plan-epsilon must be below epsilon=1, of which it is a part, got 1"),
        ({}, ["--sweep", "delta", "1", "2"], "--sweep must be one of"),
        ({}, ["--sweep", "epsilon", "2", "1"], "--sweep 2 must be below high=1"),
        ({}, ["--sweep", "epsilon", "a", "1"], "--sweep must be a number, got 'a'"),
        (
            {"X": np.abs(DATA.X) * [1, 1, 0, 1, 1, 1]},
            [],
            "X must not hold constant columns, got 1 of 6, counted from 0: 2",
        ),
        ({"X_source": np.ones((3, 6))}, [], "X_source and y_source must be given together"),
        ({}, ["--plot", "plan.txt"], "--plot must end in .png, .pdf or .svg, got 'plan.txt'"),
        ({}, ["--plot", "/nowhere/plan.png"], "--plot must lie in an existing folder"),
        ({}, ["--out", "plan.csv"], "--out must end in .nc (netCDF) or .zarr, got 'plan.csv'"),
        ({"X": np.full((60, 6), np.nan)}, [], "X must be finite, got nan at index (0, 0)"),
        ({"X": np.ones(60)}, [], "X must have 2 dimension(s), got shape (60,)"),
        ({"X": np.ones((60, 6), complex)}, [], "X must be an array of real numbers"),
        ({"X": np.array([[None] * 6] * 60, object)}, [], "cannot be read"),
        ({"y": np.ones(60)}, [], "y must hold two or more classes, got 1: 1"),
        ({"y": np.ones(59)}, [], "y must hold two or more classes"),
        ({"y": np.arange(59) % 2}, [], "X and y must have the same length, got 60 and 59"),
        (
            {"y": np.arange(60) / 7},
            [],
            "y must hold two samples or more of each class, got 60 different",
        ),
        (
            {"y": np.where(np.arange(60) == 5, np.nan, 1.0)},
            [],
            "y must hold a label for each sample, got nan at index 5",
        ),
        ({"y": np.ones((60, 2))}, [], "y must be one row of numbers or text, got shape (60, 2)"),
        ({"y": np.arange(60) > 58}, [], "y must hold two samples or more of each class"),
        ({"W": np.ones((4, 5))}, [], "W must have as many columns as X, got 5 and 6"),
        ({"v": np.ones(5)}, [], "v must have the shape (6,), got (5,)"),
        ({"X_test": np.ones((3, 6))}, [], "X_test and y_test must be given together"),
        ({"X_test": np.ones((3, 5)), "y_test": DATA.y[:3]}, [], "X_test must have as many columns as X"),
        (
            {"X_test": np.ones((3, 6)), "y_test": [1, -1, 7]},
            [],
            "y_test must hold classes of y, -1, 1, got 7",
        ),
    ],
)
def test_bad_input_is_named_and_exits_with_2(tmp_path, capsys, arrays, arguments, message):
    path = tmp_path / "f.npz"
    np.savez(path, **{"X": np.abs(DATA.X), "y": DATA.y, **arrays})
    with pytest.raises(SystemExit) as ended:
        main([str(path), *FEW, *arguments])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_features_beyond_the_range_of_numbers_exit_with_1(tmp_path, capsys):
    path = write(tmp_path / "f.npz", X=1e40 * np.abs(DATA.X), y=np.arange(60) % 3)
    assert main([path, *FEW, "--no-theory"]) == 1
    assert "scale the features X" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file"),
        (b"", "cannot be read"),
        (b"PK\x03\x04 cut short", "cannot be read"),
    ],
)
def test_invalid_files(tmp_path, capsys, content, message):
    path = tmp_path / "f.npz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main([str(path), *FEW])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
