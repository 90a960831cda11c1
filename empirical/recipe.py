"""Recipe of a fine-tuning with DP-SGD: method, steps, budget, learning rates, head."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from empirical.privacy.history import History, plan, release
from langevin.support import validate

Method = Literal["lp", "fft", "lp-fft", "lora", "bitfit", "sparse"]
Subset = Literal["head", "all", "lora", "bias", "sparse"]
Head = Literal["gaussian", "zero", "prototype"]
Selection = Literal["gradient", "magnitude", "last"]
Clipping = Literal["flat", "normalised"]
Engine = Literal["auto", "closed", "ghost", "hooks", "functorch", "loop"]

# what trains after the probing
SUBSETS: dict[str, Subset] = {
    "lp": "head",
    "fft": "all",
    "lp-fft": "all",
    "lora": "lora",
    "bitfit": "bias",
    "sparse": "sparse",
}
METHODS = tuple(SUBSETS)
CLIPPINGS = ("flat", "normalised")
HEADS = ("gaussian", "zero", "prototype")
SELECTIONS = ("gradient", "magnitude", "last")
# name of the step that chooses a sparse subset
SELECTION = "selection"
# learning rates unless any is given
_RATE, _PROBING_RATE = 0.25, 1.0
# well within the range of single precision
_LARGEST = 1e30
ENGINES = ("auto", "closed", "ghost", "hooks", "functorch", "loop")


@dataclass(frozen=True)
class Stage:
    """Consecutive steps that train one set of parameters.

    Attributes
    ----------
    name : str
        Name of the mechanism in the history: "lp", or the method.
    subset : {"head", "all", "lora", "bias", "sparse"}
        What trains, in addition to the head.
    steps : int
    lr : float
        Learning rate of the first step.
    drop : float
        Factor on ``lr`` in the second half of the steps.
    """

    name: str
    subset: Subset
    steps: int
    lr: float
    drop: float = 1.0

    @property
    def selects(self) -> bool:
        """Whether this step chooses a sparse subset, and trains nothing."""
        return self.name == SELECTION

    def rate(self, step: int) -> float:
        """Learning rate of ``step``, counted from 0 within the stage."""
        return self.lr * (self.drop if 2 * step >= self.steps else 1.0)


@dataclass(frozen=True)
class Recipe:
    """One fine-tuning, apart from data, network and seed.

    A step draws each of ``n`` private samples independently with probability ``q = batch / n``, clips its
    gradient over the *trained* parameters, adds noise of standard deviation ``nu clip`` to the sum, divides
    by ``batch`` and takes a step of gradient descent. ``nu`` is found from ``epsilon``, one for all steps.

    Parameters
    ----------
    method : {"lp", "fft", "lp-fft", "lora", "bitfit", "sparse"}
        What trains with the head: nothing else (lp), everything (fft), nothing and then everything (lp-fft),
        low-rank adapters (lora), biases (bitfit), or a fixed share of the weights (sparse).
    lp_share : float or None
        Share of steps and budget that probe first, in [0, 1], rounded to whole steps; by default 0.5 for
        lp-fft and 0 for the others. lp and fft admit no choice.
    steps : int
        Number of steps of DP-SGD, all stages together, the choice of a sparse subset included.
    batch : float
        Expected batch size of Poisson sampling.
    epsilon : float
        Budget of the whole run, under add-or-remove adjacency; inf: no noise.
    delta : float
        Delta at which epsilon is meant, below 1/samples.
    clip : float or None
        Per-sample gradient norm threshold; or none, without noise.
    clipping : {"flat", "normalised"}
        flat: g min(1, C/norm of g); normalised: g C/(norm of g + r) as in DP-NSGD.
    stabiliser : float
        r of normalised clipping.
    lr : float or None
        Learning rate, by default 0.25; gradients are means over the expected batch.
    lp_lr : float or None
        Learning rate of the probing; by default ``lr`` if that is given, otherwise 1.
    drop : float
        Factor on the learning rate from half-way through the last stage on: the control for two rates in two
        stages.
    momentum : float
        Momentum in [0, 1), which starts again in each stage.
    head : {"gaussian", "zero", "prototype"}
        Initial values of the new head; prototypes are class means of the features, with DP noise.
    head_scale : float
        Scale of the head: times 1/sqrt(features) the standard deviation if gaussian; norm of a class's row if
        prototype.
    prototype_share : float
        Share of the zCDP of the whole that pays for prototypes.
    rank : int
        Rank of the adapters of lora.
    density : float
        Share of the body's parameters that trains in sparse.
    selection : {"gradient", "magnitude", "last"}
        Subset of sparse: the largest entries of a noisy private gradient, which costs one of the steps; the
        largest weights; or the last layers.
    engine : {"auto", "closed", "ghost", "hooks", "functorch", "loop"}
        How per-sample gradients are clipped: in closed form for a chain of linear layers (closed); by ghost
        clipping; from per-sample gradients of Opacus's hooks, or of functorch; in one backward pass per
        sample (loop). auto: the first that applies and, tried on a few random images, agrees with the last.

    Raises
    ------
    ValueError, TypeError
        On values out of range, or settings that contradict each other.

    Examples
    --------
    >>> recipe = Recipe("lp-fft", lp_share=0.25, steps=100, epsilon=1.0)
    >>> [(stage.name, stage.steps) for stage in recipe.stages]
    [('lp', 25), ('lp-fft', 75)]
    """

    method: Method = "lp-fft"
    lp_share: float | None = None
    steps: int = 100
    batch: float = 110.0
    epsilon: float = 1.0
    delta: float = 1e-4
    clip: float | None = 1.0
    clipping: Clipping = "flat"
    stabiliser: float = 0.01
    lr: float | None = None
    lp_lr: float | None = None
    drop: float = 1.0
    momentum: float = 0.0
    head: Head = "gaussian"
    head_scale: float = 1.0
    prototype_share: float = 0.1
    rank: int = 4
    density: float = 0.1
    selection: Selection = "gradient"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        validate.choice("method", self.method, METHODS)
        validate.choice("clipping", self.clipping, CLIPPINGS)
        validate.choice("head", self.head, HEADS)
        validate.choice("selection", self.selection, SELECTIONS)
        validate.choice("engine", self.engine, ENGINES)
        numbers = dict(
            steps=validate.integer("steps", self.steps, 1),
            batch=validate.positive("batch", self.batch),
            epsilon=math.inf if _unbounded(self.epsilon) else validate.positive("epsilon", self.epsilon),
            delta=validate.positive("delta", self.delta),
            clip=validate.positive_or_none("clip", self.clip),
            stabiliser=validate.positive("stabiliser", self.stabiliser),
            lr=validate.positive_or_none("lr", self.lr),
            lp_lr=validate.positive_or_none("lp_lr", self.lp_lr),
            drop=validate.positive("drop", self.drop),
            momentum=validate.fraction("momentum", self.momentum),
            head_scale=validate.positive("head_scale", self.head_scale),
            prototype_share=validate.positive("prototype_share", self.prototype_share),
            rank=validate.integer("rank", self.rank, 1),
            density=validate.positive("density", self.density),
        )
        for name, value in numbers.items():
            object.__setattr__(self, name, value)
        for name in ("delta", "momentum", "prototype_share"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name} must be below 1, got {getattr(self, name):g}")
        for name in ("lr", "lp_lr", "head_scale"):
            value = getattr(self, name)
            if value is not None and value > _LARGEST:
                raise ValueError(f"{name} must be at most {_LARGEST:g}, in single precision, got {value:g}")
        if self.density > 1:
            raise ValueError(f"density must lie in (0, 1], got {self.density:g}")
        if self.clip is None and (self.private or self.clipping == "normalised"):
            raise ValueError(
                f"clip must be positive with epsilon={self.epsilon:g} and clipping={self.clipping!r}, got "
                "None: without a bound on gradients no noise gives privacy"
            )
        object.__setattr__(self, "lp_share", self._share())
        if self.selects and self.steps - self._probing < 2:
            raise ValueError(
                f"steps must leave one to select and one to train after {self._probing} of linear probing, "
                f"got {self.steps}: use more steps"
            )

    def _share(self) -> float:
        fixed = {"lp": 1.0, "fft": 0.0}.get(self.method)
        if self.lp_share is None:
            return {"lp": 1.0, "lp-fft": 0.5}.get(self.method, 0.0)
        share = validate.fraction("lp_share", self.lp_share)
        if fixed is not None and share != fixed:
            raise ValueError(f"lp_share must be {fixed:g} for {self.method!r}, got {share:g}: use 'lp-fft'")
        if 0 < share < 1 and round(share * self.steps) in (0, self.steps):
            raise ValueError(
                f"lp_share must leave a step to each stage, got {share:g} of {self.steps} step(s): use 0, "
                "1, or more steps"
            )
        return share

    @property
    def private(self) -> bool:
        """Whether there is noise."""
        return self.epsilon < math.inf

    @property
    def idle(self) -> dict[str, str]:
        """Settings that have no effect, given the others, and what makes them have none."""
        found = {}
        if not self._probing:
            found["lp_lr"] = "where nothing probes"
        elif self._probing == self.steps and self.lp_lr is not None:
            found["lr"] = "next to lp_lr, the rate of all steps"
        if self.method != "lora":
            found["rank"] = f"with method {self.method!r}"
        if self.method != "sparse":
            found["density"] = found["selection"] = f"with method {self.method!r}"
        if self.clipping != "normalised":
            found["stabiliser"] = f"with clipping {self.clipping!r}"
        if self.head != "prototype":
            found["prototype_share"] = f"with head {self.head!r}"
        if self.head == "zero":
            found["head_scale"] = "with head 'zero'"
        if not self.private:
            found["delta"] = "without noise"
        return found

    @property
    def _probing(self) -> int:
        assert self.lp_share is not None
        return round(self.lp_share * self.steps)

    @property
    def selects(self) -> bool:
        """Tell whether a step is spent on choosing the trained parameters."""
        return self.method == "sparse" and self.selection == "gradient" and self._probing < self.steps

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Stages that train, in their order; none is empty."""
        lr = _RATE if self.lr is None else self.lr
        probing = Stage("lp", "head", self._probing, self.lp_lr or self.lr or _PROBING_RATE)
        rest = Stage(
            self.method,
            SUBSETS[self.method],
            self.steps - self._probing - self.selects,
            lr,
            self.drop,
        )
        if not rest.steps:
            probing = replace(probing, drop=self.drop)
        return tuple(stage for stage in (probing, rest) if stage.steps)

    @property
    def trains_body(self) -> bool:
        """Tell whether anything but the head trains."""
        return any(stage.subset != "head" for stage in self.stages)

    @property
    def phases(self) -> tuple[Stage, ...]:
        """The stages and, before a sparse one that is chosen by gradient, the step that chooses."""
        if not self.selects:
            return self.stages
        *before, last = self.stages
        return (*before, Stage(SELECTION, "all", 1, last.lr), last)

    def history(self, samples: int) -> History:
        """Everything that the recipe releases about ``samples`` private samples, with calibrated noise.

        Raises
        ------
        ValueError
            If the expected batch size exceeds the number of samples, or the budget cannot be met.
        """
        training = plan(samples, self.batch, delta=self.delta, steps=self.steps)
        (whole,) = training.mechanisms
        stages = [replace(whole, name=stage.name, steps=stage.steps) for stage in self.phases]
        first = [release("prototypes")] if self.head == "prototype" else []
        share = self.prototype_share if first else None
        # of one multiplier it does not matter which stage a step is in
        asked = replace(training, mechanisms=[*first, whole])
        found = _calibrated(asked, self.epsilon, share)
        multipliers = {m.name: m.noise_multiplier for m in found.mechanisms}
        filled = [
            replace(m, noise_multiplier=multipliers.get(m.name, multipliers[whole.name])) for m in stages
        ]
        given = [replace(m, noise_multiplier=multipliers[m.name], clip=1.0) for m in first]
        return replace(training, mechanisms=[*given, *(replace(m, clip=self.clip) for m in filled)])

    def as_dict(self) -> dict[str, Any]:
        """Return plain data, for a record."""
        return asdict(self)

    def __iter__(self) -> Iterator[Stage]:
        return iter(self.stages)


def _unbounded(epsilon: Any) -> bool:
    return isinstance(epsilon, float) and epsilon == math.inf


@functools.lru_cache(maxsize=1024)
def _calibrated(history: History, epsilon: float, prototype_share: float | None) -> History:
    from empirical.privacy.calibrate import calibrate

    shares = None
    if prototype_share is not None:
        shares = {m.name: 1 - prototype_share for m in history.mechanisms} | {"prototypes": prototype_share}
    return calibrate(history, epsilon, shares=shares)
