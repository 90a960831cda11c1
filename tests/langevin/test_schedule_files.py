"""Schedules from TOML files: read, refused by name, run, saved, swept."""

import json
from pathlib import Path

import pytest

from langevin import Phase, Schedule, euler_maruyama
from langevin.report import main as report
from langevin.simulate import main as simulate
from langevin.simulation.config import Simulation
from langevin.store import files
from langevin.store.errors import StoreError
from langevin.sweeps import SIMULATIONS, Grid, run_sweep
from tests.helpers import call
from tests.langevin.solvers.test_solvers import equal_bits

TEXT = """
sigma = 0.05
clip = 1.0

[[phase]]
method = "lp"
time = 0.03

[[phase]]
method = "fft"
time = 0.04
sigma = 0.1
sample_rate = 0.5

[[phase]]
method = "lp"
time = 0.02
clip = "none"
"""
PHASES = [
    Phase("lp", 0.03, 0.05, 1.0),
    Phase("fft", 0.04, 0.1, 1.0, sample_rate=0.5),
    Phase("lp", 0.02, 0.05),
]
# on full batches and clipped, so that privacy needs no accountant
FULL = TEXT.replace("sample_rate = 0.5\n", "").replace('"none"', "0.5")
SMALL = {"width": 8, "samples": 8, "dim": 3, "dt": 0.01, "paths": 3}
OPTIONS = [word for name, value in SMALL.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("plan.toml").write_text(TEXT)
    Path("full.toml").write_text(FULL)
    return tmp_path


def test_phases_of_a_file(plan):
    schedule = Schedule.from_file("plan.toml")
    assert schedule == Schedule(PHASES)
    assert schedule == Schedule.from_file(plan / "plan.toml")
    # defaults are those of a phase
    Path("short.toml").write_text('[[phase]]\nmethod = "fft"\ntime = 2\n')
    assert Schedule.from_file("short.toml") == Schedule.fft(time=2.0)


LP = '[[phase]]\nmethod = "lp"\ntime = 1.0\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "schedule bad.toml must have a table [[phase]] per phase, got None"),
        ("phase = []", "schedule bad.toml must have a table [[phase]] per phase, got []"),
        ("[phase]\ntime = 1", "schedule bad.toml must have a table [[phase]] per phase, got {'time': 1}"),
        ("[[phase]", "schedule must be a TOML file of phases, got 'bad.toml': "),
        (
            f"epsilon = 1\n{LP}",
            "schedule bad.toml, above the phases: unknown key 'epsilon'; known are clip, ",
        ),
        (
            f"{LP}[[phase]]\nsgima = 1",
            "schedule bad.toml, phase 2: unknown key 'sgima'; did you mean 'sigma'?",
        ),
        ("[[phase]]\ntime = 1", "schedule bad.toml, phase 1: method is missing; add method = "),
        (f'{LP}[[phase]]\nmethod = "fft"', "schedule bad.toml, phase 2: time is missing; add time = "),
        (f"{LP}clip = -1.0", 'schedule bad.toml, phase 1: clip must be positive or "none", got -1.0'),
        (f"{LP}clip = true", 'schedule bad.toml, phase 1: clip must be a number or "none", got True'),
        (f"{LP}sigma = '1'", "phase 1: sigma must be a number, got '1': write numbers without quotes"),
        (f"{LP}sigma = [1]", "schedule bad.toml, phase 1: sigma must be a number, got [1]"),
        (f"{LP}sigma = inf", "schedule bad.toml, phase 1: sigma must be finite, got inf"),
        (f"{LP}sample_rate = 2", "schedule bad.toml, phase 1: sample_rate must lie in (0, 1], got 2"),
        (f"{LP}clipping = 3", "schedule bad.toml, phase 1: clipping must be one of 'flat', "),
        (
            f"{LP}clipping = 'normalised'",
            "phase 1: clip must be positive with clipping='normalised', got \"none\"",
        ),
        (
            LP.replace("lp", "lp-fft"),
            "schedule bad.toml, phase 1: method must be one of 'lp', 'fft'; got 'lp-fft'",
        ),
    ],
)
def test_a_wrong_file_is_refused_by_name(plan, text, message):
    Path("bad.toml").write_text(text)
    with pytest.raises(ValueError) as refused:
        Schedule.from_file("bad.toml")
    assert message in str(refused.value)
    done = call(simulate, ["--schedule", "bad.toml"], plan)
    assert done.returncode == 2
    assert message.removeprefix("schedule") in done.stderr


