"""What following the planner would have cost: its shares on the tasks of the study, whose arms are measured.

``python -m benchmarks.planner`` plans for each task, budget and seed from features of the body that was
fine-tuned there, and keeps the shares; `regret` and `rules` set them against the study's measured accuracies.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

STUDY = Path(__file__).parents[1] / "docs" / "study"
TASKS = ("digits-rotated", "digits-dimmed", "glyphs")
# whose features, and whether the body's last layer is given beside them
DATA, INPUTS = ("private", "public"), ("features", "layer")
RULES = {"all FFT": 0.0, "all LP": 1.0, "half and half": 0.5}


def measured(task: str) -> xr.DataArray:
    """Test accuracy by share, budget and seed, as the study measured it."""
    from langevin import store

    run = store.load(STUDY / f"{task}.nc")
    arms = run.test_accuracy.sel(arm=np.isin(run.method.values, ("fft", "lp-fft", "lp")))
    return arms.swap_dims(arm="share").sortby("share").drop_vars(("arm", "method"))


def plans(task: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Planned shares over (data, inputs, epsilon), and simulated accuracies, with a last axis of shares.

    Only training images are looked at: those of the test part are what the study measures on.
    """
    from empirical import Setting, Shift, plan_share
    from langevin import store

    about = store.load(STUDY / f"{task}.nc")
    fields, recipe = json.loads(about.attrs["setting"]), json.loads(about.attrs["recipe"])
    fields |= {"shift": Shift(**fields["shift"]), "public_classes": (), "widths": tuple(fields["widths"])}
    setting = Setting(**fields)
    images, body = setting.task(seed), setting.network(seed)
    shares, budgets = measured(task).share.values, about.epsilon.values
    found = np.empty((len(DATA), len(INPUTS), len(budgets)))
    accuracy = np.empty((*found.shape, len(shares)))
    for (i, data), (j, inputs) in itertools.product(enumerate(DATA), enumerate(INPUTS)):
        part = images.train if data == "private" else images.public
        assert part is not None
        X, W = _inputs(body, images.normalised(part), inputs)
        for k, epsilon in enumerate(budgets):
            plan = plan_share(
                X,
                part.labels,
                W=W,
                epsilon=float(epsilon),
                samples=len(images.train),
                shares=shares.tolist(),
                theory=False,
                rng=seed,
                **{name: recipe[name] for name in ("delta", "clip", "steps", "batch")},
            )
            found[i, j, k], accuracy[i, j, k] = plan.share, plan.accuracy.mean(1)
    return found, accuracy


def _inputs(body: Any, images: np.ndarray, inputs: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Frozen features; or what the body's last layer sees, a column of ones for its bias, and that layer."""
    import torch

    from empirical import embed

    if inputs == "features":
        return embed(body, images), None
    *below, layer, _ = body
    assert isinstance(layer, torch.nn.Linear)
    X = embed(torch.nn.Sequential(*below), images)
    W = torch.hstack([layer.weight, layer.bias[:, None]]).detach().numpy()
    return np.column_stack([X, np.ones(len(X), X.dtype)]), W


def _job(job: tuple[str, int]) -> tuple[np.ndarray, np.ndarray]:
    import torch

    torch.set_num_threads(1)
    return plans(*job)


def compute(seeds: int, workers: int) -> xr.Dataset:
    """Plans for every task, seed and budget."""
    import xarray as xr
    from tqdm import tqdm

    jobs = [(task, seed) for task in TASKS for seed in range(seeds)]
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        done = list(tqdm(pool.map(_job, jobs), total=len(jobs), disable=None))
    dims = ("task", "seed", "data", "inputs", "epsilon")
    first = measured(TASKS[0])
    shape = (len(TASKS), seeds)
    found, accuracy = (np.array(part).reshape(*shape, *part[0].shape) for part in zip(*done, strict=True))
    return xr.Dataset(
        {
            "share": (dims, found, {"long_name": "planned share", "units": "1"}),
            "accuracy": ((*dims, "lp_share"), accuracy, {"long_name": "simulated held-out accuracy"}),
        },
        {
            "task": list(TASKS),
            "seed": np.arange(seeds),
            "data": list(DATA),
            "inputs": list(INPUTS),
            "epsilon": first.epsilon.values,
            "lp_share": first.share.values,
        },
        {"title": "plans for the tasks of the study", "command": "python -m benchmarks.planner"},
    )


def main() -> int:
    p = argparse.ArgumentParser(
        prog="python -m benchmarks.planner", description=(__doc__ or "").split("\n")[0]
    )
    p.add_argument("--seeds", type=int, default=20, help="of the study, from 0 on (default: all 20)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    p.add_argument("--out", default=str(STUDY / "planner.nc"), help="file.nc")
    args = p.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    from langevin import store

    out = store.check_target(args.out)
    print(store.save(compute(args.seeds, args.workers), out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
