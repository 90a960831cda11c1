"""The command, end to end."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import empirical
from empirical import finetune
from empirical.train.fine_tuning import FineTuning
from langevin.store import errors, files
from tests.helpers import execute

SMALL = ["--steps", "6", "--widths", "8", "--pretrain-epochs", "1", "--quiet"]
GRID = [*SMALL, "--methods", "lp", "fft", "lp-fft", "--shares", "0.5", "--seeds", "2", "--trials", "2"]
GRID += ["--tuning-seeds", "1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as raised:
        finetune.main(list(arguments))
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


# ---- one run


@pytest.mark.parametrize(
    "method",
    ["lp-fft", "lora", "sparse", *(pytest.param(m, marks=pytest.mark.slow) for m in ("lp", "fft", "bitfit"))],
)
def test_it_runs_reports_and_saves(folder: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    assert finetune.main([*SMALL, "--method", method, "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    said = json.loads(captured.out)
    (saved,) = (folder / "runs").glob("*.nc")
    assert said["saved"] == str(saved.relative_to(folder))
    run = files.load(saved)
    assert said["test accuracy"]["end"] == pytest.approx(run.test_accuracy.values[-1], abs=1e-4)
    assert json.loads(run.attrs["command"])["method"] == method
    spent = float(said["privacy"][0].split()[1])
    assert 0.9 < spent <= 1


def test_the_report_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([*SMALL, "--features", "--out", "run.nc"]) == 0
    out = capsys.readouterr().out
    for words in (
        "1097 private images to train on, 300 to test, 400 public",
        "rotation 20 degrees",
        "over the public part",
        "pre-trained on the public part (supervised)",
        "lp: 3 steps at learning rate 1; then lp-fft: 3 steps at learning rate 0.25",
        "largest class:",
        "knn_accuracy of: pixels",
        "epsilon 0.9",
        "neighbours: add-remove",
        "run.nc",
    ):
        assert words in out
    run = files.load("run.nc")
    assert {"cka", "nc1", "test_accuracy"} <= set(run.data_vars)


def test_the_same_seed_gives_the_same_run_and_another_another() -> None:
    runs = []
    for seed in ("0", "0", "1"):
        assert finetune.main([*SMALL, "--seed", seed, "--out", "run.nc"]) == 0
        runs.append(files.load("run.nc"))
    assert runs[0].equals(runs[1])
    assert not runs[0].equals(runs[2])


def test_without_noise_or_clipping(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([*SMALL, "--epsilon", "inf", "--clip", "none", "--method", "fft"]) == 0
    assert "epsilon inf" in capsys.readouterr().out


def test_a_folder_without_a_public_part_says_what_is_done(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(10):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    task = ["--data", "folder", "--data-folder", "images", "--size", "8", "--body", "mlp"]
    assert finetune.main([*task, "--steps", "2", "--batch", "4", "--epsilon", "inf"]) == 0
    out = capsys.readouterr().out
    assert "2 x - 1" in out
    assert "NOT pre-trained" in out


def test_a_diverged_run_is_saved_and_exits_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    wild = ["--epsilon", "inf", "--clip", "none", "--method", "fft", "--lr", "1e30"]
    assert finetune.main([*SMALL, *wild, "--out", "run.nc"]) == 1
    captured = capsys.readouterr()
    assert "no longer finite" in captured.err
    assert "run.nc" in captured.out
    assert np.isfinite(files.load("run.nc").test_accuracy[0])


def test_a_full_disk_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = files.save

    def full(run: Any, path: Path) -> Path:
        if path.name == "run.nc" and path.parent.name == "here":
            raise errors.StoreError("here/run.nc could not be written: no space left")
        return save(run, path)

    monkeypatch.setattr(files, "save", full)
    assert finetune.main([*SMALL, "--out", "here/run.nc"]) == 1
    kept = capsys.readouterr().err.split("kept in ")[1].strip()
    assert np.isfinite(files.load(kept).test_accuracy).all()


def test_an_interrupted_run_goes_on_to_the_same_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = [*SMALL, "--evaluations", "3", "--checkpoint", "run.ckpt"]
    step = FineTuning._step

    def interrupted(self: FineTuning, number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt
        step(self, number)

    with monkeypatch.context() as patched:
        patched.setattr(FineTuning, "_step", interrupted)
        assert finetune.main([*saved, "--out", "run.nc"]) == 130
        assert "--resume" in capsys.readouterr().err
        assert finetune.main(SMALL) == 130
        assert "nothing is kept" in capsys.readouterr().err
    assert "already exists: resume it" in refused(capsys, *saved)
    assert finetune.main([*saved, "--resume", "--out", "run.nc"]) == 0
    assert finetune.main([*SMALL, "--evaluations", "3", "--out", "whole.nc"]) == 0
    assert files.load("run.nc").equals(files.load("whole.nc"))


# ---- grids


def test_a_grid_is_tuned_compared_and_saved(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([*GRID, "--epsilons", "1", "inf", "--out", "grid.nc"]) == 0
    out = capsys.readouterr().out
    for words in ("epsilon inf", "lp-fft 0.5", "less that of lp ", "less that of fft ", "best lp share"):
        assert words in out
    run = files.load("grid.nc")
    assert run.test_accuracy.dims == ("arm", "epsilon", "seed")
    assert np.isfinite(run.test_accuracy).all()
    assert (run.spent.sel(epsilon=1) <= 1).all()
    assert finetune.main([*GRID, "--epsilons", "1", "inf", "--out", "again.nc", "--json"]) == 0
    said = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert len(said["results"]) == 6
    assert files.load("again.nc").equals(run)


def test_one_share_beside_another_method_has_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """Two arms, of which one alone lies between probing and fine-tuning."""
    grid = ["--methods", "lp-fft", "bitfit", "--shares", "0.5", "--seeds", "1", "--trials", "1"]
    assert finetune.main([*SMALL, *grid, "--tuning-seeds", "1"]) == 0
    assert "bitfit" in capsys.readouterr().out


def test_a_grid_goes_on_after_a_time_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([*GRID, "--time-limit", "1e-9", "--out", "grid.nc"]) == 0
    assert "12 of 12 cells: repeat the command to resume" in capsys.readouterr().out
    assert finetune.main([*GRID, "--out", "grid.nc"]) == 0
    assert "repeat the command" not in capsys.readouterr().out


def test_failed_cells_exit_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from empirical.studies import grid

    def failing(*_: Any) -> dict[str, float]:
        raise RuntimeError("no luck")

    monkeypatch.setattr(grid, "compute_cell", failing)
    assert finetune.main(GRID) == 1
    assert "6 of 12 cells failed" in capsys.readouterr().err


def test_an_interrupted_grid_says_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from empirical.studies import grid

    def interrupted(*_: Any) -> dict[str, float]:
        raise KeyboardInterrupt

    monkeypatch.setattr(grid, "compute_cell", interrupted)
    assert finetune.main(GRID) == 130
    assert "repeat the command to resume" in capsys.readouterr().err


# ---- wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "--lr must be positive or None, got -1.0"),
        (["--epsilon", "0"], "--epsilon must be positive"),
        (["--delta", "2"], "--delta must be below 1"),
        (["--clip", "much"], "argument --clip: must be a number or none, got 'much'"),
        (["--clip", "none"], "--clip must be positive with epsilon=1"),
        (["--lp-share", "1.5"], "--lp-share must lie in [0, 1]"),
        (["--lp-share", "0.001"], "--lp-share must leave a step"),
        (["--method", "fft", "--lp-share", "0.5"], "--lp-share must be 0 for 'fft'"),
        (["--batch", "9999"], "--batch must be at most samples=1097"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--gain", "3"], "--gain * x + offset must stay in [0, 1]"),
        (["--widths", "0"], "--widths must be at least 1"),
        (["--body", "resnet"], "--body must be 'mlp', 'conv'"),
        (["--body", "conv", "--widths", "9"], "--widths must be multiples"),
        (["--data", "mnist"], "--data must be one of"),
        (["--data", "cifar10"], "--data-folder must be given"),
        (["--data", "cifar10", "--data-folder", "no/such"], "--data-folder must hold CIFAR-10"),
        (["--size", "9"], "--size must be left out"),
        (["--public-classes", "cat"], "--public-classes must be left out"),
        (["--pretrain", "none", "--pretrain-epochs", "3"], "--pretrain-epochs must be left out"),
        (["--weights", "no.npz"], "no.npz"),
        (["--seed", "-1"], "--seed must be"),
        (["--evaluations", "0"], "--evaluations must be at least 1"),
        (["--device", "gpu"], "--device must be"),
        (["--device", "cuda:99"], "--device must be 'cpu', or one of the"),
        (["--widths", "100000000000"], "an MLP of widths [100000000000] needs"),
        (["--resume"], "--resume needs a checkpoint"),
        (["--checkpoint", "no.ckpt", "--resume"], "no.ckpt"),
        (["--out", "run.csv"], "--out must end in .nc"),
        (["--rank", "2"], "--rank 2 has no effect with method 'lp-fft'; remove it"),
        (["--method", "fft", "--lp-lr", "2"], "--lp-lr 2.0 has no effect where nothing probes"),
        (["--method", "lp", "--lp-lr", "2", "--lr", "1"], "--lr 1.0 has no effect next to lp_lr"),
        (
            ["--methods", "lp", "fft", "--density", ".2"],
            "--density 0.2 has no effect with method 'lp'",
        ),
        (["--rank", "0", "--method", "lora"], "--rank must be at least 1"),
        (["--epsilons", "1", "-1"], "--epsilons must be positive"),
        (["--shares", "0"], "--shares must be different and strictly between 0 and 1"),
        (["--methods", "adam"], "argument --methods"),
        (["--trials", "0"], "--trials must be at least 1"),
        (["--lr-range", "2", "1"], "--lr-range must be below"),
        (["--seeds", "2", "--lr", "1"], "--lr has no effect in a grid, which has --lr-range"),
        (["--seeds", "2", "--epsilon", "1"], "--epsilon has no effect in a grid, which has --epsilons"),
        (["--seeds", "2", "--workers", "0"], "--workers must be at least 1"),
        (["--seeds", "2", "--time-limit", "0"], "--time-limit must be positive"),
        (["--seeds", "2", "--cells", "/proc/no/cells"], "--cells '/proc/no/cells' cannot be written"),
        (["--seeds", "2", "--batch", "9999"], "--batch must be at most samples=1097"),
        (["--lrr", "1"], "unrecognized arguments: --lrr"),
    ],
)
def test_wrong_usage_is_named_and_exits_with_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in refused(capsys, *SMALL[:2], *arguments)


def test_the_rate_of_probing_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, rate in (["--lr", "0.5"], 0.5), (["--lp-lr", "0.5"], 0.5), ([], 1.0):
        assert finetune.main([*SMALL, "--method", "lp", "--epsilon", "inf", *options, "--json"]) == 0
        assert f"6 steps at learning rate {rate:g}" in json.loads(capsys.readouterr().out)["method"]


def together(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Two processes that fine-tune one network."""
    root = Path(__file__).parents[3]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return execute(
        [*command, "-m", "empirical.finetune", *SMALL, *arguments],
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_of_two_processes_that_diverge_the_first_saves(folder: Path) -> None:
    # torchrun ends all once one has failed
    done = together("--lr", "1e30", "--epsilon", "inf", "--clip", "none", "--out", "run.nc")
    assert done.returncode == 1
    assert "a weight is no longer finite" in done.stderr
    assert np.isfinite(files.load(folder / "run.nc").test_loss.values[0])


def test_two_processes_report_once(folder: Path) -> None:
    done = together("--checkpoint", "run.npz", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    alone = ["--checkpoint", "alone.npz", "--json", "--out", "alone.nc"]
    assert finetune.main([*SMALL, *alone]) == 0
    one, two = files.load(folder / "alone.nc"), files.load(folder / report["saved"])
    np.testing.assert_array_equal(two.batch, one.batch)
    # six steps in single precision
    np.testing.assert_allclose(two.test_loss, one.test_loss, rtol=1e-4)


# ---- a trained model


def test_a_model_is_saved_and_read(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([*SMALL, "--save-model", "net/digits.safetensors", "--out", "run.nc"]) == 0
    out = capsys.readouterr().out
    assert "model:          net/digits.safetensors" in out
    assert "before net/digits.safetensors leaves your hands, train it with --seed none" in out
    model, run = empirical.load("net/digits.safetensors"), files.load("run.nc")
    test = empirical.digits(empirical.Shift(20), rng=0).test
    right = model.predict(test) == np.array(model.classes)[test.labels]
    assert right.mean() == pytest.approx(run.test_accuracy.values[-1])
    for number, name in enumerate(model.classes):
        assert right[test.labels == number].mean() == run.class_accuracy.sel({"class": name}).values[-1]


def test_fresh_noise_from_the_shell(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for kept in ("a.ckpt", "b.ckpt"):
        asked = [*SMALL, "--seed", "none", "--checkpoint", kept]
        assert finetune.main([*asked, "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        found.append(files.load(said["saved"]))
        assert f"system's entropy, which is kept nowhere but in {kept}" in said["privacy"][-1]
        # the split and the body are those of seed 0
        assert said["task"].startswith("digits: 1097 private images")
        assert finetune.main([*asked, "--resume"]) == 0
        capsys.readouterr()
    assert not found[0].equals(found[1])
    # neither takes the other's place
    assert len(list((folder / "runs").glob("*.nc"))) == 4


def test_models_that_cannot_be_saved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--save-model must end in .safetensors" in refused(capsys, *SMALL, "--save-model", "net.pt")
    said = refused(capsys, *GRID, "--save-model", "net.safetensors")
    assert "--save-model has no effect in a grid, which has no model of its own" in said
    assert "must be a whole number or none, got 'one'" in refused(capsys, *SMALL, "--seed", "one")
    wild = ["--epsilon", "inf", "--clip", "none", "--method", "fft", "--lr", "1e30"]
    assert finetune.main([*SMALL, *wild, "--save-model", "net.safetensors"]) == 1
    assert not (folder / "net.safetensors").exists()


def test_classes_and_their_confusions(capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune.main([*SMALL, "--json", "--out", "run.zarr"]) == 0
    said, run = json.loads(capsys.readouterr().out), files.load("run.zarr")
    assert run.confusion.dims == ("class", "predicted")
    assert run["class"].values.tolist() == [str(n) for n in range(10)]
    assert int(run.confusion.sum()) == 300
    wrong = run.confusion.where(run["class"] != run.predicted, 0)
    assert said["mistakes"][0]["images"] == wrong.max()
    worst = said["mistakes"][0]
    assert run.confusion.sel({"class": worst["class"], "predicted": worst["taken for"]}) == worst["images"]
    assert said["class accuracy"]["3"] == pytest.approx(
        run.class_accuracy.sel({"class": "3"}).values[-1], abs=1e-4
    )


def test_lists_and_mappings_are_options_of_bodies(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *SMALL, "--body-options", "depths=[1,[2,3]]", 'named={"a": [1]}')
    assert "unexpected keyword argument 'depths'" in said
