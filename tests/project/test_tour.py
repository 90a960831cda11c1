"""``python -m langevin`` lists the commands and suggests what to run next."""

import re
import shlex
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from langevin import __main__
from langevin.__main__ import main
from langevin.support import command, install
from tests.project.test_imports import DOORS, FORBIDDEN, ROOT

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


def test_of_a_checkout_elsewhere_it_says_where(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    told = __main__.tour()
    assert f"To read, in {ROOT}\n" in told
    assert f"pip install -e '{ROOT}[dpsgd]'" in told
    monkeypatch.chdir(ROOT)
    assert __main__.tour() == TOUR


def test_what_to_install(monkeypatch):
    monkeypatch.setattr(install, "checkout", lambda: None)
    for package, extra in [("torch", "dpsgd"), ("distributed.utils", "sweep"), ("timm", "vision")]:
        error = ModuleNotFoundError(name=package)
        expected = f"{package} is not installed: pip install 'private-finetuning-dynamics[{extra}]'"
        assert command.missing(error) == expected
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf8"))
    for package, extra in install._EXTRAS.items():
        wanted = declared["project"]["optional-dependencies"][extra]
        assert any(re.match(rf"{package}\b", requirement) for requirement in wanted), package


def test_in_process(capsys):
    assert main([]) == 0
    assert capsys.readouterr().out == TOUR
