"""Plan for the study's tasks: ``python -m figures.study.study_planner``, an hour on two cores.

It writes docs/study/planner.nc, which `figures.study.tab_regret` compares with what was measured there.
Run it again to resume.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.output import ROOT
from figures.study.regret import FILE, TASKS, measured
from langevin.support import streams
from langevin.support.machine import processor
from langevin.sweeps import Grid, run_sweep
from langevin.sweeps.grid import Kind, Layout, Values, Variable
from langevin.sweeps.parameters import parameters
from langevin.sweeps.store import FINISHED

if TYPE_CHECKING:
    import xarray as xr

# whose features, and whether the body's last layer is given separately from its inputs
SOURCES = {
    "private features": ("train", False),
    "private, last layer": ("train", True),
    "public features": ("public", False),
}


def inputs(task: str, seed: int, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Inputs, labels, a layer or None for the planner, and the number of private training images.

    Only training images are used: the study measures on the test images.
    """
    import torch

    from empirical import Setting, Shift, embed
    from langevin.store import files

    fields = json.loads(files.load(ROOT / f"docs/study/{task}.nc").attrs["setting"])
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    setting = Setting(**fields | lists | {"shift": Shift(**fields["shift"])})
    images, body = setting.task(seed), setting.network(seed)
    part, with_layer = SOURCES[source]
    known = getattr(images, part)
    seen = images.normalised(known)
    if not with_layer:
        X = embed(body, seen)
        # neurons that are never active tell nothing, and are refused
        return X[:, np.ptp(X, axis=0) > 0], known.labels, None, len(images.train)
    assert isinstance(body, torch.nn.Sequential)
    *below, layer, _ = body
    assert isinstance(layer, torch.nn.Linear)
    X = embed(torch.nn.Sequential(*below), seen)
    # a column of ones for the bias
    W = torch.hstack([layer.weight, layer.bias[:, None]]).detach().numpy()
    return np.column_stack([X, np.ones(len(X), X.dtype)]), known.labels, W, len(images.train)


@dataclass(frozen=True)
class Parameters:
    """What a plan is made for."""

    source: str = "private features"
    task: str = TASKS[0]
    seed: int = 0


@dataclass(frozen=True)
class Recorded:
    """Everything is kept of each plan."""


class Plans(Kind):
    """Plans for every budget of the study, by source, task and seed."""

    name = "plan"
    parameters = parameters(Parameters)
    record = Recorded
    packages = ("torch",)

    def layout(self, grid: Grid) -> Layout:
        """Planned shares, and the accuracies simulated for each share."""
        first = measured(TASKS[0])
        coords = {"epsilon": first.epsilon.values, "lp_share": first.share.values}
        shape = tuple(len(values) for values in coords.values())
        share = Variable(("epsilon",), shape[:1], {"long_name": "planned share", "units": "1"})
        accuracy = Variable(tuple(coords), shape, {"long_name": "simulated accuracy", "units": "1"})
        return Layout({"share": share, "accuracy": accuracy}, {n: ((n,), v, {}) for n, v in coords.items()})

    def compute(self, values: Values, record: Recorded) -> tuple[dict[str, np.ndarray], None]:
        """Plan for each budget."""
        import torch

        from empirical import plan_share
        from langevin.store import files

        torch.set_num_threads(1)
        task, seed = values["task"], values["seed"]
        known = measured(task)
        recipe = json.loads(files.load(ROOT / f"docs/study/{task}.nc").attrs["recipe"])
        X, y, W, samples = inputs(task, seed, values["source"])
        settings: dict[str, Any] = {name: recipe[name] for name in ("delta", "clip", "steps", "batch")}
        settings |= dict(samples=samples, shares=known.share.values.tolist(), theory=False, rng=seed)
        # the study's head
        settings |= {"heads": ["gaussian"]}
        plans = [
            plan_share(X, y, W=W, epsilon=float(epsilon), **settings) for epsilon in known.epsilon.values
        ]
        share, accuracy = [plan.share for plan in plans], [plan.accuracy.mean(1) for plan in plans]
        return {"share": np.array(share), "accuracy": np.array(accuracy)}, None


def compute(kept: Path, seeds: int, workers: int) -> xr.Dataset:
    """Plan for every source, task, seed and budget that the sweep in ``kept`` lacks."""
    from tqdm import tqdm

    sweep = {"source": list(SOURCES), "seed": {"count": seeds}, "task": list(TASKS)}
    grid = Grid(Plans(), sweep)
    with tqdm(total=grid.cells, disable=None) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done - bar.n)

        return run_sweep(grid, kept, workers=workers, progress=progress).load()


def main() -> int:
    """Compute and save."""
    p = argparse.ArgumentParser(
        prog="python -m figures.study.study_planner", description=(__doc__ or "").split("\n")[0]
    )
    p.add_argument("--seeds", type=int, default=20, help="of the study, from 0 on (default: all 20)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    p.add_argument("--out", default=str(ROOT / FILE), help="file.nc; unfinished plans are kept in runs/")
    args = p.parse_args()
    from langevin.store import files

    out = files.check_target(args.out)
    run = compute(ROOT / f"runs/{out.stem}.zarr", args.seeds, args.workers)
    plans = run[["share", "accuracy"]].transpose("source", "task", "seed", "epsilon", "lp_share")
    plans.attrs = {"machine": processor(), "command": "python -m figures.study.study_planner"}
    files.save(plans, out)
    errors = set(run.error.values[run.status.values != FINISHED].tolist())
    for error in errors:
        print(f"failed: {error}", file=sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    streams.run(main)
