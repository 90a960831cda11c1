"""How a fine-tuning runs: seed, device, precision, evaluations, checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from empirical.networks.checked import Checked
from langevin.support import validate
from langevin.support.rng import RNG

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["single", "mixed"]

PRECISIONS = ("single", "mixed")

# measures of body and head by name, such as an `empirical.FeatureWatch`; its method `again`, if it
# has one, is called with the head alone while the body stays as it was
Watch = Callable[["nn.Module", "nn.Linear"], Mapping[str, float]]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a fine-tuning runs, apart from task, body and recipe.

    Parameters
    ----------
    rng : int, Generator or None
        Seed of head, batches and noise (SPEC 7). Take None, fresh entropy, for weights that you publish: who
        knows the seed can subtract the noise.
    device : str
        "cpu", "cuda" or "cuda:<number>".
    evaluations : int
        Number of evaluations after the one at the start, about equally spaced; each saves a checkpoint.
    watch : callable, optional
        Measures of the features, taken at each evaluation.
    precision : {"single", "mixed"}
        "mixed" uses bfloat16 where no guarantee depends on it: evaluations, frozen features, training without
        clipping, and per-sample gradients held in memory (their norms and sums are in single precision).
        Ghost clipping and the closed form compute norms and sums separately, with different rounding errors,
        and stay in single precision.
    chunk : int, optional
        Samples of a batch to process at once; by default as many as memory allows.
    checkpoint : path, optional
        File that receives the state at each evaluation, every minute and on interruption. The privacy ledger
        is next to it, ending in ``.ledger``, and records steps before their noise is drawn.
    resume : bool
        Continue from ``checkpoint``, to the same result, bit for bit on a CPU.
    initial : bool
        Whether to evaluate before the first step as well.
    checked : Checked, optional
        What tests of bodies found in earlier runs, and receives what they find in this one; by default every
        run tests its body.
    """

    rng: RNG = 0
    device: str = "cpu"
    evaluations: int = 10
    watch: Watch | None = None
    precision: Precision = "single"
    chunk: int | None = None
    checkpoint: str | Path | None = None
    resume: bool = False
    initial: bool = True
    checked: Checked | None = None

    def __post_init__(self) -> None:
        validate.choice("precision", self.precision, PRECISIONS)
        validate.device(self.device)
        object.__setattr__(self, "evaluations", validate.integer("evaluations", self.evaluations, 1))
        if self.chunk is not None:
            object.__setattr__(self, "chunk", validate.integer("chunk", self.chunk, 1))
