"""Feature vectors from files as tasks, and the plan whose command trains on them."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.datasets import load_wine

from bounds import plan as door
from empirical import Recipe, Rows, Setting, body, finetune, from_file, layer
from empirical.planning import figure, report
from empirical.planning.plan import plan_share
from empirical.studies.sweeps import FINETUNINGS
from empirical.train.fine_tuning import FineTuning
from langevin.store import files
from langevin.sweeps import Grid

LABEL = "the cultivar"


def wine() -> pd.DataFrame:
    """Wine in units of its deviations, with text labels."""
    data: Any = load_wine(as_frame=True)
    frame = (data.data - data.data.mean()) / data.data.std() / 13**0.5
    return frame.assign(**{LABEL: np.array(["Barolo", "Grignolino", "Barbera"])[data.target]})


FRAME = wine()
X, Y = FRAME.drop(columns=LABEL).to_numpy(), FRAME[LABEL].to_numpy(str)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("wine.npz", X=X, y=Y)
    FRAME.to_csv("wine.csv", index=False)
    FRAME.to_parquet("wine.parquet")
    return tmp_path


# --- the task ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["wine.npz", "wine.csv", "wine.parquet"])
def test_a_fifth_of_each_class_is_held_out(name):
    task = from_file(name, label="y" if name == "wine.npz" else LABEL, rng=1)
    assert task.train.classes == ("Barbera", "Barolo", "Grignolino")
    assert task.public is None
    both = np.concatenate([task.train.images, task.test.images]).reshape(178, 13)
    np.testing.assert_array_equal(np.unique(both, axis=0), np.unique(X.astype(np.float32), axis=0))
    names, counts = np.unique(Y, return_counts=True)
    for part, share in ((task.test, counts // 5), (task.train, counts - counts // 5)):
        assert part.counts.tolist() == share.tolist()
        rows = {x.tobytes(): y for x, y in zip(X.astype(np.float32), Y, strict=True)}
        assert [rows[x.tobytes()] for x in part.images] == [names[k] for k in part.labels]
    # of the seed, as other tasks are
    assert not np.array_equal(from_file("wine.npz", rng=2).test.images, task.test.images)


def test_a_test_part_of_the_file_is_kept():
    np.savez("split.npz", X=X[10:], y=Y[10:], X_test=X[:10], y_test=Y[:10])
    setting = Setting("split.npz", body="layer")
    task = setting.task(0)
    assert setting.task(5) is task
    np.testing.assert_array_equal(task.test.images.reshape(10, 13), X[:10].astype(np.float32))
    # which tuning does not see
    tuning = setting.task(5, tuning=True)
    assert len(tuning.train) + len(tuning.test) == len(task.train) == 168


def test_features_reach_the_body_as_they_are():
    np.savez("large.npz", X=1000 * X, y=Y)
    task = from_file("large.npz")
    assert isinstance(task.train, Rows)
    assert isinstance(task.train.subsample(3).only(["Barolo"]), Rows)
    tuning = FineTuning(task, layer(task.train.shape), Recipe("lp", steps=1, batch=10, delta=1e-3), rng=0)
    np.testing.assert_array_equal(tuning._network.data["train"][0], task.train.images)
    assert np.abs(task.train.images).max() > 100


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.full(178, "a")}, "y must hold two or more classes, got 1: a"),
        ({"y": ["a"] + ["b"] * 177}, "y must hold two samples or more of each class, got 1 of class 'a'"),
        ({"y": Y[1:]}, "X and y must have the same length, got 178 and 177"),
        ({"X": 1e300 * X}, "images must be finite in single precision"),
        ({"X_test": X}, "must hold X_test and y_test together"),
        ({"X_test": X[:, :2], "y_test": Y}, "test must have images of the shape of train's"),
        ({"X_test": X[:1], "y_test": ["Chianti"]}, "y_test must hold classes of y, Barbera, Barolo, Grigno"),
    ],
)  # fmt: skip
def test_files_that_make_no_task_are_refused(arrays, message):
    np.savez("bad.npz", **{"X": X, "y": Y, **arrays})
    with pytest.raises(ValueError, match=message):
        from_file("bad.npz")


# --- the body ----------------------------------------------------------------------------------


def test_the_layer_is_that_of_the_plan():
    x, W = torch.tensor([[1.0, -2.0]]).reshape(1, 1, 1, 2), np.array([[1.0, 1.0], [0.5, 0.0], [3.0, -1.0]])
    before = torch.random.get_rng_state()
    identity, given = layer((1, 1, 2)), layer((1, 1, 2), W)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert identity(x).tolist() == [[1.0, -2.0]]
    assert layer((1, 1, 2), activation="relu")(x).tolist() == [[1.0, 0.0]]
    assert given(x).tolist() == [[0.0, 0.5, 5.0]]
    assert given.features == 3
    assert layer((1, 1, 2), W, activation="linear")(x).tolist() == [[-1.0, 0.5, 5.0]]
    assert [tuple(p.shape) for p in body("layer", (1, 1, 2), activation="relu").parameters()] == [(2, 2)]
    with pytest.raises(ValueError, match="W must have a column for each of the 3 features, got 2"):
        layer((1, 1, 3), W)
    with pytest.raises(MemoryError, match="a layer of 10000000 features needs"):
        layer((1, 1, 10**7))


def test_a_layer_of_the_file_is_where_training_starts():
    W = np.random.default_rng(0).standard_normal((5, 13))
    np.savez("layer.npz", X=X, y=Y, W=W)
    made = Setting("layer.npz", body="layer").network(0)
    np.testing.assert_array_equal(next(made.parameters()).detach(), W.astype(np.float32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            dict(data="wine.txt"),
            r"data must be one of 'digits', .* or a file ending in .npz, .csv or .parquet",
        ),
        (dict(data="wine.csv", body="conv"), "body must be 'layer' or 'mlp'"),
        (dict(data="digits", body="layer"), "body must be another than 'layer'"),
        (dict(data="digits", label="kind"), "label must be left out"),
        (dict(data="wine.csv", size=8), "size must be left out"),
        (dict(data="wine.csv", folder="x"), "folder must be left out"),
        (
            dict(data="wine.csv", public_classes=("a",)),
            "public_classes must be left out .* has no public part",
        ),
        (dict(data="wine.csv", pretrain="supervised"), "pretrain must be 'none' without a public part"),
    ],
)
def test_settings_that_do_not_fit_a_file_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Setting(**options)


def test_a_sweep_names_its_file(folder):
    grid = Grid(FINETUNINGS, {"lr": [0.1, 1.0]}, {"data": "wine.csv", "label": LABEL, "body": "layer"})
    values = grid.values((0,))
    assert FINETUNINGS.files(values) == ["wine.csv"]
    assert FINETUNINGS.located(values, folder / "out.zarr")["data"] == str(folder / "wine.csv")


# --- ten classes of text, end to end ---------------------------------------------------------

GARMENTS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Boot",
)


def garments(name: str) -> list[str]:
    """Write a file of features, well apart, with ten text labels; return the options that read it."""
    random = np.random.default_rng(0)
    labels = np.arange(200) % 10
    rows = np.eye(12)[labels] + 0.05 * random.normal(size=(200, 12))
    named = np.array(GARMENTS)[labels]
    if name.endswith(".npz"):
        np.savez(name, X=rows[:150], y=named[:150], X_test=rows[150:], y_test=named[150:])
        return ["--data", name]
    table = pd.DataFrame(rows, columns=[f"feature {k}" for k in range(12)]).assign(garment=named)
    (table.to_csv if name.endswith(".csv") else table.to_parquet)(name, index=False)
    return ["--data", name, "--label", "garment"]


@pytest.mark.parametrize("name", ["g.npz", "g.csv", "g.parquet"])
@pytest.mark.parametrize("body", ["layer", "mlp"])
def test_a_file_of_ten_classes_trains_and_is_watched(name, body, capsys):
    trained = ["--method", "lp-fft", "--steps", "40", "--batch", "50", "--lr", "2", "--epsilon", "20"]
    arguments = [*garments(name), "--body", body, *trained, "--clip", "1", "--head", "zero", "--features"]
    assert finetune.main([*arguments, "--json", "--out", "run.nc"]) == 0
    said = json.loads(capsys.readouterr().out)
    count = "150 private feature vectors to train on, 50" if name == "g.npz" else "160 private"
    assert count in said["task"]
    assert said["classes"].split(", ") == sorted(GARMENTS)
    # chance is a tenth
    assert said["test accuracy"]["end"] > 0.6
    run = files.load("run.nc")
    assert run.cka.values[0] == pytest.approx(1)
    baselines = said["features"]["knn_accuracy of"]
    # the identity has no random counterpart
    assert ("random" in baselines) == (body == "mlp")
    assert baselines["pixels"] == 1


def test_labels_that_say_nothing_are_not_learnt(capsys):
    random = np.random.default_rng(1)
    rows, labels = random.normal(size=(300, 12)), np.array(GARMENTS)[random.integers(10, size=300)]
    np.savez("noise.npz", X=rows, y=labels)
    arguments = ["--data", "noise.npz", "--method", "lp", "--steps", "40", "--batch", "50", "--lr", "2"]
    assert finetune.main([*arguments, "--json", "--out", "run.nc"]) == 0
    assert json.loads(capsys.readouterr().out)["test accuracy"]["end"] < 0.35


def test_a_grid_on_a_file_watches_features(capsys):
    grid = [
        "--methods",
        "lp",
        "fft",
        "--epsilons",
        "2",
        "--seeds",
        "2",
        "--trials",
        "2",
        "--tuning-seeds",
        "1",
    ]
    arguments = [*garments("g.npz"), "--steps", "4", "--batch", "50", *grid, "--features"]
    assert finetune.main([*arguments, "--json", "--quiet", "--out", "grid.nc", "--cells", "cells.jsonl"]) == 0
    found = files.load("grid.nc")
    assert {"knn_accuracy", "knn_pixels", "knn_pretrained"} <= set(found.data_vars)
    assert "knn_random" not in found
    assert found.attrs["left"] == 0


# --- a plan, and its command -------------------------------------------------------------------

PLAN = ["--epsilon", "2", "--delta", "1e-3", "--steps", "12", "--draws", "2", "--no-theory"]


def run(command: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """What comes of a command of fine-tuning."""
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "empirical.finetune"]
    assert finetune.main([*words[3:], "--json", "--out", "run.nc"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "name", ["wine.npz", pytest.param("wine.csv", marks=pytest.mark.slow), "wine.parquet"]
)
def test_the_command_of_a_plan_runs_on_its_file(name, capsys):
    label = [] if name == "wine.npz" else ["--label", LABEL]
    assert door.main([name, *label, *PLAN, "--shares", "0.25", "0.5"]) == 0
    out = capsys.readouterr().out
    (command,) = (line.split(maxsplit=1)[1] for line in out.splitlines() if line.startswith("command "))
    said = run(command, capsys)
    assert "144 private feature vectors to train on, 34 to test" in said["task"]
    assert said["classes"] == "Barbera, Barolo, Grignolino"
    assert said["method"].startswith("lp: ")
    # the mechanism of the plan, on the samples that are left: the same sampling rate and noise
    history = json.loads(files.load("run.nc").attrs["privacy"])
    plan = plan_share(X, Y, epsilon=2.0, delta=1e-3, steps=12, draws=2, theory=False, shares=[0.25, 0.5])
    assert history["samples"] == plan.trained == 144
    for ours, planned in zip(history["mechanisms"], plan.history.mechanisms, strict=True):
        assert ours["sample_rate"] == pytest.approx(planned.sample_rate)
        assert ours["noise_multiplier"] == pytest.approx(planned.noise_multiplier, rel=1e-3)
        assert ours["steps"] == planned.steps


@pytest.mark.parametrize(
    ("options", "samples"),
    [
        (["--shares", "0", "0.5", "--batch", "178"], 178),
        (["--shares", "0.5", "1", "--samples", "5000", "--batch", "500"], 5000),
    ],
)
def test_commands_of_full_batches_and_of_many_samples_run(options, samples, capsys):
    np.savez("two words.npz", X=np.abs(X), y=Y != "Barolo", W=np.eye(13)[:5])
    assert door.main(["two words.npz", *PLAN, *options, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    said = run(plan["command"], capsys)
    assert said["classes"] == "False, True"
    assert "starting as the file's W" in said["body"]
    assert (plan["samples"], plan["classes"]) == (samples, ["False", "True"])


HOW: dict[str, Any] = dict(epsilon=1.0, delta=1e-3, steps=10, draws=2, theory=False)


def test_the_report_says_how_the_command_differs_from_the_plan():
    found = plan_share(X, Y, **HOW, shares=[0.0, 1.0])
    said = report.text(found, "command")
    assert "trains on 144 samples of this file, in batches of the plan's sampling rate" in said
    assert "for 178 private samples take --batch 17.8 and their file" in said
    # where the file is split already, there is nothing to say
    assert "samples of this file" not in report.text(replace(found, trained=178), "command")


def test_the_verdict_comes_first_and_the_rest_when_asked(capsys):
    given = ["wine.csv", "--label", LABEL, *PLAN, "--shares", "0", "1"]
    assert door.main(given) == 0
    short = capsys.readouterr().out
    assert [line.split()[0] for line in short.splitlines()[:3]] == ["recommended", "expected", "command"]
    assert "classes       3: Barbera, Barolo, Grignolino" in short
    assert "a plan read off private data is itself a release" in short
    assert "of the held-out samples" in short
    assert door.main([*given, "--verbose"]) == 0
    verbose = capsys.readouterr().out
    assert verbose.splitlines()[:3] == short.splitlines()[:3]
    for only in ("lost to the best", "noise multiplier", "mean regret  "):
        assert only in verbose
        assert only not in short


def test_frames_and_series_plan_as_arrays():
    how = {**HOW, "shares": [0.0, 1.0]}
    plain = plan_share(X, Y.tolist(), **how)
    for labels in (FRAME[LABEL], FRAME[LABEL].astype("category"), pd.Index(Y)):
        found = plan_share(FRAME.drop(columns=LABEL), labels, **how)
        assert found.classes == ("Barbera", "Barolo", "Grignolino")
        assert (found.loss == plain.loss).all()
    missing: Any = ["a", "b", None, "a"]
    with pytest.raises(ValueError, match="y must hold a label for each sample, got None at index 2"):
        plan_share(X[:4], missing, **how)


def test_nothing_hides_the_recommended_share(tmp_path):
    from matplotlib.image import imread

    figure.draw(plan_share(X, Y, **HOW, shares=[0.0, 1.0]), Path("plan.png"))
    pixels = np.rint(255 * imread("plan.png")[:, :, :3]).astype(int)
    colours = [tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (figure._CHOSEN, figure._GOOD)]
    half = pixels.shape[1] // 2
    for colour, halves in ((colours[0], 2), (colours[1], 1)):
        for side in range(halves):
            seen = (pixels[:, side * half : (side + 1) * half] == colour).all(axis=2)
            assert seen.sum() > 200
            # at the point, and in the legend below the left half
            rows = np.flatnonzero(seen.any(axis=1))
            assert (np.diff(rows) > 1).any() == (side == 0)