def test_a_file_that_is_not_there(plan):
    done = call(simulate, ["--schedule", "no.toml"], plan)
    assert done.returncode == 2
    assert "error: --schedule must be a TOML file of phases, got 'no.toml': No such file" in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sigma", "0.5"], "--sigma 0.5 has no effect with --schedule plan.toml; set sigma in that file"),
        (["--time", "1"], "--time 1.0 has no effect with --schedule plan.toml; set time in that file"),
        (["--method", "lp"], "--method lp has no effect with --schedule plan.toml; set method in that file"),
        (["--lp-share", "0.5"], "--lp-share 0.5 has no effect with --schedule plan.toml; remove it"),
        (["--clip", "none"], "--clip None has no effect with --schedule plan.toml; set clip in that file"),
        (["--compare", "lp", "fft"], "--compare must be left out with --schedule plan.toml"),
        (["--dt", "0.015"], "--schedule plan.toml, phase 2: time must be a whole number of steps of dt"),
        (["--dt", "0.1"], "--schedule plan.toml, phase 1: time must be a whole number of steps of dt"),
        (["--epsilon", "1"], "phase"),
    ],
)
def test_what_contradicts_a_file_is_refused(plan, options, message):
    done = call(simulate, ["--schedule", "plan.toml", *OPTIONS, *options], plan)
    assert done.returncode == 2
    assert message in done.stderr
    # the same file with nothing that contradicts it is not
    assert Simulation(**SMALL, schedule_file="plan.toml").steps == 9


def test_the_run_is_that_of_the_same_phases_and_its_report_says_so(plan):
    done = call(simulate, ["--schedule", "plan.toml", *OPTIONS, "--out", "run.nc", "--quiet"], plan)
    assert done.returncode == 0, done.stderr
    simulation = Simulation(**SMALL)
    problem, weights, *_ = simulation.start()
    run = files.load("run.nc")
    expected = euler_maruyama(
        problem, weights, Schedule(PHASES), dt=0.01, paths=3, rng=0, times=run.time.values
    )
    assert equal_bits(run[["loss", "squared_distance"]], expected[["loss", "squared_distance"]])
    assert [phase["method"] for phase in json.loads(run.attrs["config"])["schedule"]] == ["lp", "fft", "lp"]
    assert list(run.phase.values) == ["lp"] * 4 + ["fft"] * 4 + ["lp"] * 2
    Path("plan.toml").unlink()
    again = call(report, ["run.nc", "--plot"], plan)
    assert again.returncode == 0, again.stderr
    assert str(Schedule(PHASES)) in again.stdout
    assert Path("run.png").exists()


def test_a_budget_scales_the_noise_of_all_phases(plan):
    arguments = ["--schedule", "full.toml", *OPTIONS, "--epsilon", "2", "--json", "--quiet"]
    done = call(simulate, arguments, plan)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["privacy"]["epsilon"] == pytest.approx(2.0, rel=1e-6)
    first, second, third = said["privacy"]["sigma"]
    assert second == pytest.approx(2 * first)
    assert third == pytest.approx(first)
    # of one clipping norm per phase, that of the last is half
    multipliers = said["privacy"]["noise multiplier"]
    assert multipliers[2] == pytest.approx(2 * multipliers[0])
    assert "full-separable-w8-epsilon2-seed0-" in said["saved"]
    shown = call(report, [said["saved"]], plan).stdout
    assert f"sigma {first:.4g} then {second:.4g} then {third:.4g}" in shown


def test_a_sweep_over_files(plan):
    Path("other.toml").write_text(TEXT.replace("0.1", "0.2"))
    fixed = SMALL | {"dt": 0.01}
    sweep = {"schedule_file": ["plan.toml", "other.toml", "none"], "seed": [0]}
    grid = Grid(SIMULATIONS, sweep, fixed, {"variables": ["loss"], "times": 4})
    run = run_sweep(grid, "sweep.zarr", threads=True)
    assert (run.status == 1).all()
    single = call(simulate, ["--schedule", "other.toml", *OPTIONS, "--times", "4", "--out", "one.nc"], plan)
    assert single.returncode == 0, single.stderr
    one = files.load("one.nc").loss.mean("path")
    swept = run.loss.sel(schedule_file="other.toml", seed=0)
    assert swept.values == pytest.approx(one.values, rel=1e-12)
    assert swept.values != pytest.approx(run.loss.sel(schedule_file="plan.toml", seed=0).values, rel=1e-3)
    # a store of other contents is not continued
    Path("other.toml").write_text(TEXT.replace("0.1", "0.3"))
    with pytest.raises(StoreError, match=r"the file 'other\.toml' is"):
        run_sweep(
            Grid(SIMULATIONS, sweep, fixed, {"variables": ["loss"], "times": 4}), "sweep.zarr", threads=True
        )
    with pytest.raises(ValueError, match="cannot sweep 'sigma': no cell uses it"):
        Grid(SIMULATIONS, {"sigma": [0.1, 0.2]}, fixed | {"schedule_file": "plan.toml"}, {"times": 4})
