"""The command, end to end."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from langevin.store import files
from tests.langevin.commands import QUICK, SMALL, command, here


def test_it_runs_reports_saves_and_draws(tmp_path):
    done = command(*SMALL, "--plot", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for word in ("loss", "Theorem 2.2", "misaligned at the start", "path steps/s", "saved"):
        assert word in done.stdout
    (saved,) = (tmp_path / "runs").glob("*.nc")
    (plot,) = (tmp_path / "runs").glob("*.png")
    run = files.load(saved)
    assert np.isfinite(run.loss).all()
    assert json.loads(run.attrs["command"])["width"] == 12
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--data", "teacher", "--activation", "linear"],
        ["--method", "lp", "--head", "zero", "--loss", "square"],
        ["--method", "fft", "--head", "prototype", "--clip", "none", "--precision", "single"],
        ["--clipping", "normalised", "--reduce", "none", "--observables", "alignment"],
        ["--lp-share", "0.33", "--out", "deep/er/run.zarr", "--threads", "1"],
        ["--lp-share", "0", "--sigma", "0", "--paths", "1"],
        [
            "--activation",
            "linear",
            "--features",
            "collapsed",
            "--observables",
            "misaligned",
            "distorted",
            "dead",
        ],
        ["--activation", "linear", "--reduce", "gram", "--plot"],
        ["--method", "lp", "--reduce", "kernel", "--observables", "test_accuracy", "--plot"],
        ["--width", "1000000000", "--activation", "linear", "--sigma", "1e-6", "--head", "prototype"],
        ["--width", "1000000000", "--activation", "linear", "--sigma", "1e-6", "--method", "lp"],
        ["--width", "1000000000", "--activation", "linear", "--sigma", "1e-6", "--data", "teacher"],
    ],
    ids=" ".join,
)
def test_options(tmp_path, arguments):
    done = here(*SMALL, *arguments, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout, parse_constant=pytest.fail)
    assert report["loss"]["end"]["mean"] > 0
    assert report["failure"] is None
    run = files.load(tmp_path / report["saved"])
    assert report["loss"]["end"]["mean"] == pytest.approx(float(run.loss[:, -1].mean()))


def test_digits(tmp_path):
    chosen = ["--width", "12", "--data", "digits", "--classes", "1", "7"]
    done = here(*QUICK, *chosen, "--observables", "knn_accuracy", "test_accuracy", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout, parse_constant=pytest.fail)
    assert report["saved"].startswith("runs/lp-fft-digits-w12-")
    assert report["failure"] is None


def report_of(*arguments: str | Path, folder: Path) -> dict[str, Any]:
    """The report of the command, in this process."""
    done = here(*arguments, "--json", "--quiet", cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout, parse_constant=pytest.fail)


SEVERAL = ["--width", "12", "--time", "0.1", "--dt", "0.01", "--paths", "3"]


def test_three_digits_in_batches(tmp_path):
    chosen = ["--data", "digits", "--classes", "4", "1", "7", "--loss", "softmax", "--sample-rate", "0.2"]
    observed = ["test_accuracy", "class_accuracy", "test_class_accuracy", "confusion", "cone_distance"]
    chosen += ["--observables", *observed, "--plot", "run.png"]
    report = report_of(*SEVERAL, *chosen, folder=tmp_path)
    assert report["problem"].split("; simulated")[0].endswith("softmax loss, 3 classes: 4, 1, 7")
    assert "sample rate 0.2" in report["schedule"]
    said = report["assumptions"]
    assert said[0].startswith("3.1' orthogonal separability: fails")
    assert said[1].startswith("3.2' collapsed features: fails")
    assert said[2].startswith("spread within a class: 4: ")
    assert report["privacy"]["accountant"] == "PLD of dp-accounting"
    assert report["privacy"]["epsilon"] > 0
    assert (tmp_path / "run.png").exists()
    run = files.load(tmp_path / report["saved"])
    assert report["accuracy"]["mean"] == pytest.approx(float(run.accuracy[:, -1].mean()))
    assert report["neurons"]["misaligned at the start"] == round(12 * float(run.misaligned[0, 0]))
    means = run.isel(time=-1).mean("path")
    for name in ("class_accuracy", "test_class_accuracy"):
        said = {c: value["mean"] for c, value in report[name.replace("_", " ")].items()}
        assert said == pytest.approx(dict(zip("417", means[name].values, strict=True)))
    assert list(report["confusion"]) == ["4", "1", "7"]
    for c, counts in report["confusion"].items():
        row = means.confusion.sel({"class": c}).values
        assert [count["mean"] for count in counts.values()] == pytest.approx(row)


def test_classes_are_reported_in_tables(tmp_path):
    chosen = ["--samples", "9", "--dim", "4", "--classes", "3", "--loss", "softmax", "--sigma", "0"]
    observed = ["class_accuracy", "test_class_accuracy", "confusion"]
    arguments = [*SEVERAL, *chosen, "--time", "2", "--method", "fft", "--observables", *observed]
    said = here(*arguments, "--quiet", cwd=tmp_path).stdout.splitlines()
    first = next(i for i, line in enumerate(said) if line.startswith("by class"))
    table = [line.split() for line in said[first : first + 8]]
    assert table[0] == ["by", "class", "class", "accuracy", "test", "accuracy"]
    assert [row[0] for row in table[1:4]] == ["0", "1", "2"]
    assert table[4] == ["confusion", "class", "\\", "predicted", "0", "1", "2"]
    assert [sum(map(float, row[1:])) for row in table[5:]] == [3, 3, 3]


@pytest.mark.parametrize("head", ["gaussian", "zero", "prototype"])
def test_classes_of_separable_data(tmp_path, head):
    chosen = ["--samples", "9", "--dim", "4", "--classes", "4", "--loss", "ovr", "--head", head]
    report = report_of(*SEVERAL, *chosen, "--method", "lp", "--clipping", "column", folder=tmp_path)
    assert "ovr loss, 4 classes: 0, 1, 2, 3" in report["problem"]


def test_text_labels_of_three_classes(tmp_path):
    rng = np.random.default_rng(0)
    names = ["dog", "cat", "bird"]
    rows = [f"{a:.4f},{b:.4f},{names[i % 3]}" for i, (a, b) in enumerate(rng.standard_normal((12, 2)))]
    (tmp_path / "animals.csv").write_text("\n".join(["length,weight,kind", *rows]) + "\n")
    chosen = ["--data", "animals.csv", "--label", "kind"]
    report = report_of(*SEVERAL, *chosen, "--loss", "softmax", folder=tmp_path)
    assert "softmax loss, 3 classes: bird, cat, dog" in report["problem"]
    assert report["file"]["classes"] == {"0": "bird", "1": "cat", "2": "dog"}
    done = command(*SEVERAL, *chosen, cwd=tmp_path)
    assert done.returncode == 2
    assert "must hold two classes, got 3: 'bird', 'cat', 'dog'; take loss='softmax' or 'ovr'" in done.stderr


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_noise_for_a_budget(tmp_path, rate):
    """The noise that a run records spends what was asked for, and 5 % more or less of it does not."""
    from empirical import History, Mechanism, account

    asked = ["--epsilon", "1", "--delta", "1e-4", "--sample-rate", str(rate), "--samples", "40", "--dim", "3"]
    report = report_of(*SEVERAL, *asked, folder=tmp_path)
    sigma = json.loads(files.load(tmp_path / report["saved"]).attrs["command"])["sigma"]
    assert report["privacy"]["sigma"] == sigma
    # sigma = nu C sqrt(dt) / (q sqrt(2))
    multiplier = sigma * rate * (2 / 0.01) ** 0.5
    assert report["privacy"]["noise multiplier"] == pytest.approx(multiplier)

    def spent(nu: float) -> float:
        return account(History([Mechanism("all", rate, 10, nu)], 1e-4)).epsilon

    # PRV adds its error, 1e-3
    assert 0.99 < spent(multiplier) < 1.002
    assert spent(1.05 * multiplier) < 0.99
    assert spent(multiplier / 1.05) > 1.002
    assert report["privacy"]["epsilon"] == pytest.approx(1, abs=0.01)


def test_a_missing_accountant_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    batches = ["--samples", "40", "--dim", "3", "--sample-rate", "0.1"]
    said = report_of(*SEVERAL, *batches, folder=tmp_path)["privacy"]["none"]
    assert "batches need an accountant, and dp_accounting is not installed" in said


def test_two_classes_have_the_losses_that_they_always_had(tmp_path):
    report = report_of(*SMALL, "--seed", "3", folder=tmp_path)
    loss = files.load(tmp_path / report["saved"]).loss[:, -1].values
    expected = [4.2344031717407065, 4.108345613563653, 4.894159785225875, 4.691476046242381]
    # other processors round otherwise
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_a_users_file(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((12, 3))
    W, v = rng.standard_normal((5, 3)), rng.standard_normal(5)
    np.savez(tmp_path / "mine.npz", X=X, y=np.sign(X[:, 0]), W=W, v=v)
    done = here(*QUICK, "--data", "mine.npz", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["saved"].startswith("runs/lp-fft-mine-sigma0.5-")
    done = here(*QUICK, "--data", "mine.npz", "--width", "5", cwd=tmp_path)
    assert "--width 5 has no effect with the first layer of the file; remove it" in done.stderr
    assert report["network"].startswith("width 5")
    assert report["loss"]["start"] == pytest.approx(
        np.logaddexp(0, -np.sign(X[:, 0]) * (np.maximum(X @ W.T, 0) @ v)).sum()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "-1"], "--clip must be positive"),
        (["--clip", "much"], "argument --clip: must be a number or none, got 'much'"),
        (["--sigma", "-1"], "--sigma must be zero or positive, got -1.0"),
        (["--lp-share", "1.5"], r"--lp-share must lie in [0, 1], got 1.5"),
        (["--width", "0"], "--width must be at least 1, got 0"),
        (["--paths", "two"], "invalid int value: 'two'"),
        (["--lp-share", "0.001"], "--lp-share must leave a step to each phase"),
        (["--seed", "-1"], "--seed must be a seed, a whole number from 0"),
        (["--dt", "9"], "--dt must be at most the time, got 9 for a time of 0.1"),
        (
            ["--data", "nowhere.npz"],
            "--data must be a file ending in .npz, .csv or .parquet, but there is no",
        ),
        (
            ["--data", "mnist"],
            "--data must be separable, ring, teacher, digits, glyphs or a file ending in .npz, .csv",
        ),
        (["--data", "glyphs", "--classes", "3", "8", "9"], "--classes must be one number with data 'glyphs'"),
        (
            ["--data", "digits", "--classes", "3"],
            "--classes must be two different digits from 0 to 9, or more",
        ),
        (["--classes", "1"], "--classes must be at least 2, got 1"),
        (["--classes", "0", "1", "2"], "--classes must be one number with data 'separable', that of its"),
        (["--classes", "3"], "--loss must be 'softmax' or 'ovr' for 3 classes, got 'logistic'"),
        (["--classes", "9", "--loss", "ovr"], "--samples must be at least classes=9, got 8"),
        (["--sample-rate", "0"], "--sample-rate must lie in (0, 1], got 0"),
        (["--sample-rate", "1.5"], "--sample-rate must lie in (0, 1], got 1.5"),
        (["--sample-rate", "0.1"], "--sample-rate must be at least 1/n = 0.125 for 8 samples, got 0.1"),
        (
            ["--classes", "3", "--loss", "ovr", "--observables", "head_alignment"],
            "'head_alignment' needs one output, got K = 3: take 'cone_distance'",
        ),
        (
            ["--clipping", "margin", "--loss", "softmax"],
            "--clipping must be 'flat' or 'normalised' with method 'lp-fft', got 'margin', which is defined "
            "for linear probing alone: take method 'lp'",
        ),
        (
            ["--clipping", "margin", "--method", "lp"],
            "--clipping must be 'flat' or 'normalised' with loss 'logistic', got 'margin': take loss "
            "'softmax'",
        ),
        (["--epsilon", "1", "--clip", "none"], "--clip must be positive with --epsilon 1, got none"),
        (
            ["--epsilon", "1", "--sigma", "2"],
            "--sigma must be left out with --epsilon 1, which determines it",
        ),
        (["--epsilon", "0"], "--epsilon must be positive, got 0"),
        (["--classes", "1", "7"], "--classes (1, 7) has no effect with data 'separable'; remove it"),
        (["--data", "digits", "--classes", "3", "3"], "--classes must be two different digits"),
        (["--spread", "3"], "--spread must lie in"),
        (["--observables", "speed"], "--observables must be among"),
        (["--out", "run.csv"], "--out must end in .nc (netCDF) or .zarr, got 'run.csv'"),
        (["--out", "/proc/nowhere/run.nc"], "--out must be writable"),
        (["--plot", "figure.txt"], "--plot must end in"),
        (["--resume"], "--resume needs an unfinished run"),
        (["--paths", "10000000000"], "GiB are free"),
        (["--width", "1000000000000"], "--width 1000000000000 with single neurons needs"),
        (["--width", "10000000000000", "--activation", "linear"], "--width must be at most 1e+12"),
        (["--reduce", "gram"], "--reduce must apply to the run, but 'gram' needs a linear net"),
        (["--reduce", "kernel"], "--reduce must apply to the run, but 'kernel' needs a schedule of linear"),
        (["--data", "digits"], "--samples 8 has no effect with data 'digits'; remove it"),
        (
            ["--method", "lp", "--lp-share", "0.5"],
            "--lp-share 0.5 has no effect with method 'lp'; remove it",
        ),
        (["--data", "digits", "--features", "gaussian"], "--features must be left out with data="),
        (["--device", "gpu"], "--device must be"),
        (["--tiems", "3"], "unrecognized arguments: --tiems"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(tmp_path, arguments, message):
    done = here(*SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_diverged_run_is_saved_and_exits_with_1(tmp_path):
    arguments = [
        "--clip",
        "none",
        "--loss",
        "square",
        "--dt",
        "0.05",
        "--time",
        "50",
        "--sigma",
        "9",
        "--out",
        "r.nc",
    ]
    done = here(*SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "diverged" in done.stderr
    assert "at step" in done.stderr
    assert "Take a smaller dt than 0.05" in done.stderr
    assert "not finite" in done.stdout
    loss = files.load(tmp_path / "r.nc").loss
    assert np.isfinite(loss[:, 0]).all()
    assert np.isnan(loss[:, -1]).any()


@pytest.mark.parametrize(
    ("arguments", "status", "said", "unsaid"),
    [
        (["--head-scale", "1e160"], 1, ["3 of 3 paths diverged", "not finite at the start"], "Traceback"),
        (["--head-scale", "1e160", "--activation", "linear"], 1, ["diverged", "not finite"], "Traceback"),
        (["--head-scale", "1e154", "--data", "teacher"], 1, ["diverged", "e+307 at the start"], "Traceback"),
        (["--head-scale", "1e308"], 2, ["--head-scale must be smaller, got 1e+308"], "Traceback"),
        (["--data", "teacher", "--features", "collapsed"], 2, ["--features must be 'gaussian'"], "y must"),
        (["--samples", "2"], 0, ["none to compare within, 0.0% across"], "nan"),
        (["--data", "teacher"], 0, ["Theorem 2.2", "epsilon"], "does not apply"),
        (
            ["--data", "teacher", "--clip", "none", "--activation", "linear"],
            0,
            ["privacy            does not apply: no clipping\n", "does not apply: no clipping: Theorem 2.2"],
            "without limit",
        ),
    ],
)
def test_extremes_are_reported(tmp_path, arguments, status, said, unsaid):
    base = ["--width", "16", "--samples", "8", "--dim", "3", "--time", ".05", "--dt", ".005", "--paths", "3"]
    done = here(*base, *arguments, "--plot", "run.png", "--out", "run.nc", cwd=tmp_path)
    printed = done.stdout + done.stderr
    assert done.returncode == status, printed
    assert all(words in printed for words in said), printed
    assert unsaid not in printed


def test_a_diverging_zeroth_order_path_is_saved_too(tmp_path):
    arguments = ["--clip", "none", "--loss", "square", "--dt", "5", "--time", "200", "--out", "r.nc"]
    done = here(*SMALL, *arguments, cwd=tmp_path)
    assert done.returncode == 1
    assert "take dt <=" in done.stderr
    assert np.isfinite(files.load(tmp_path / "r.nc").loss[:, 0]).all()
