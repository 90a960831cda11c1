"""What a grid of fine-tunings compares, tuned fairly: every arm has as many trials, and the same seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from empirical.recipe import METHODS, Recipe
from empirical.studies.setting import Setting
from langevin.support import validate

if TYPE_CHECKING:
    from empirical.studies.cells import Cell

# "fft-drop": full fine-tuning whose learning rate drops half-way, the control for "lp-fft"
LABELS = (*METHODS, "fft-drop")
# tuning has seeds of its own
TUNING = 10_000
_LOWEST_DROP = 1 / 16
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Arm:
    """An arm of a comparison: a method, with a share for "lp-fft".

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
    """Arms by budgets by seeds, each pair of arm and budget tuned with the same number of trials.

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
        All that the arms share. Its method, share, budget and learning rates are replaced.
    methods : sequence of str
        Methods to compare; fft-drop, the control, is fft whose learning rate drops half-way.
    epsilons : sequence of float
        Budgets; inf: without noise (gradients are clipped all the same).
    shares : sequence of float
        Shares of lp-fft, between 0 and 1, which are fft and lp.
    seeds : int
        Number of evaluation seeds, from 0 on, the same for every arm: differences are paired.
    trials : int
        Number of learning rates to try for each method, share and epsilon.
    tuning_seeds : int
        Number of seeds used to score each trial, disjoint from the evaluation seeds.
    lowest, highest : float
        Range of the learning rates.
    lp_lowest, lp_highest : float or None
        Range of those that train the head alone: of "lp", and of the first stage of "lp-fft". By default the
        range of the others.

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
    methods: Sequence[str] = field(
        default=("lp", "fft", "fft-drop", "lp-fft"), metadata={"choices": LABELS, "metavar": "METHOD"}
    )
    epsilons: Sequence[float] = field(default=(1.0,), metadata={"metavar": "EPSILON"})
    shares: Sequence[float] = field(default=(0.25, 0.5, 0.75), metadata={"metavar": "SHARE"})
    seeds: int = 20
    trials: int = 16
    tuning_seeds: int = 3
    lowest: float = 0.03
    highest: float = 3.0
    lp_lowest: float | None = None
    lp_highest: float | None = None

    def __post_init__(self) -> None:
        for method in self.methods:
            validate.choice("methods", method, LABELS)
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
        if not 1 <= validate.integer("seeds", self.seeds, 1) <= TUNING:
            raise ValueError(f"seeds must be at most {TUNING}, where tuning seeds start, got {self.seeds}")
        validate.integer("tuning_seeds", self.tuning_seeds, 1)
        validate.integer("trials", self.trials, 1)
        for name in ("lowest", "highest"):
            if getattr(self, f"lp_{name}") is None:
                object.__setattr__(self, f"lp_{name}", getattr(self, name))
        for start in ("", "lp_"):
            low, high = (getattr(self, start + name) for name in ("lowest", "highest"))
            if not validate.positive(f"{start}lowest", low) < validate.positive(f"{start}highest", high):
                raise ValueError(f"{start}lowest must be below {start}highest={high:g}, got {low:g}")
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
        columns = [
            _between(*self._range(arm, name), at)
            for name, at in zip(arm.tuned, (places, others), strict=False)
        ]
        method: Any = arm.method.removesuffix("-drop")
        base = replace(
            self.recipe, method=method, lp_share=arm.share, epsilon=epsilon, lr=1.0, lp_lr=None, drop=1.0
        )
        return [
            replace(base, **dict(zip(arm.tuned, rates, strict=True))) for rates in zip(*columns, strict=True)
        ]

    def _range(self, arm: Arm, name: str) -> tuple[float, float]:
        if name == "drop":
            return _LOWEST_DROP, 1.0
        if name == "lp_lr" or arm.method == "lp":
            assert self.lp_lowest is not None
            assert self.lp_highest is not None
            return self.lp_lowest, self.lp_highest
        return self.lowest, self.highest

    @property
    def cells(self) -> int:
        """Number of fine-tunings."""
        return len(self.arms) * len(self.epsilons) * (self.trials * self.tuning_seeds + self.seeds)

    def tuning(self) -> list[Cell]:
        """Return all trials, ordered by seed, because each seed requires a task and a body."""
        from empirical.studies.cells import Cell

        return [
            Cell(self.setting, recipe, TUNING + seed)
            for seed in range(self.tuning_seeds)
            for arm in self.arms
            for epsilon in self.epsilons
            for recipe in self.candidates(arm, epsilon)
        ]

    def evaluation(self, chosen: Iterable[Recipe]) -> list[Cell]:
        """Return the evaluations of the chosen recipes, ordered by seed."""
        from empirical.studies.cells import Cell

        recipes = list(chosen)
        return [Cell(self.setting, recipe, seed) for seed in range(self.seeds) for recipe in recipes]


def _between(low: float, high: float, places: np.ndarray) -> list[float]:
    """Values at ``places`` in [0, 1] on the logarithmic scale from ``low`` to ``high``."""
    return [float(f"{value:.4g}") for value in low * (high / low) ** places]
