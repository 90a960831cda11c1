"""Grids of fine-tunings, run: trials, the best of each arm, and its evaluation."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from empirical.recipe import Recipe
from empirical.studies.arms import TUNING, Arm, Grid
from empirical.studies.cells import Cell, Records
from empirical.studies.setting import Setting
from langevin.support import validate
from langevin.support.signals import Deferred
from langevin.sweeps.jobs import Jobs, Outcome, Pool
from langevin.sweeps.parameters import plain

if TYPE_CHECKING:
    import xarray as xr

    from empirical.networks.checked import Checked
    from empirical.privacy.history import History

Compute = Callable[[Setting, Recipe, int], dict[str, float]]


def tune(grid: Grid, arm: Arm, epsilon: float, records: Records) -> tuple[Recipe, float] | None:
    """Return the trial with the highest mean test accuracy over the tuning seeds, and that accuracy.

    Of equal trials the first is chosen; a trial with a failed seed is not. None if trials are missing, or all
    failed.
    """
    best: tuple[Recipe, float] | None = None
    for recipe in grid.candidates(arm, epsilon):
        cells = [Cell(grid.setting, recipe, TUNING + seed) for seed in range(grid.tuning_seeds)]
        if not all(records.done(cell) for cell in cells):
            return None
        found = [records.get(cell) for cell in cells]
        accuracies = [values["test_accuracy"] for values in found if values is not None]
        if len(accuracies) == len(cells):
            score = float(np.mean(accuracies))
            if best is None or score > best[1]:
                best = recipe, score
    return best


def run_grid(
    grid: Grid,
    *,
    cells: str | Path | None = None,
    workers: int = 1,
    time_limit: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Tune and evaluate every arm at every budget.

    Parameters
    ----------
    grid : Grid
    cells : path, optional
        File of finished cells, read and appended to: the same call resumes an interrupted grid, and a larger
        grid computes only the new cells. Files that the setting names must not have changed.
    workers : int
        Processes, which require Dask; 1: this one, without Dask. The result does not depend on it.
    time_limit : float, optional
        Seconds after which no cell is started.
    progress : callable, optional
        Called with the number of finished cells and of all cells.
    compute : callable, optional
        From setting, recipe and seed to final measures, "test_accuracy" among them, by default
        `compute_cell`. With several workers it must be importable.

    Returns
    -------
    xarray.Dataset
        Over ``arm`` (with the coordinates ``method`` and ``share``), ``epsilon`` and ``seed``: each final
        measure, and ``spent``, the epsilon of the run; over ``arm`` and ``epsilon``: the chosen ``lr``,
        ``lp_lr`` and ``drop``, ``tuning_accuracy``, the number of ``trials``, and ``edge``, whether a chosen
        rate is at an end of its range, which then is too narrow. Values that are missing, failed or not
        applicable are NaN. The attribute ``left`` counts unfinished cells, ``failed`` failed ones.

    Raises
    ------
    RecordsError
        If ``cells`` cannot be written or trusted, or is in use.
    SweepError
        If worker processes cannot be started or compute cells.

    Examples
    --------
    >>> grid = Grid(Setting(), Recipe(), methods=["lp", "fft"], seeds=3, trials=4, tuning_seeds=1)
    >>> def compute(setting, recipe, seed):
    ...     return {"test_accuracy": 1 / (1 + recipe.lr)}
    >>> run = run_grid(grid, compute=compute)
    >>> run.test_accuracy.dims, run.lr.sel(arm="fft", epsilon=1).item(), run.edge.all().item()
    (('arm', 'epsilon', 'seed'), 0.05335, True)
    """
    workers = validate.integer("workers", workers, 1)
    late = None
    if time_limit is not None:
        end = time.monotonic() + validate.positive("time_limit", time_limit)
        late = lambda: time.monotonic() >= end  # noqa: E731
    work, done = functools.partial(_work, compute or compute_cell), 0

    with Records(cells) as records, Pool(None if workers == 1 else workers, instead="pass workers=1") as pool:

        def compute_missing(wanted: list[Cell]) -> None:
            nonlocal done
            todo = [cell for cell in wanted if not records.done(cell)]
            done += len(wanted) - len(todo)
            with pool.run(Jobs(work, [(cell, cell) for cell in todo], len(todo)), late) as results:
                for finished in results:
                    with Deferred():
                        for cell, outcome in finished:
                            records.add(cell, outcome)
                    done += len(finished)
                    if finished and progress is not None:
                        progress(done, grid.cells)

        compute_missing(grid.tuning())
        chosen = {
            (arm, epsilon): best
            for arm in grid.arms
            for epsilon in grid.epsilons
            if (best := tune(grid, arm, epsilon, records)) is not None
        }
        compute_missing(grid.evaluation(recipe for recipe, _ in chosen.values()))
        return _dataset(grid, records, chosen)


