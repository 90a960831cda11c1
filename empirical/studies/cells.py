"""Cells of grids of fine-tunings: what their stored results are found by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from empirical.recipe import Recipe
from empirical.studies.setting import Setting
from langevin.sweeps.records import Records, RecordsError

__all__ = ["Cell", "Records", "RecordsError"]

# of what a cell means: cells of other versions are computed again
_FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One fine-tuning of a grid."""

    setting: Setting
    recipe: Recipe
    seed: int

    @property
    def key(self) -> str:
        """Digest of everything that the result depends on."""
        about = dict(version=_FORMAT, setting=self.setting.as_dict(), recipe=self.recipe.as_dict())
        text = json.dumps(about | {"seed": self.seed}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def about(self) -> dict[str, Any]:
        """What its line in the records says."""
        return {"recipe": self.recipe.as_dict(), "seed": self.seed}
