"""Files of every kind that is read, and what may happen to them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from langevin import Schedule, euler_maruyama, from_npz
from langevin.data import files
from langevin.store import checkpoints
from langevin.store.files import load, save
from tests.helpers import random_problem, random_weights

GRID = """
kind = "simulate"
out = "there.zarr"
[fixed]
samples = 8
dim = 3
time = 0.5
dt = 0.01
[sweep]
sigma = { from = 0.1, to = 10, count = 3, spacing = "log" }
clip = [1.0, "none"]
seed = { start = 5, count = 2 }
[record]
variables = ["loss", "accuracy"]
times = 4
"""


def damaged(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """What happened, and the content after it."""
    kind = str(rng.choice(["cut", "bits", "block", "longer", "pickle", "noise", "twice"]))
    place = int(rng.integers(len(content)))
    raw = bytearray(content)
    if kind == "cut":
        raw = raw[:place]
    elif kind == "bits":
        for at in rng.integers(len(raw), size=rng.integers(1, 9)):
            raw[at] ^= 1 << int(rng.integers(8))
    elif kind == "block":
        raw[place : place + 64] = rng.bytes(len(raw[place : place + 64]))
    elif kind == "longer":
        raw += rng.bytes(100)
    elif kind == "pickle":
        raw = bytearray(pickle.dumps({"loss": [1.0]}))
    elif kind == "noise":
        raw = bytearray(rng.bytes(len(raw)))
    elif kind == "twice":
        raw = raw[:place] + raw
    return f"{kind} at {place}", bytes(raw)


@dataclass(frozen=True)
class Kind:
    """A file to write, to read, and to compare what was read."""

    name: str
    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    equal: Callable[[Any, Any], bool]


def kinds() -> list[Kind]:
    """All kinds of files."""
    from empirical.networks.weights import load_weights, save_weights
    from empirical.privacy.ledger import Ledger
    from empirical.privacy.ledger import read as read_ledger
    from empirical.recipe import Recipe
    from empirical.studies.cells import Cell, Records
    from empirical.studies.setting import Setting

    problem, weights = random_problem(0, n=5, d=3), random_weights(0, d=3)
    schedule = Schedule.fft(time=0.2, sigma=0.3, clip=1.0)
    run = euler_maruyama(problem, weights, schedule, dt=0.01, paths=3, rng=0)
    config = {"dt": 0.01, "name": "a run"}
    arrays = {"steps": np.arange(5), "scalars": np.linspace(0, 1, 200)}
    cells = [Cell(Setting(), Recipe(), seed) for seed in range(3)]

    def write_npz(path: Path) -> None:
        np.savez(path, X=problem.X, y=problem.y, W=weights.W, v=weights.v)

    def read_npz(path: Path) -> list[np.ndarray | None]:
        found, W, v = from_npz(path)
        return [found.X, found.y, W, v]

    def net() -> Any:
        import torch

        torch.manual_seed(0)
        return torch.nn.Linear(7, 3)

    def read_weights(path: Path) -> list[np.ndarray]:
        module = net()
        load_weights(path, module)
        return [value.detach().numpy() for value in module.state_dict().values()]

    def write_ledger(path: Path) -> None:
        from tests.empirical.privacy.test_ledger import PLAN

        with Ledger.create(path, PLAN) as ledger:
            ledger.claim("lp", 20)
            ledger.claim("fft", 3)

    def write_cells(path: Path) -> None:
        with Records(path) as records:
            for cell in cells:
                records.add(cell, ({"test_accuracy": cell.seed / 7}, None))

    def read_cells(path: Path) -> list[Any]:
        with Records(path) as records:
            return [records.get(cell) for cell in cells]

    same = lambda a, b: all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))  # noqa: E731

    def read_grid(path: Path) -> Any:
        from empirical.studies.sweeps import FINETUNINGS
        from langevin.sweeps import SIMULATIONS, Grid

        grid, out = Grid.read(path, {"simulate": lambda: SIMULATIONS, "finetune": lambda: FINETUNINGS})
        return grid.cells, out

    return [
        # nothing tells another grid from a damaged one
        Kind("grid.toml", lambda p: p.write_text(GRID), read_grid, lambda a, b: True),
        Kind("data.npz", write_npz, read_npz, same),
        Kind("features.npz", write_npz, lambda p: list(files.read(p).arrays.values()), same),
        Kind("run.nc", lambda p: save(run, p), load, lambda a, b: a.identical(b)),
        Kind(
            "checkpoint",
            lambda p: checkpoints.save_checkpoint(p, config, arrays),
            lambda p: list(
                checkpoints.load_checkpoint(p, config, {"steps": (5,), "scalars": (-1,)}).values()
            ),
            same,
        ),
        Kind("body.npz", lambda p: save_weights(p, net()), read_weights, same),
        Kind("ledger", write_ledger, read_ledger, _earlier),
        # a line that is cut off, or lost, is computed again
        Kind("cells", write_cells, read_cells, _some),
    ]


def _earlier(found: Any, whole: Any) -> bool:
    """Cut at the end of a line it says what it once said; the head saved with the weights tells."""
    begun = [replace(whole, mechanisms=whole.mechanisms[:k]) for k in range(len(whole.mechanisms) + 1)]
    return found in begun


def _some(found: list[Any], all_: list[Any]) -> bool:
    return all(a is None or a == b for a, b in zip(found, all_, strict=True))
