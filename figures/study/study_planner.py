"""Plan for the study's tasks and the held-out ones: ``python -m figures.study.study_planner``.

It writes docs/study/planner.nc, which `figures.tables.tab_regret` compares with what was measured. Finished
plans are kept in runs/planner.jsonl: run it again to resume. Plans in docs/study/planner.nc are not made
again either, unless --out names another file. `figures.study.held_out` makes the files of the held-out tasks.
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
from figures.study.plans import FORMAT, SHARES, SOURCES, Plan, kept_at, make, possible, prepare
from figures.study.regret import FILE, TASKS, measured
from langevin.support import streams
from langevin.support.machine import processor
from langevin.support.signals import Deferred
from langevin.sweeps.jobs import Jobs, Pool
from langevin.sweeps.records import Records

if TYPE_CHECKING:
    import xarray as xr

EVERY = [*TASKS, *held_out.TASKS]
# variables of the committed file, by their names in the records: of a plan, and of its shares
_OF_PLAN = {"share": "planned share", "seconds": "processor time of the plan"}
_OF_SHARE = {
    "accuracy": "simulated accuracy",
    "as_good": "whether the plan calls the share as good as its best",
    VISIBLE: "simulated accuracy if features hide nothing",
    HIDDEN: "simulated accuracy if they hide directions",
}
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


def dataset(plans: Sequence[Plan], kept: Records, machine: str) -> xr.Dataset:
    """Finished plans by source, task, seed and budget; NaN where there is none."""
    import xarray as xr

    axes = {
        "source": sorted({plan.source for plan in plans}, key=list(SOURCES).index),
        "task": sorted({plan.task for plan in plans}, key=EVERY.index),
        "seed": sorted({plan.seed for plan in plans}),
        "epsilon": sorted({plan.epsilon for plan in plans}),
    }
    shape = tuple(map(len, axes.values()))
    data = {name: np.full(shape, np.nan) for name in _OF_PLAN}
    data |= {name: np.full((*shape, len(SHARES)), np.nan) for name in _OF_SHARE}
    for plan in plans:
        values = kept.get(plan)
        if values is None:
            continue
        at = tuple(axis.index(getattr(plan, name)) for name, axis in axes.items())
        for name in _OF_PLAN:
            data[name][at] = values[name]
        for name in _OF_SHARE:
            data[name][at] = [values.get(f"{name} {k}", np.nan) for k in range(len(SHARES))]
    dims = (*axes, "lp_share")
    variables = {
        name.replace(" ", "_"): (
            dims[: data[name].ndim],
            data[name],
            {"long_name": meaning, "units": "s" if name == "seconds" else "1"},
        )
        for name, meaning in (_OF_PLAN | _OF_SHARE).items()
    }
    found = xr.Dataset(variables, axes | {"lp_share": list(SHARES)})
    found.attrs = {"machine": machine, "command": "python -m figures.study.study_planner", "format": FORMAT}
    return found


def records(found: xr.Dataset) -> Iterator[tuple[Plan, dict[str, float]]]:
    """Plans of a saved dataset, and the numbers of their records: the inverse of `dataset`."""
    places = found.share.stack(plan=("source", "task", "seed", "epsilon"))
    for source, task, seed, epsilon in places.plan.values[places.notnull().values]:
        at = found.sel(source=source, task=task, seed=seed, epsilon=epsilon)
        values = {name: at[name].item() for name in _OF_PLAN}
        for name in _OF_SHARE:
            of_shares = at[name.replace(" ", "_")].values
            values |= {f"{name} {k}": value for k, value in enumerate(of_shares) if np.isfinite(value)}
        yield Plan(source, task, int(seed), float(epsilon)), values


def main() -> int:
    """Compute and save."""
    p = argparse.ArgumentParser(
        prog="python -m figures.study.study_planner", description=(__doc__ or "").split("\n")[0]
    )
    p.add_argument("--tasks", nargs="+", default=EVERY, choices=EVERY)
    p.add_argument("--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES))
    p.add_argument("--seeds", type=int, default=20, help="of the study, from 0 on (default: all 20)")
    p.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes of one thread each")
    p.add_argument("--time-limit", type=float, help="seconds after which no plan is begun")
    p.add_argument("--out", default=str(ROOT / FILE), help="file.nc; finished plans are kept in runs/")
    args = p.parse_args()
    from langevin.store import files

    out = files.check_target(args.out)
    plans, machines = list(wanted(args.tasks, args.sources, args.seeds)), []
    before: dict[Plan, dict[str, float]] = {}
    with Records(ROOT / f"runs/{out.stem}.jsonl") as kept:
        if out.exists() and (saved := files.load(out)).attrs.get("format") == FORMAT:
            machines, before = saved.attrs["machine"].split("; "), dict(records(saved))
            for plan, values in before.items():
                if not kept.done(plan):
                    kept.add(plan, (values, None))
        plans = list(dict.fromkeys([*plans, *before]))
        left = compute(plans, kept, args.workers, args.time_limit)
        # what is not in the file was made here, perhaps by an earlier run that did not end
        if not machines or any(kept.done(plan) for plan in plans if plan not in before):
            machines.append(processor())
        files.save(dataset(plans, kept, "; ".join(dict.fromkeys(machines))), out)
        failed = {kept.failed[plan.key] for plan in plans if plan.key in kept.failed}
    for error in failed:
        print(f"failed: {error}", file=sys.stderr)
    if left:
        print(f"{left} of {len(plans)} plans are left: repeat the command to resume")
    return 1 if failed else 0


if __name__ == "__main__":
    streams.run(main)
