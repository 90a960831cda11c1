"""Grids of fine-tunings, tuned fairly: every arm has the same number of trials and the same seeds."""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from empirical.recipe import METHODS, Recipe
from empirical.records import Cell, Records
from empirical.setting import Setting
from langevin import _validate
from langevin._engine import Deferred
from langevin.sweeps.jobs import Jobs, Outcome, Pool
from langevin.sweeps.parameters import plain

if TYPE_CHECKING:
    import xarray as xr

Compute = Callable[[Setting, Recipe, int], dict[str, float]]

# "fft-drop": full fine-tuning whose learning rate drops half-way, the control for "lp-fft"
LABELS = (*METHODS, "fft-drop")
# tuning has seeds of its own
TUNING = 10_000
_LOWEST_DROP = 1 / 16
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Arm:
    """What is compared: a method, for "lp-fft" with a share.

    Attributes
    ----------
    method : str
        One of `LABELS`.
    share : float or None
        Share of the steps, and of the budget, for probing; None for methods without one.
    """

    method: str
    share: float | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.share:g}" if self.method == "lp-fft" else self.method

    @property
    def tuned(self) -> tuple[str, ...]:
        """Parameters of the recipe that are tuned."""
        return {"lp-fft": ("lp_lr", "lr"), "fft-drop": ("lr", "drop")}.get(self.method, ("lr",))


@dataclass(frozen=True)
class Grid:
    """Arms by budgets by seeds; each pair of arm and budget is tuned with the same number of trials.

    A trial is a learning rate; for "lp-fft" it is a pair of rates, one per stage, and for "fft-drop" a rate
    and the factor, from 1/16 to 1, that multiplies it in the second half. Rates are evenly spaced on a
    logarithmic scale over the same range; pairs form a lattice, so that each of the two numbers takes as many
    values as a single rate. The trial with the highest mean test accuracy over the tuning seeds wins. Tuning
    seeds start at 10,000; each has its own split, body and noise. Splits are of the same images unless these
    are synthetic; tuning never uses published test images (`Setting.task`). As in the paper, tuning costs no
    privacy budget: methods are compared at their best, which a practitioner would not reach for that
    epsilon.

    Parameters
    ----------
    setting : Setting
    recipe : Recipe
        What the arms share; its method, share, budget and learning rates are replaced.
    methods : sequence of str
        Of `LABELS`.
    epsilons : sequence of float
        Budgets; inf: no noise, but the same clipping.
    shares : sequence of float
        Between 0 and 1, for "lp-fft"; 0 and 1 are "fft" and "lp".
    seeds : int
        Evaluation seeds 0 to ``seeds - 1``, the same for every arm: differences are paired.
    trials : int
        For each arm and budget.
    tuning_seeds : int
    lowest, highest : float
        Range of the learning rates.

    Raises
    ------
    ValueError, TypeError
        On values out of range, or a combination that makes no recipe.

    Examples
    --------
    >>> grid = Grid(Setting(), Recipe(), methods=["fft", "lp-fft"], shares=[0.25, 0.5], trials=4)
    >>> [str(arm) for arm in grid.arms]
    ['fft', 'lp-fft 0.25', 'lp-fft 0.5']
    >>> {len(grid.candidates(arm, 1.0)) for arm in grid.arms}
    {4}
    """

    setting: Setting
    recipe: Recipe
    methods: Sequence[str] = ("lp", "fft", "fft-drop", "lp-fft")
    epsilons: Sequence[float] = (1.0,)
    shares: Sequence[float] = (0.25, 0.5, 0.75)
    seeds: int = 20
    trials: int = 16
    tuning_seeds: int = 3
    lowest: float = 0.03
    highest: float = 3.0

    def __post_init__(self) -> None:
        for method in self.methods:
            _validate.choice("methods", method, LABELS)
        for name in ("methods", "epsilons"):
            given = list(getattr(self, name))
            if not given or len(set(given)) < len(given):
                raise ValueError(f"{name} must be non-empty without repetitions, got {given}")
        bad = [share for share in self.shares if not 0 < share < 1]
        if "lp-fft" in self.methods and (bad or not self.shares or len(set(self.shares)) < len(self.shares)):
            raise ValueError(
                f"shares must be different and strictly between 0 and 1, got {list(self.shares)}; for shares "
                "0 and 1 use the methods 'fft' and 'lp'"
            )
        if not 1 <= _validate.integer("seeds", self.seeds, 1) <= TUNING:
            raise ValueError(f"seeds must be at most {TUNING}, where tuning seeds start, got {self.seeds}")
        _validate.integer("tuning_seeds", self.tuning_seeds, 1)
        _validate.integer("trials", self.trials, 1)
        if not _validate.positive("lowest", self.lowest) < _validate.positive("highest", self.highest):
            raise ValueError(f"lowest must be below highest={self.highest:g}, got {self.lowest:g}")
        for arm in self.arms:
            for epsilon in self.epsilons:
                self.candidates(arm, epsilon)

    @property
    def arms(self) -> list[Arm]:
        """Arms in the order of the methods, with increasing shares."""
        fixed = {"lp": 1.0, "fft": 0.0}
        return [
            Arm(method, share)
            for method in self.methods
            for share in (sorted(self.shares) if method == "lp-fft" else [fixed.get(method)])
        ]

    def candidates(self, arm: Arm, epsilon: float) -> list[Recipe]:
        """The ``trials`` different recipes of one arm at one budget."""
        # a Kronecker lattice in the unit square
        places = (np.arange(self.trials) + 0.5) / self.trials
        others = (0.5 / self.trials + _GOLDEN * np.arange(self.trials)) % 1
        ranges = {"drop": (_LOWEST_DROP, 1.0)}
        columns = [
            _between(*ranges.get(name, (self.lowest, self.highest)), at)
            for name, at in zip(arm.tuned, (places, others), strict=False)
        ]
        method: Any = arm.method.removesuffix("-drop")
        base = replace(
            self.recipe, method=method, lp_share=arm.share, epsilon=epsilon, lr=1.0, lp_lr=None, drop=1.0
        )
        return [
            replace(base, **dict(zip(arm.tuned, rates, strict=True))) for rates in zip(*columns, strict=True)
        ]

    @property
    def cells(self) -> int:
        """Number of fine-tunings."""
        return len(self.arms) * len(self.epsilons) * (self.trials * self.tuning_seeds + self.seeds)

    def tuning(self) -> list[Cell]:
        """All trials, seed by seed, because each seed needs its own task and body."""
        return [
            Cell(self.setting, recipe, TUNING + seed)
            for seed in range(self.tuning_seeds)
            for arm in self.arms
            for epsilon in self.epsilons
            for recipe in self.candidates(arm, epsilon)
        ]

    def evaluation(self, chosen: Iterable[Recipe]) -> list[Cell]:
        """The evaluation of chosen recipes, seed by seed."""
        recipes = list(chosen)
        return [Cell(self.setting, recipe, seed) for seed in range(self.seeds) for recipe in recipes]


