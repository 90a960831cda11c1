"""The wheel, built, installed and run where nothing else of the project is."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from langevin.engine.kernels import jit
from tests.project.test_imports import ROOT
from tests.project.test_tour import COMMANDS, TOUR

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
PACKAGES = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
INSTALLED = sorted(set(COMMANDS) - {"figures"})
NOT_IN_A_WHEEL = ("python -m figures", "README", "make ", "pip install -e")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder in which the wheel, and it alone, is installed."""
    pytest.importorskip("hatchling")
    built, site = tmp_path_factory.mktemp("built"), tmp_path_factory.mktemp("site")
    alone = ("--quiet", "--no-deps", "--no-index")
    subprocess.run([*PIP, "wheel", *alone, "--no-build-isolation", "-w", built, ROOT], check=True)
    (wheel,) = built.iterdir()
    subprocess.run([*PIP, "install", *alone, "--target", site, wheel], check=True)
    # machine code is compiled again for sources of another time
    for path in jit.SOURCES:
        shutil.copystat(path, site / path.relative_to(ROOT))
        for code in (path.parent / "__pycache__").glob("*.nb?"):
            shutil.copy2(code, site / path.parent.relative_to(ROOT) / "__pycache__")
    return site


@pytest.fixture
def run(site, tmp_path):
    """Run a command in an empty folder."""

    def run(*command: str | Path) -> str:
        environment = os.environ | {"PYTHONPATH": str(site), "COLUMNS": "80"}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), command
        return done.stdout

    return run


def test_it_holds_the_packages_and_nothing_else(site):
    folders = {path.name for path in site.iterdir()}
    assert {name for name in folders if not name.endswith(".dist-info")} == {*PACKAGES, "bin"}
    for package in PACKAGES:
        sources = {path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py")}
        assert {path.relative_to(site) for path in (site / package).rglob("*.py")} == sources


def test_the_tour_names_what_is_there(run):
    told = run(sys.executable, "-m", "langevin")
    assert max(len(line) for line in told.splitlines()) <= 80
    for absent in NOT_IN_A_WHEEL:
        assert absent not in told
        assert absent in TOUR, "the control"
    assert sorted(set(re.findall(r"python -m ([\w.]+)", told)) - {"pydoc"}) == INSTALLED
    assert "pip install 'private-finetuning-dynamics[dpsgd]'" in told
    (what,) = re.findall(r"python -m (pydoc [\w.]+)", told)
    assert "Parameters" in run(sys.executable, "-m", *what.split())


def test_every_command_has_a_script_that_says_the_same(site, run):
    scripts = {f"langevin-{name.rpartition('.')[2]}": name for name in INSTALLED} | {"langevin": "langevin"}
    assert (
        {path.name for path in (site / "bin").iterdir()} == set(PROJECT["project"]["scripts"]) == {*scripts}
    )
    for script, module in scripts.items():
        said = run(site / "bin" / script, "--help")
        assert said == run(sys.executable, "-m", module, "--help")
        assert not any(absent in said for absent in NOT_IN_A_WHEEL), script


def test_scripts_run(site, run, tmp_path):
    small = ["--width", "4", "--samples", "4", "--dim", "3", "--time", "0.1", "--dt", "0.01", "--paths", "2"]
    run(site / "bin/langevin-simulate", *small, "--quiet", "--no-bounds", "--out", "run.nc")
    X = np.random.default_rng(0).standard_normal((40, 3))
    np.savez(tmp_path / "features.npz", X=X, y=np.arange(40) % 2)
    budget = ["--epsilon", "1", "--delta", "1e-3", "--steps", "4", "--draws", "2", "--shares", "0", "1"]
    said = run(site / "bin/langevin-plan", "features.npz", *budget, "--quiet", "--out", "plan.nc")
    assert "epsilon 1 at delta 0.001" in said
    assert {path.name for path in tmp_path.iterdir()} == {"features.npz", "plan.nc", "run.nc"}
