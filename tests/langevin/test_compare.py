"""Several methods in one run: ``--compare``, and the report of saved runs."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from langevin import __main__, report, simulate
from langevin.simulation import figure, saved, words
from langevin.solvers import diffusion
from langevin.store import files
from tests.helpers import call
from tests.langevin.solvers.test_solvers import equal_bits

SMALL = ["--width", "12", "--samples", "8", "--dim", "3", "--time", "0.1", "--dt", "0.01", "--paths", "4"]
SMALL += ["--quiet", "--seed", "3"]
THREE = ["--compare", "lp", "fft", "lp-fft"]


def here(*arguments: str | Path, cwd: Path):
    done = call(simulate.main, [*SMALL, *arguments], cwd)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """A folder with a comparison, what the command printed, and each method alone."""
    folder = tmp_path_factory.mktemp("compared")
    printed = here(*THREE, "--plot", "--out", "run.nc", cwd=folder).stdout
    for method in THREE[1:]:
        here("--method", method, "--reduce", "none", "--out", f"{method}.nc", cwd=folder)
    return folder, printed


def test_each_method_is_the_same_run_as_alone(compared):
    folder, _ = compared
    run = files.load(folder / "run.nc")
    assert list(run.strategy.values) == ["lp", "fft", "lp-fft"]
    for method in THREE[1:]:
        alone = files.load(folder / f"{method}.nc")
        for name in ("loss", "misaligned", "distorted", "zeroth_loss", "squared_distance_upper"):
            np.testing.assert_array_equal(run[name].sel(strategy=method), alone[name])
        assert float(run.epsilon.sel(strategy=method)) == float(alone.epsilon)
        assert list(run.phase.sel(strategy=method).values) == list(alone.phase.values)
    fft, lp = run.loss.sel(strategy="fft"), run.loss.sel(strategy="lp")
    assert not (fft == lp)[:, 1:].any()


def test_phases_are_stored(compared):
    folder, _ = compared
    run = files.load(folder / "lp-fft.nc")
    # a quarter of ten steps, rounded; the time of the change belongs to probing
    assert list(run.phase.values) == ["lp"] * 3 + ["fft"] * 8


def test_table_and_sentences(compared):
    folder, printed = compared
    run = files.load(folder / "run.nc")
    header = next(line for line in printed.splitlines() if line.startswith("at the end"))
    assert header.split() == ["at", "the", "end", "LP", "FFT", "LP-FFT"]
    row = next(line for line in printed.splitlines() if line.split()[:1] == ["loss"])
    means = run.loss.isel(time=-1).mean("path").values
    assert [float(x) for x in re.findall(r"([\d.e-]+) \+-", row)] == pytest.approx(means, rel=1e-3)
    assert "final loss, lowest first" in printed
    assert "epsilon" in printed


def test_json(tmp_path):
    done = here("--compare", "fft", "lp-fft", "--json", cwd=tmp_path)
    said = json.loads(done.stdout, parse_constant=pytest.fail)
    assert list(said["methods"]) == ["fft", "lp-fft"]
    assert said["saved"].startswith("runs/fft-vs-lp-fft-separable-w12-")
    assert said["failure"] is None
    run = files.load(tmp_path / said["saved"])
    for method, one in said["methods"].items():
        assert one["loss"]["end"]["mean"] == pytest.approx(float(run.loss.sel(strategy=method)[:, -1].mean()))


def test_an_interrupted_comparison_resumes_to_the_same_bits(compared, tmp_path, monkeypatch):
    folder, _ = compared
    real, begun = diffusion.euler_maruyama, []

    def stopped(problem, weights, schedule, **how):
        begun.append(schedule.phases[0].method)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(problem, weights, schedule, **how)

    monkeypatch.setattr(diffusion, "euler_maruyama", stopped)
    done = call(simulate.main, [*SMALL, *THREE, "--out", "run.nc"], tmp_path)
    assert done.returncode == 130
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc.lp.unfinished"]
    assert "--resume" in done.stderr
    monkeypatch.undo()
    again = call(simulate.main, [*SMALL, *THREE, "--out", "run.nc"], tmp_path)
    assert again.returncode == 2
    assert "unfinished run, run.nc.lp.unfinished" in again.stderr

    # the finished method is read, and not simulated again
    calls = []
    monkeypatch.setattr(diffusion.pool, "run", spying(diffusion.pool.run, calls))
    here(*THREE, "--out", "run.nc", "--resume", cwd=tmp_path)
    assert calls == [0, 4, 4]
    assert equal_bits(files.load(tmp_path / "run.nc"), files.load(folder / "run.nc"))
    assert [path.name for path in tmp_path.iterdir()] == ["run.nc"]


def spying(real, calls):
    def run(chain, results, *rest, **how):
        calls.append(int((results.steps < chain.grid.steps).sum()))
        return real(chain, results, *rest, **how)

    return run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--compare", "fft"], "--compare must be two different methods or more, got fft: take --method"),
        (["--compare", "fft", "fft"], "--compare must be two different methods or more, got fft fft"),
        (["--compare", "fft", "lp-tf"], "argument --compare: invalid choice: 'lp-tf'"),
        (["--compare", "fft", "lp", "--method", "lp"], "--method lp has no effect with --compare; remove it"),
        (["--compare", "fft", "lp", "--lp-share", ".5"], "--lp-share 0.5 has no effect with method"),
        (["--compare", "fft", "lp", "--resume"], "--resume needs an unfinished run"),
    ],
)
def test_wrong_usage(tmp_path, arguments, message):
    done = call(simulate.main, [*SMALL, *arguments], tmp_path)
    assert done.returncode == 2
    assert message in done.stderr


def test_a_share_counts_where_one_of_the_methods_has_it(tmp_path):
    here("--compare", "fft", "lp-fft", "--lp-share", "0.5", "--out", "run.nc", cwd=tmp_path)


def test_a_diverged_method_loses_no_other(tmp_path):
    # probing is stable at this step, full fine-tuning is not
    wild = ["--clip", "none", "--loss", "square", "--dt", "0.05", "--time", "50", "--sigma", "9"]
    done = call(simulate.main, [*SMALL, *wild, "--compare", "lp", "fft", "--out", "r.nc", "--plot"], tmp_path)
    assert done.returncode == 1
    assert "diverged" in done.stderr
    loss = files.load(tmp_path / "r.nc").loss
    assert np.isfinite(loss.sel(strategy="lp")).all()
    assert np.isnan(loss.sel(strategy="fft")[:, -1]).any()


# --- what the tour says


def test_the_tour_says_what_its_first_command_shows(tmp_path):
    told = __main__.tour()
    command = re.search(r"python -m langevin.simulate (--compare .*)", told)
    assert command is not None
    assert words.CLAIM.endswith(command.group(1))
    done = call(simulate.main, [*command.group(1).split(), "--json", "--quiet"], tmp_path)
    said = json.loads(done.stdout)
    methods = said["methods"]
    distorted = [methods[m]["neurons"]["with noise"]["distorted at the end"] for m in ("fft", "lp-fft")]
    losses = [methods[m]["loss"]["end"]["mean"] for m in ("fft", "lp-fft")]
    text = " ".join(told.split())
    assert f"leaves {distorted[0]:.3g} of 64 neurons distorted" in text
    assert f"(LP-FFT), {distorted[1]:.3g}." in text
    assert f"epsilon is {methods['fft']['privacy']['epsilon']:.0f}" in text
    assert f"{losses[0]:.3f} against {losses[1]:.3f}" in text


# --- sentences


def run_report(change: float, error: float, zeroth: float = 0.0, loss: float = 1.0) -> dict:
    ends = {"misaligned at the end": 0.0}
    return {
        "loss": {"end": {"mean": loss, "standard error": 0.1}, "zeroth order at the end": 1.0},
        "neurons": {
            "width": 64,
            "distorted at the end by noise": {"mean": change, "standard error": error},
            "with noise": ends | {"distorted at the end": zeroth + change},
            "zeroth order": ends | {"distorted at the end": zeroth},
        },
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (dict(change=30.0, error=1.0), "most of the distortion comes from the noise: 30 of 64"),
        (dict(change=5.0, error=1.0, zeroth=20.0), "noise leaves more neurons distorted: 25 of 64"),
        (dict(change=-5.0, error=1.0, zeroth=20.0), "noise leaves fewer neurons distorted: 15 of 64"),
        (dict(change=1.9, error=1.0), "noise does not change the number of distorted neurons"),
        (dict(change=2.1, error=1.0), "noise leaves more neurons distorted"),
        (dict(change=0.0, error=0.0, loss=1.19), "noise does not change the final loss"),
        (dict(change=0.0, error=0.0, loss=1.21), "noise raises the final loss"),
        (dict(change=0.0, error=0.0, loss=0.79), "noise lowers the final loss"),
    ],
)
def test_differences_within_two_standard_errors_are_none(arguments, expected):
    said = words.noise(run_report(**arguments), 0.5)
    assert sum(expected in sentence for sentence in said) == 1
    assert len(said) == 2


@pytest.mark.parametrize(("gap", "close"), [(0.28, True), (0.29, False)])
def test_losses_that_are_close_are_said_to_be(gap, close):
    # two standard errors of the difference are 0.283
    reports = {"fft": run_report(0, 0), "lp-fft": run_report(0, 0, loss=1 + gap)}
    said = words.comparison(reports)
    assert said[1].startswith("final loss, lowest first: FFT 1 +- 0.1, LP-FFT 1.2")
    assert said[1].endswith("the first two differ by less than two standard errors") == close


def test_without_noise_there_is_nothing_to_say(tmp_path):
    done = here("--sigma", "0", "--json", cwd=tmp_path)
    assert json.loads(done.stdout)["in words"] == ["there is no noise: all paths are the zeroth-order path"]


def test_the_main_command_says_what_the_noise_did(tmp_path):
    done = call(simulate.main, ["--width", "64", "--paths", "8", "--dt", "5e-3", "--quiet"], tmp_path)
    assert "most of the distortion comes from the noise" in done.stdout
    assert words.CLAIM in done.stdout


# --- saved runs


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("methods", [["--method", "lp-fft"], ["--compare", "fft", "lp-fft"]])
def test_a_saved_run_is_reported_and_drawn_again(tmp_path, suffix, methods):
    out = f"run{suffix}"
    printed = here(*methods, "--plot", "first.png", "--out", out, cwd=tmp_path).stdout
    done = call(report.main, [out, "--plot", "again.png"], tmp_path)
    assert done.returncode == 0, done.stderr

    def lines(text: str) -> list[str]:
        return [x for x in text.splitlines() if not x.startswith(("speed", "saved", "plot"))]

    assert lines(done.stdout) == lines(printed)
    first, again = (tmp_path / f"{name}.png" for name in ("first", "again"))
    assert again.read_bytes() == first.read_bytes()
    as_json = call(report.main, [out, "--json"], tmp_path)
    assert json.loads(as_json.stdout) == json.loads(files.load(tmp_path / out).attrs["report"])


def test_a_run_without_a_report_is_drawn(tmp_path):
    here("--out", "run.nc", cwd=tmp_path)
    run = files.load(tmp_path / "run.nc")
    del run.attrs["report"]
    files.save(run, tmp_path / "bare.nc")
    done = call(report.main, ["bare.nc"], tmp_path)
    assert done.returncode == 2
    assert "holds no report" in done.stderr
    assert call(report.main, ["bare.nc", "--plot"], tmp_path).returncode == 0
    assert (tmp_path / "bare.png").exists()


@pytest.mark.parametrize("stored", ['{"methods": {}}', '{"loss": 3}', "[1]", "3"])
def test_a_report_of_another_kind_is_named(tmp_path, stored):
    here("--out", "run.nc", cwd=tmp_path)
    run = files.load(tmp_path / "run.nc")
    files.save(run.assign_attrs(report=stored), tmp_path / "odd.nc")
    done = call(report.main, ["odd.nc"], tmp_path)
    assert done.returncode == 1
    assert "the report in odd.nc is not one of langevin.simulate" in done.stderr


@pytest.mark.parametrize("arguments", [["none.nc"], ["run.txt"], ["run.nc", "--plot", "run.doc"]])
def test_what_cannot_be_reported_is_named(tmp_path, arguments):
    done = call(report.main, arguments, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_what_is_no_run_is_not_drawn(tmp_path):
    run = files.load(here("--out", "run.nc", cwd=tmp_path) and tmp_path / "run.nc")
    with pytest.raises(ValueError, match="run must have a loss over time, got accuracy"):
        figure.plot(run[["accuracy"]])
    assert list(saved.split(run)) == ["lp-fft"]
