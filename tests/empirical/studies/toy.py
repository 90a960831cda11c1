"""Grids with made-up results, whose cells wait or die on demand; light, as each worker imports it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from empirical.data.shift import Shift
from empirical.recipe import Recipe
from empirical.studies.cells import Cell
from empirical.studies.grid import TUNING, Grid
from empirical.studies.setting import Setting

SETTING = Setting(shift=Shift(rotation=20), widths=(8,), epochs=1)


def make_grid(**options: Any) -> Grid:
    small: dict[str, Any] = dict(methods=("fft", "lp-fft"), shares=(0.5,), seeds=3, trials=4, tuning_seeds=2)
    return Grid(SETTING, Recipe(steps=4), **(small | options))


def made_up(setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
    """A number that differs from cell to cell."""
    digits = int(Cell(setting, recipe, seed).key, 16)
    return {"test_accuracy": digits % 1009 / 1009, "spent": recipe.epsilon}


def deadly(setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
    if seed == 1 and recipe.method == "fft":
        os._exit(3)
    return made_up(setting, recipe, seed)


def gated(setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
    """Made-up results; those of the second tuning seed wait for a file."""
    while seed == TUNING + 1 and not Path(os.environ["GATE"]).exists():
        time.sleep(0.01)
    return made_up(setting, recipe, seed)
