"""Sweeps of fine-tunings: each cell is a run of DP-SGD, measured at its end."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from empirical.data.shift import Shift
from empirical.recipe import Recipe
from empirical.studies.setting import Setting
from langevin.data.files import is_file
from langevin.support import validate
from langevin.support.rng import generator
from langevin.sweeps.grid import Grid, Kind, Layout, Values, Variable
from langevin.sweeps.parameters import Parameter, parameters

_SHIFT = [field.name for field in fields(Shift)]
_SPENT = ("epsilon that the run comes to", "1")
# parameters that name files and folders, unlike "hub" and the like
_PATHS = ("data", "folder", "weights", "bodies")


def measures() -> dict[str, tuple[str, str]]:
    """Measures of a fine-tuning that can be recorded: meaning and units."""
    from empirical.features.watch import MEASURES
    from empirical.train.fine_tuning import EVALUATIONS

    return EVALUATIONS | {name: (m.meaning, m.units) for name, m in MEASURES.items()} | {"spent": _SPENT}


@dataclass(frozen=True)
class Recorded:
    """The record of each fine-tuning at its end.

    Parameters
    ----------
    variables : tuple of str
        Of `measures`: accuracies, losses, ``spent``, and with ``features`` those of features.
    """

    variables: tuple[str, ...] = ("test_accuracy", "spent")

    def __post_init__(self) -> None:
        if not self.variables or len(set(self.variables)) < len(self.variables):
            raise ValueError(f"variables must be different ones, got {list(self.variables)}")
        for name in self.variables:
            validate.choice("variables", name, measures())


def _parameters() -> dict[str, Parameter]:
    found = parameters(Setting, without=("shift",), unrecorded=("bodies",))
    return found | parameters(Shift) | parameters(Recipe) | {"seed": Parameter("seed", int, 0, "seed")}


class FineTunings(Kind):
    """Grids over the parameters of `Setting`, `Shift` and `Recipe`, and ``seed``.

    Bodies are pre-trained once per seed and kept next to the store, unless ``bodies`` names another folder.
    """

    name = "finetune"
    parameters = _parameters()
    record = Recorded
    packages = ("torch", "opacus", "dp-accounting")
    # PyTorch's generator and number of threads belong to the process; each run checks its own memory
    alone = True

    def check(self, values: Values, record: Recorded) -> None:
        """Refuse an invalid combination of values."""
        setting, _ = _described(values)
        try:
            generator(values["seed"], "seed")
        except ValueError:
            raise ValueError(f"seed must be a seed, a whole number from 0; got {values['seed']!r}") from None
        from empirical.features.watch import MEASURES

        for name in record.variables:
            if name in MEASURES and not setting.features:
                raise ValueError(f"variables: {name!r} needs features = true")

    def idle(self, values: Values) -> Collection[str]:
        """Parameters without effect, given the values of the others."""
        return _described(values)[1].idle

    def layout(self, grid: Grid) -> Layout:
        """A number for each measure."""
        variables = {}
        for name, (meaning, units) in measures().items():
            if name in grid.record.variables:
                variables[name] = Variable((), (), {"long_name": meaning, "units": units})
        return Layout(variables)

    def files(self, values: Values) -> list[str]:
        """Return the files of features and of the body's weights, if any."""
        weights = values["weights"]
        own = [weights] if weights is not None and weights.endswith(".npz") else []
        return own + ([values["data"]] if is_file(values["data"]) else [])

    def located(self, values: Values, out: Path) -> Values:
        """Return the values with absolute paths, and a folder for bodies."""
        values = values | {"bodies": values["bodies"] or f"{out}.bodies"}
        given = {name: values[name] for name in _PATHS if values[name] is not None}
        there = self.files(values)
        return values | {
            n: str(Path(v).resolve()) for n, v in given.items() if n not in ("weights", "data") or v in there
        }

    def compute(self, values: Values, record: Recorded) -> tuple[dict[str, np.ndarray], str | None]:
        """Fine-tune on one thread."""
        from empirical.studies.grid import compute_cell

        setting, recipe = _described(values)
        found = compute_cell(setting, recipe, values["seed"])
        return {name: np.array(found[name]) for name in record.variables}, None


def _described(values: Values) -> tuple[Setting, Recipe]:
    shift = Shift(**{name: values[name] for name in _SHIFT})
    setting = {field.name: values[field.name] for field in fields(Setting) if field.name != "shift"}
    recipe = {field.name: values[field.name] for field in fields(Recipe)}
    return Setting(shift=shift, **setting), Recipe(**recipe)


FINETUNINGS = FineTunings()
