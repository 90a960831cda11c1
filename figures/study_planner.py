"""Plans for the tasks of the study: ``python -m figures.study_planner``, about an hour on two cores.

It writes docs/study/planner.nc, which `figures.tab_regret` sets against what was measured there; repeated,
it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.environment import processor
from figures.output import ROOT
from langevin import _streams

if TYPE_CHECKING:
    import xarray as xr

FILE = "docs/study/planner.nc"
TASKS = ("digits-rotated", "digits-dimmed", "glyphs", "digits-inverted", "digits-turned", "glyphs-rotated")
# whose features, and whether the body's last layer is given beside what it sees
SOURCES = {
    "private features": ("train", False),
    "private, last layer": ("train", True),
    "public features": ("public", False),
}


def measured(task: str) -> xr.DataArray:
    """Test accuracy by share, budget and seed, as the study measured it."""
    from langevin import store

    run = store.load(ROOT / f"docs/study/{task}.nc")
    arms = run.test_accuracy.sel(arm=np.isin(run.method.values, ("fft", "lp-fft", "lp")))
    return arms.swap_dims(arm="share").sortby("share").drop_vars(("arm", "method"))


def inputs(task: str, seed: int, source: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, int]:
    """Inputs, labels and perhaps a layer for the planner, and the number of private training images.

    Only training images are looked at: those of the test part are what the study measures on.
    """
    import torch

    from empirical import Setting, Shift, embed
    from langevin import store

    fields = json.loads(store.load(ROOT / f"docs/study/{task}.nc").attrs["setting"])
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    setting = Setting(**fields | lists | {"shift": Shift(**fields["shift"])})
    images, body = setting.task(seed), setting.network(seed)
    part, with_layer = SOURCES[source]
    known = getattr(images, part)
    seen = images.normalised(known)
    if not with_layer:
        return embed(body, seen), known.labels, None, len(images.train)
    assert isinstance(body, torch.nn.Sequential)
    *below, layer, _ = body
    assert isinstance(layer, torch.nn.Linear)
    X = embed(torch.nn.Sequential(*below), seen)
    # a column of ones for the bias
    W = torch.hstack([layer.weight, layer.bias[:, None]]).detach().numpy()
    return np.column_stack([X, np.ones(len(X), X.dtype)]), known.labels, W, len(images.train)


def plans(source: str, task: str, seed: int) -> tuple[list[float], list[np.ndarray]]:
    """Planned shares by budget, and the accuracies simulated for each share."""
    import torch

    from empirical import plan_share
    from langevin import store

    torch.set_num_threads(1)
    recipe = json.loads(store.load(ROOT / f"docs/study/{task}.nc").attrs["recipe"])
    X, y, W, samples = inputs(task, seed, source)
    settings: dict[str, Any] = {name: recipe[name] for name in ("delta", "clip", "steps", "batch")}
    settings |= dict(samples=samples, shares=measured(task).share.values.tolist(), theory=False, rng=seed)
    found = [
        plan_share(X, y, W=W, epsilon=float(epsilon), **settings) for epsilon in measured(task).epsilon.values
    ]
    return [plan.share for plan in found], [plan.accuracy.mean(1) for plan in found]


def empty(seeds: int) -> xr.Dataset:
    """Plans of which none is made."""
    import xarray as xr

    first = measured(TASKS[0])
    coordinates = {
        "source": list(SOURCES),
        "task": list(TASKS),
        "seed": np.arange(seeds),
        "epsilon": first.epsilon.values,
        "lp_share": first.share.values,
    }
    dims = tuple(coordinates)
    shape = tuple(len(values) for values in coordinates.values())
    return xr.Dataset(
        {
            "share": (dims[:-1], np.full(shape[:-1], np.nan), {"long_name": "planned share", "units": "1"}),
            "accuracy": (dims, np.full(shape, np.nan), {"long_name": "simulated accuracy", "units": "1"}),
        },
        coordinates,
        {"machine": processor(), "command": "python -m figures.study_planner"},
    )


def compute(out: Path, seeds: int, workers: int) -> None:
    """Plan for every source, task, seed and budget that ``out`` lacks, and save after each seed."""
    from tqdm import tqdm

    from langevin import store

    run = store.load(out) if out.exists() else empty(seeds)
    places = [
        {"source": source, "task": task, "seed": seed}
        for source in SOURCES
        for seed in range(run.sizes["seed"])
        for task in TASKS
    ]
    todo = [place for place in places if run.share.sel(place).isnull().any()]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        waiting = {pool.submit(plans, **place): place for place in todo}
        for done in tqdm(as_completed(waiting), total=len(todo), disable=None):
            place = waiting[done]
            run.share.loc[place], run.accuracy.loc[place] = done.result()
            store.save(run, out)


def main() -> int:
    """Compute and save."""
    p = argparse.ArgumentParser(
        prog="python -m figures.study_planner", description=(__doc__ or "").split("\n")[0]
    )
    p.add_argument("--seeds", type=int, default=20, help="of the study, from 0 on (default: all 20)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    p.add_argument("--out", default=str(ROOT / FILE), help="file.nc, gone on with if it is there")
    args = p.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from langevin import store

    compute(store.check_target(args.out), args.seeds, args.workers)
    return 0


if __name__ == "__main__":
    _streams.run(main)
