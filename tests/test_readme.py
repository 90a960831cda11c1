"""What the README shows runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = {language: re.findall(rf"```{language}\n(.*?)```", README, re.S) for language in ("python", "sh")}
COMMANDS = [
    line for block in BLOCKS["sh"] for line in block.splitlines() if line.startswith("python -m langevin.")
]


def run(*arguments: str, cwd: Path) -> str:
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_python_example(tmp_path):
    (block,) = BLOCKS["python"]
    assert "zeroth-order loss enclosed: True" in run("-c", block, cwd=tmp_path)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands(tmp_path, command):
    _, *arguments = shlex.split(command)
    out = run(*arguments, cwd=tmp_path)
    assert "saved" in out or "--help" in command


def test_links_and_figures_are_there():
    root = Path(__file__).parents[1]
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://") or (root / target).exists(), target
