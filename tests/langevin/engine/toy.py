"""A kind of sweep for tests, whose cells leave a trace, wait, fail or die on demand."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from langevin.sweeps import Grid
from langevin.sweeps.grid import Layout, Values, Variable
from langevin.sweeps.parameters import parameters

SIZE = 4096


@dataclass(frozen=True)
class Parameters:
    """``a < 0`` fails, ``a = 13`` kills its process; seeds from ``hold`` on wait for the file ``gate``."""

    a: float = 1.0
    b: int = 0
    seed: int = 0
    hold: int = 0
    gate: str | None = None
    trace: str | None = None


@dataclass(frozen=True)
class Recorded:
    size: int = 3


class Toys:
    name = "toy"
    parameters = parameters(Parameters, unrecorded=("hold", "gate", "trace"))
    record = Recorded
    packages: tuple[str, ...] = ()
    alone = False

    def check(self, values: Values, record: Recorded) -> None:
        if values["b"] < 0:
            raise ValueError(f"b must be at least 0, got {values['b']}")

    def idle(self, values: Values) -> Collection[str]:
        return ["hold"] if values["gate"] is None else []

    def layout(self, grid: Grid) -> Layout:
        return Layout({"x": Variable(("place",), (grid.record.size,), {})})

    def memory(self, values: Values, record: Recorded) -> float:
        return 8.0 * record.size

    def files(self, values: Values) -> list[str]:
        return []

    def located(self, values: Values, out: Path) -> Values:
        return values

    def compute(self, values: Values, record: Recorded) -> tuple[dict[str, np.ndarray], str | None]:
        a, b, seed = (values[name] for name in ("a", "b", "seed"))
        if values["trace"] is not None:
            with open(values["trace"], "a") as file:
                file.write(f"{a:g} {b} {seed}\n")
        while values["gate"] is not None and seed >= values["hold"] and not Path(values["gate"]).exists():
            time.sleep(0.01)
        if a == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        if a < 0:
            raise ValueError(f"a must not be negative, got {a:g}")
        return {"x": expected(a, b, seed, record.size)}, None


TOYS = Toys()


def expected(a: float, b: int, seed: int, size: int = 3) -> np.ndarray:
    return a * np.random.default_rng([b, seed]).standard_normal(size)


def script(
    out: Path, sweep: dict[str, Any], *, fixed: Any = None, record: Any = None, **how: Any
) -> list[str]:
    """Run a sweep of toys as a command, and print its result."""
    lines = (
        "import sys, logging",
        "from tests.langevin.engine.toy import TOYS",
        "from langevin.sweeps import Grid, run_sweep",
        "if __name__ == '__main__':",
        "    logging.disable()",
        f"    grid = Grid(TOYS, {sweep!r}, {fixed or {}!r}, {record or {}!r})",
        "    try:",
        f"        run = run_sweep(grid, {str(out)!r}, **{how!r})",
        "        print('finished', int((run.status == 1).sum()), 'failed', int((run.status == 2).sum()))",
        "    except Exception as error:",
        "        sys.exit(f'{type(error).__name__}: {error}')",
    )
    return [sys.executable, "-c", "\n".join(lines)]
