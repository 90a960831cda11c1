"""``python -m langevin`` says what there is, and what to type next."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from langevin import __main__, _command, _install
from langevin.__main__ import main
from tests.test_imports import DOORS, FORBIDDEN, ROOT

TOUR = __main__.tour()
COMMANDS = sorted(set(re.findall(r"python -m ([\w.]+)", TOUR)))


def tour(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = [sys.executable, "-X", "importtime", "-m", "langevin", *arguments]
    return subprocess.run(code, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_it_is_read_at_once_on_a_narrow_terminal(arguments):
    done = tour(*arguments)
    assert done.returncode == 0
    assert TOUR.splitlines()[0] in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    for heavy in ("numpy", "scipy", "numba", "torch", "matplotlib", "xarray"):
        assert not re.search(rf"\| +{heavy}$", done.stderr, re.M), heavy


def test_wrong_usage():
    done = tour("simulate")
    assert done.returncode == 2
    assert "unrecognized arguments: simulate" in done.stderr


def test_every_command_is_named_and_is_there():
    doors = {
        f"{path.parent.name}.{path.stem}"
        for package in FORBIDDEN
        for path in Path(ROOT / package).glob("*.py")
        if path.name in DOORS
    }
    assert doors <= set(COMMANDS)
    for name in COMMANDS:
        assert find_spec(name), name


@pytest.mark.parametrize("line", re.findall(r"^ +(python -m \S+ --.*)$", TOUR, re.M))
def test_what_to_type_is_understood(line):
    from langevin.simulate import parser

    _, _, module, *arguments = shlex.split(line)
    assert module == "langevin.simulate"
    parser().parse_args(arguments)


NOT_IN_A_WHEEL = ("python -m figures", "README", "make ", "pip install -e")


@pytest.fixture
def wheel(tmp_path):
    """What a wheel holds, in a folder of its own, and an empty folder to work in."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    site, empty = tmp_path / "site", tmp_path / "empty"
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        shutil.copytree(ROOT / package, site / package, ignore=shutil.ignore_patterns("__pycache__"))
    empty.mkdir()
    return site, empty


def run(site: Path, empty: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "80"}
    code = [sys.executable, *command]
    return subprocess.run(code, cwd=empty, env=environment, capture_output=True, text=True)


def test_of_a_wheel_it_names_what_is_there(wheel):
    done = run(*wheel, "-m", "langevin")
    assert done.returncode == 0
    assert max(len(line) for line in done.stdout.splitlines()) <= 80
    for absent in NOT_IN_A_WHEEL:
        assert absent not in done.stdout
        assert absent in TOUR, "the control"
    commands = set(re.findall(r"python -m ([\w.]+)", done.stdout)) - {"pydoc"}
    assert commands == set(COMMANDS) - {"figures"}
    assert all((wheel[0] / f"{name.replace('.', '/')}.py").exists() for name in commands)
    assert "pip install 'private-finetuning-dynamics[dpsgd]'" in done.stdout
    (what,) = re.findall(r"python -m (pydoc [\w.]+)", done.stdout)
    assert "Parameters" in run(*wheel, "-m", *what.split()).stdout


def test_of_a_checkout_elsewhere_it_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = __main__.tour()
    assert f"To read, in {ROOT}\n" in told
    assert f"pip install -e '{ROOT}[dpsgd]'" in told
    monkeypatch.chdir(ROOT)
    assert __main__.tour() == TOUR


def test_what_to_install(monkeypatch):
    monkeypatch.setattr(_install, "checkout", lambda: None)
    for package, extra in [("torch", "dpsgd"), ("distributed.utils", "sweep"), ("timm", "vision")]:
        error = ModuleNotFoundError(name=package)
        expected = f"{package} is not installed: pip install 'private-finetuning-dynamics[{extra}]'"
        assert _command.missing(error) == expected
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    for package, extra in _install._EXTRAS.items():
        wanted = declared["project"]["optional-dependencies"][extra]
        assert any(re.match(rf"{package}\b", requirement) for requirement in wanted), package


def test_help_of_a_wheel_in_an_empty_folder(wheel):
    for command in sorted(set(COMMANDS) - {"figures"}):
        done = run(*wheel, "-m", command, "--help")
        assert (done.returncode, done.stderr) == (0, ""), command
        assert not any(absent in done.stdout for absent in NOT_IN_A_WHEEL), command


@pytest.mark.slow
def test_a_run_of_a_wheel_in_an_empty_folder(wheel):
    done = run(*wheel, "-m", "langevin.simulate", "--width", "8", "--time", "0.01", "--paths", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.suffix for path in wheel[1].rglob("*.*")] == [".nc"]


def test_in_process(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == TOUR
