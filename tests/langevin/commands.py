"""The simulator's command and small options for it."""

import sys
from pathlib import Path

from langevin.simulate import main
from tests.helpers import call, execute

QUICK = ["--time", "0.1", "--dt", "0.01", "--paths", "4"]
SMALL = ["--width", "12", "--samples", "8", "--dim", "3", *QUICK]


def command(*arguments: str | Path, cwd: Path, program: tuple[str, ...] = ("-m", "langevin.simulate")):
    return execute([sys.executable, *program, *map(str, arguments)], cwd=cwd)


def here(*arguments: str | Path, cwd: Path):
    """The command in this process, where others have imported and compiled what it needs."""
    return call(main, arguments, cwd)