def _work(compute: Compute, cell: Cell) -> Outcome:
    return compute(cell.setting, cell.recipe, cell.seed), None


def compute_cell(setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
    """Fine-tune once, on one thread, and return the final measures and the epsilon ``spent``."""
    import torch

    from empirical.features.watch import FeatureWatch
    from empirical.train.fine_tuning import finetune

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task, body = setting.task(seed, tuning=seed >= TUNING), setting.network(seed)
        watch = None
        if setting.features:
            watch = FeatureWatch(task, body, random=setting.untrained(seed))
        run = finetune(
            task,
            body,
            recipe,
            rng=seed,
            device=setting.device,
            precision=setting.precision,
            evaluations=1,
            initial=False,
            watch=watch,
            checked=_checked(),
        )
    finally:
        torch.set_num_threads(threads)
    final = {str(name): float(v[-1]) for name, v in run.data_vars.items() if v.dims == ("step",)}
    if watch is not None:
        final |= {f"knn_{name}": accuracy for name, accuracy in watch.baselines.items()}
    return final | {"spent": _spent(run.attrs["privacy"])}


@functools.cache
def _checked() -> Checked:
    """Tests of the bodies of this process, which cells share and leave unchanged."""
    from empirical.networks.checked import Checked

    return Checked()


def _spent(privacy: str) -> float:
    from empirical.privacy.history import History, Mechanism
    from empirical.privacy.spent import events

    history = History.from_dict(json.loads(privacy))
    # stages with one multiplier and one rate spend what one stage would: every share of probing the same
    whole = [
        Mechanism(f"{place}", rate, steps, noise_multiplier)
        for place, ((noise_multiplier, rate), steps) in enumerate(events(history).items())
    ]
    return _spent_by(replace(history, mechanisms=whole))


@functools.lru_cache
def _spent_by(history: History) -> float:
    from empirical.privacy.report import account

    return account(history).epsilon


def _dataset(
    grid: Grid, records: Records, chosen: dict[tuple[Arm, float], tuple[Recipe, float]]
) -> xr.Dataset:
    import xarray as xr

    arms, epsilons = grid.arms, list(grid.epsilons)
    shape = (len(arms), len(epsilons))
    tuned = {name: np.full(shape, np.nan) for name in ("lr", "lp_lr", "drop", "tuning_accuracy")}
    measures: dict[str, np.ndarray] = {"test_accuracy": np.full((*shape, grid.seeds), np.nan)}
    edge = np.zeros(shape, dtype=bool)
    for (arm, epsilon), (recipe, score) in chosen.items():
        place = arms.index(arm), epsilons.index(epsilon)
        tuned["tuning_accuracy"][place] = score
        for name in arm.tuned:
            tried = {getattr(trial, name) for trial in grid.candidates(arm, epsilon)}
            tuned[name][place] = value = getattr(recipe, name)
            edge[place] |= name != "drop" and len(tried) > 1 and value in (min(tried), max(tried))
        for seed in range(grid.seeds):
            for name, value in (records.get(Cell(grid.setting, recipe, seed)) or {}).items():
                measures.setdefault(name, np.full((*shape, grid.seeds), np.nan))[(*place, seed)] = value
    cells = [*grid.tuning(), *grid.evaluation(recipe for recipe, _ in chosen.values())]
    failed = sum(cell.key in records.failed for cell in cells)
    by_arm = ("arm", "epsilon")
    return xr.Dataset(
        {name: ((*by_arm, "seed"), values) for name, values in measures.items()}
        | {name: (by_arm, values) for name, values in tuned.items()}
        | {"edge": (by_arm, edge), "trials": (by_arm, np.full(shape, grid.trials))},
        {
            "arm": [str(arm) for arm in arms],
            "method": ("arm", [arm.method for arm in arms]),
            "share": ("arm", [np.nan if arm.share is None else arm.share for arm in arms]),
            "epsilon": epsilons,
            "seed": np.arange(grid.seeds),
        },
        {
            "title": "grid of private fine-tunings",
            "setting": json.dumps(grid.setting.as_dict()),
            "recipe": json.dumps(plain(grid.recipe.as_dict())),
            "tuning": f"{grid.trials} trials for each arm and epsilon, of rates from {grid.lowest:g} to "
            f"{grid.highest:g} (of the head alone {grid.lp_lowest:g} to {grid.lp_highest:g}), by test "
            f"accuracy on {grid.tuning_seeds} other seed(s), not in epsilon",
            "left": grid.cells - failed - sum(records.get(cell) is not None for cell in cells),
            "failed": failed,
            "errors": json.dumps(sorted(set(records.failed.values()))),
        },
    )
