"""Settings of a plan: budget, length and batch of DP-SGD, shares to compare, and how much to simulate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from empirical.recipe import HEADS, Head
from langevin.support import validate

# of the net that is simulated
Activation = Literal["relu", "linear"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


@dataclass(frozen=True)
class PlanSettings:
    """What `plan_share` is asked for; its fields are options of ``python -m bounds.plan``.

    Parameters
    ----------
    epsilon : float
        Budget of the whole training; neighbours differ by one sample added or removed.
    delta : float
        Delta at which epsilon is meant, below 1/samples.
    clip : float
        Per-sample gradient norm threshold.
    samples : int or None
        Number of private samples; by default as many as there are rows.
    steps : int
        Number of steps of DP-SGD, both phases together.
    batch : float or None
        Expected batch size; by default a tenth of the samples.
    shares : sequence of float
        Shares of the budget for linear probing to compare, each rounded to whole steps.
    activation : {"relu", "linear"} or None
        Activation of the layer; by default linear where there is no W and a feature is negative, as the ReLU
        would change the features, otherwise relu. A linear map on top of features adds nothing to what a head
        can tell apart.
    heads : sequence of {"gaussian", "zero", "prototype"}
        What training may start from: each is compared at every share. Of heads that noise does not tell
        apart the first is recommended.
    hedge : bool
        Without W, judge shares also by features that hide directions from probing, see `hidden_world`.
    draws : int
        Largest number of simulated runs for each share and rate.
    resolution : float
        Stop drawing once each share's difference in accuracy from the best is known to within this standard
        error, the choice of the rate included, or is four of its standard errors.
    device : str
        Where runs are simulated: cpu, or an NVIDIA GPU, cuda or cuda:<number>. They have other random numbers
        there.
    theory : bool
        Evaluate what the theorems say.
    plan_epsilon : float or None
        Spend so much of epsilon on choosing head and share by *private* held-out rows, X_test and y_test, and
        the rest on the training; X and y are public. Without W nothing hidden is then assumed.

    Raises
    ------
    ValueError, TypeError
        On values out of range.

    Examples
    --------
    >>> PlanSettings(epsilon=1.0).shares
    (0.0, 0.25, 0.5, 0.75, 1.0)
    """

    epsilon: float
    delta: float = 1e-5
    clip: float = 1.0
    samples: int | None = None
    steps: int = 100
    batch: float | None = None
    shares: Sequence[float] = field(default=(0.0, 0.25, 0.5, 0.75, 1.0), metadata={"metavar": "SHARE"})
    activation: Activation | None = None
    heads: Sequence[Head] = field(default=HEADS, metadata={"choices": HEADS, "metavar": "HEAD"})
    hedge: bool = True
    draws: int = 128
    resolution: float = 0.005
    device: str = "cpu"
    theory: bool = True
    plan_epsilon: float | None = None

    def __post_init__(self) -> None:
        found = dict(
            epsilon=validate.positive("epsilon", self.epsilon),
            clip=validate.positive("clip", self.clip),
            steps=validate.integer("steps", self.steps, 1),
            draws=validate.integer("draws", self.draws, 2),
            resolution=validate.non_negative("resolution", self.resolution),
            samples=None if self.samples is None else validate.integer("samples", self.samples, 1),
            batch=validate.positive_or_none("batch", self.batch),
            plan_epsilon=validate.positive_or_none("plan_epsilon", self.plan_epsilon),
        )
        for name, value in found.items():
            object.__setattr__(self, name, value)
        # learning rates are in proportion to its inverse, and the simulation is in single precision
        if not 1e-20 <= self.clip <= 1e20:
            raise ValueError(f"clip must lie in [1e-20, 1e20], got {self.clip:g}: take another unit of X")
        if self.plan_epsilon is not None and self.plan_epsilon >= self.epsilon:
            raise ValueError(
                f"plan_epsilon must be below epsilon={self.epsilon:g}, of which it is a part, got "
                f"{self.plan_epsilon:g}"
            )
        if self.activation is not None:
            validate.choice("activation", self.activation, ACTIVATIONS)
        validate.device(self.device)
        for name in ("theory", "hedge"):
            validate.instance(name, getattr(self, name), bool)
        heads = tuple(
            validate.choice("heads", head, HEADS) for head in validate.sequence("heads", self.heads, str)
        )
        if not heads or len(set(heads)) < len(heads):
            raise ValueError(f"heads must be one or more different ones, got {list(heads)}")
        object.__setattr__(self, "heads", heads)

    @property
    def training_epsilon(self) -> float:
        """What is left for the training."""
        return self.epsilon - (self.plan_epsilon or 0.0)

    @property
    def lengths(self) -> list[int]:
        """Steps of probing for each share, increasing."""
        given = validate.array("shares", self.shares, 1).tolist()
        for share in given:
            validate.fraction("shares", share)
        found = sorted({round(share * self.steps) for share in given})
        if len(found) < 2:
            raise ValueError(
                f"shares must be two or more that differ by a step of {self.steps}, got {given}: give "
                "others, or more steps"
            )
        return found
