"""The commands that an installation brings, each the same as its ``python -m``."""

from __future__ import annotations

import runpy
from collections.abc import Callable


def _command(module: str) -> Callable[[], None]:
    def run() -> None:
        runpy.run_module(module, run_name="__main__", alter_sys=True)

    return run


tour = _command("langevin")
simulate = _command("langevin.simulate")
report = _command("langevin.report")
explore = _command("langevin.explore")
sweep = _command("langevin.sweep")
plan = _command("bounds.plan")
finetune = _command("empirical.finetune")