def _between(low: float, high: float, places: np.ndarray) -> list[float]:
    """Values at ``places`` in [0, 1] on the logarithmic scale from ``low`` to ``high``."""
    return [float(f"{value:.4g}") for value in low * (high / low) ** places]


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
    workers = _validate.integer("workers", workers, 1)
    late = None
    if time_limit is not None:
        end = time.monotonic() + _validate.positive("time_limit", time_limit)
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

    from empirical.features import FeatureWatch
    from empirical.train import finetune

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        task, body = setting.task(seed, tuning=seed >= TUNING), setting.network(seed)
        watch = None
        if setting.features:
            fresh = setting.untrained().network(seed)
            watch = FeatureWatch(task, body, random=fresh)
        run = finetune(
            task,
            body,
            recipe,
            rng=seed,
            device=setting.device,
            precision=setting.precision,
            evaluations=1,
            watch=watch,
        )
    finally:
        torch.set_num_threads(threads)
    final = {str(name): float(v[-1]) for name, v in run.data_vars.items() if v.dims == ("step",)}
    if watch is not None:
        final |= {f"knn_{name}": accuracy for name, accuracy in watch.baselines.items()}
    return final | {"spent": _spent(run.attrs["privacy"])}


@functools.lru_cache
def _spent(privacy: str) -> float:
    from empirical.accounting import account
    from empirical.history import History

    return account(History.from_dict(json.loads(privacy))).epsilon


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
            f"{grid.highest:g}, by test accuracy on {grid.tuning_seeds} other seed(s), not in epsilon",
            "left": grid.cells - failed - sum(records.get(cell) is not None for cell in cells),
            "failed": failed,
            "errors": json.dumps(sorted(set(records.failed.values()))),
        },
    )
