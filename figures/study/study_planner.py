"""Plan for the study's tasks and the held-out ones: ``python -m figures.study.study_planner``.

It writes docs/study/planner.nc, which `figures.study.tab_regret` compares with what was measured. Finished
plans are kept in runs/planner.jsonl: run it again to resume. `figures.study.held_out` makes the files of the
held-out tasks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from empirical.planning.hedge import HIDDEN, VISIBLE
from figures.output import ROOT
from figures.study import held_out
from figures.study.plans import SHARES, SOURCES, Plan, kept_at, make, possible, prepare
from figures.study.regret import FILE, TASKS, measured
from langevin.support import streams
from langevin.support.machine import processor
from langevin.support.signals import Deferred
from langevin.sweeps.jobs import Jobs, Pool
from langevin.sweeps.records import Records

if TYPE_CHECKING:
    import xarray as xr

# seeds of the tasks whose rows are the same for all, and whose plans take longest
_FEW = {"fashion-1500": 5, "fashion-6000": 5}


def wanted(tasks: Sequence[str], sources: Sequence[str], seeds: int) -> Iterator[Plan]:
    """The plans of tasks, those of a task and seed together."""
    every = {task: [source for source in sources if possible(task, source)] for task in tasks}
    epsilons: list[float] = measured(TASKS[0]).epsilon.values.tolist()
    # seeds first: what a time limit leaves is of all tasks alike
    for seed in range(seeds):
        for task in tasks:
            if seed < _FEW.get(task, seeds):
                for source in every[task]:
                    yield from (Plan(source, task, seed, epsilon) for epsilon in epsilons)


def compute(plans: Sequence[Plan], kept: Records, workers: int, time_limit: float | None) -> int:
    """Make the plans that are missing; return the number of those left."""
    from tqdm import tqdm

    todo = [plan for plan in plans if not kept.done(plan)]
    end = time.monotonic() + (time_limit or np.inf)
    late = lambda: time.monotonic() > end  # noqa: E731
    apart = dict.fromkeys((plan.task, plan.seed) for plan in todo if plan.task in TASKS)
    lacking = [(at, at) for at in apart if not kept_at(*at).exists()]
    with (
        Pool(None if workers == 1 else workers, instead="pass --workers 1") as pool,
        tqdm(total=len(plans), initial=len(plans) - len(todo), disable=None) as bar,
    ):
        with pool.run(Jobs(prepare, lacking, len(lacking)), late) as results:
            deque(results, maxlen=0)
        with pool.run(Jobs(make, [(plan, plan) for plan in todo], len(todo)), late) as results:
            for finished in results:
                with Deferred():
                    for plan, outcome in finished:
                        kept.add(plan, outcome)
                bar.update(len(finished))
    return sum(not kept.done(plan) for plan in plans)


def dataset(plans: Sequence[Plan], kept: Records) -> xr.Dataset:
    """Finished plans by source, task, seed and budget; NaN where there is none."""
    import xarray as xr

    axes = {
        "source": list(dict.fromkeys(plan.source for plan in plans)),
        "task": list(dict.fromkeys(plan.task for plan in plans)),
        "seed": sorted({plan.seed for plan in plans}),
        "epsilon": sorted({plan.epsilon for plan in plans}),
    }
    shape = tuple(map(len, axes.values()))
    meanings = {
        "share": "planned share",
        "seconds": "processor time of the plan",
        "accuracy": "simulated accuracy",
        "as_good": "whether the plan calls the share as good as its best",
        VISIBLE: "simulated accuracy if features hide nothing",
        HIDDEN: "simulated accuracy if they hide directions",
    }
    data = {
        name: np.full(shape + (() if name in ("share", "seconds") else (len(SHARES),)), np.nan)
        for name in meanings
    }
    for plan in plans:
        values = kept.get(plan)
        if values is None:
            continue
        at = tuple(axis.index(getattr(plan, name)) for name, axis in axes.items())
        for name, array in data.items():
            array[at] = (
                values[name]
                if array.ndim == len(at)
                else [values.get(f"{name} {k}", np.nan) for k in range(len(SHARES))]
            )
    dims = (*axes, "lp_share")
    variables = {
        name.replace(" ", "_"): (
            dims[: array.ndim],
            array,
            {"long_name": meanings[name], "units": "s" if name == "seconds" else "1"},
        )
        for name, array in data.items()
    }
    found = xr.Dataset(variables, axes | {"lp_share": list(SHARES)})
    found.attrs = {"machine": processor(), "command": "python -m figures.study.study_planner"}
    return found


def main() -> int:
    """Compute and save."""
    p = argparse.ArgumentParser(
        prog="python -m figures.study.study_planner", description=(__doc__ or "").split("\n")[0]
    )
    every = [*TASKS, *held_out.TASKS]
    p.add_argument("--tasks", nargs="+", default=every, choices=every)
    p.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    p.add_argument("--seeds", type=int, default=20, help="of the study, from 0 on (default: all 20)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    p.add_argument("--time-limit", type=float, help="seconds after which no plan is begun")
    p.add_argument("--out", default=str(ROOT / FILE), help="file.nc; finished plans are kept in runs/")
    args = p.parse_args()
    from langevin.store import files

    out = files.check_target(args.out)
    plans = list(wanted(args.tasks, args.sources, args.seeds))
    with Records(ROOT / f"runs/{out.stem}.jsonl") as kept:
        left = compute(plans, kept, args.workers, args.time_limit)
        files.save(dataset(plans, kept), out)
        failed = {kept.failed[plan.key] for plan in plans if plan.key in kept.failed}
    for error in failed:
        print(f"failed: {error}", file=sys.stderr)
    if left:
        print(f"{left} of {len(plans)} plans are left: repeat the command to resume")
    return 1 if failed else 0


if __name__ == "__main__":
    streams.run(main)
