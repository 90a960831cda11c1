"""What is released about one private data set: phases of Poisson-sampled DP-SGD, Gaussian releases."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from langevin.model.dpsgd import DPSGD
from langevin.support import validate

Neighbours = Literal["add-remove", "replace"]

NEIGHBOURS = ("add-remove", "replace")

# expected size of a batch; with a smaller one, nearly all steps would see no sample
LEAST_BATCH = 0.1


@dataclass(frozen=True)
class Mechanism:
    """Steps of the Poisson-sampled Gaussian mechanism that share one rate and one multiplier.

    A step draws each sample independently with probability ``sample_rate``, clips its gradient to norm
    ``clip`` and adds ``N(0, (noise_multiplier clip)^2)`` to each entry of the sum.

    Parameters
    ----------
    name : str
        Of the phase or the release; distinct within a `History`.
    sample_rate : float
        ``q`` in (0, 1]; 1: every step sees all samples.
    steps : int
        ``T >= 1``, the steps made, whatever the sizes of their batches: empty ones count.
    noise_multiplier : float or None
        ``nu >= 0``, noise standard deviation over ``clip``; 0: not private. None: for `calibrate` to find.
    clip : float or None
        ``C``. Reported only: the loss of privacy depends on ``nu`` alone.

    Examples
    --------
    >>> Mechanism("fft", sample_rate=0.1, steps=100, noise_multiplier=2).noise_multiplier
    2.0
    """

    name: str
    sample_rate: float
    steps: int
    noise_multiplier: float | None = None
    clip: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name must be a non-empty string, got {self.name!r}")
        rate = validate.positive("sample_rate", self.sample_rate)
        if rate > 1:
            raise ValueError(
                f"sample_rate must lie in (0, 1], got {self.sample_rate!r}: "
                "give the expected batch over the number of samples"
            )
        nu = self.noise_multiplier
        nu = None if nu is None else validate.non_negative("noise_multiplier", nu)
        # plain numbers, so that equal mechanisms are equal on disk
        object.__setattr__(self, "sample_rate", rate)
        object.__setattr__(self, "steps", validate.integer("steps", self.steps, 1))
        object.__setattr__(self, "noise_multiplier", nu)
        object.__setattr__(self, "clip", validate.positive_or_none("clip", self.clip))


def release(name: str, noise_multiplier: float | None = None, clip: float | None = None) -> Mechanism:
    """Return a one-off Gaussian release on all samples, such as noisy class prototypes.

    One step at rate 1; ``clip`` is its L2 sensitivity to one sample added or removed. A noisy gradient of
    *one Poisson batch*, as for the choice of a sparse mask, is ``Mechanism(name, q, 1, nu)`` instead.

    Examples
    --------
    >>> release("prototypes", 10.0)
    Mechanism(name='prototypes', sample_rate=1.0, steps=1, noise_multiplier=10.0, clip=None)
    """
    return Mechanism(name, 1.0, 1, noise_multiplier, clip)


@dataclass(frozen=True)
class History:
    """Everything released about one private data set, and how its privacy is stated.

    Parameters
    ----------
    mechanisms : sequence of Mechanism
        Phases of DP-SGD and one-off releases, any of which may depend on the results of those before it.
        Their budgets compose as one history: shares of epsilon do not add up.
    delta : float
        In (0, 1), fixed for the whole history; below 1 / ``samples`` to mean anything.
    samples : int or None
        ``n``, for the report and for that check; assumed to be public.
    neighbours : {"add-remove", "replace"}
        Neighbouring data sets differ by adding or removing one sample, or in one sample's value. "replace"
        needs ``sample_rate = 1`` throughout, where the sensitivity is ``2 clip``.

    Raises
    ------
    ValueError
        With two mechanisms of one name, or for "replace" with Poisson sampling: no dominating pair that
        composes is established for that, so no epsilon would be a guarantee.

    Examples
    --------
    >>> history = History([Mechanism("lp", 0.1, 25, 2.0), Mechanism("fft", 0.1, 75, 2.0)], delta=1e-5)
    >>> history.steps
    100
    """

    mechanisms: Sequence[Mechanism]
    delta: float
    samples: int | None = None
    neighbours: Neighbours = "add-remove"

    def __post_init__(self) -> None:
        mechanisms = tuple(self.mechanisms)
        delta = validate.positive("delta", self.delta)
        if delta >= 1:
            raise ValueError(f"delta must be below 1, got {self.delta!r}: use less than 1 / samples")
        validate.choice("neighbours", self.neighbours, NEIGHBOURS)
        if self.samples is not None:
            object.__setattr__(self, "samples", validate.integer("samples", self.samples, 1))
        names = set()
        for m in mechanisms:
            if not isinstance(m, Mechanism):
                raise TypeError(f"mechanisms must all be Mechanism, got {m!r}")
            if m.name in names:
                raise ValueError(f"mechanisms must have distinct names, got {m.name!r} twice: rename one")
            names.add(m.name)
            if self.neighbours == "replace" and m.sample_rate < 1:
                raise ValueError(
                    f"neighbours must be 'add-remove' with Poisson sampling, got 'replace' and "
                    f"sample_rate={m.sample_rate:g} in {m.name!r}: state add-remove, or sample_rate=1"
                )
        object.__setattr__(self, "mechanisms", mechanisms)
        object.__setattr__(self, "delta", delta)

    @property
    def steps(self) -> int:
        """Total number of steps, one-off releases included."""
        return sum(m.steps for m in self.mechanisms)

    def __getitem__(self, name: str) -> Mechanism:
        for m in self.mechanisms:
            if m.name == name:
                return m
        raise KeyError(f"name must be one of {[m.name for m in self.mechanisms]}, got {name!r}")

    @classmethod
    def from_dpsgd(
        cls, phases: Iterable[DPSGD], delta: float, *, neighbours: Neighbours = "add-remove"
    ) -> History:
        """The history of the DP-SGD that a Langevin schedule maps to, with its Poisson sampling.

        Examples
        --------
        >>> dpsgd = DPSGD(0.02, 5.0, 1.0, 100, sample_rate=0.1, samples=1000)
        >>> History.from_dpsgd([dpsgd], 1e-5)["phase 0"].sample_rate
        0.1
        """
        phases = list(phases)
        mechanisms = [
            Mechanism(f"phase {i}", p.sample_rate or 1.0, p.steps, p.noise_multiplier, p.clip)
            for i, p in enumerate(phases)
        ]
        samples = max((p.samples or 0 for p in phases), default=0)
        return cls(mechanisms, delta, samples or None, neighbours)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data; `from_dict` is the inverse."""
        return asdict(self) | {"mechanisms": [asdict(m) for m in self.mechanisms]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> History:
        """Rebuild a history from `as_dict`, with all checks."""
        return cls(**{**data, "mechanisms": [Mechanism(**m) for m in data["mechanisms"]]})


def plan(
    samples: int,
    expected_batch: float,
    *,
    delta: float,
    epochs: float | None = None,
    steps: int | None = None,
    lp_share: float = 0.0,
    noise_multiplier: float | None = None,
    clip: float | None = None,
    releases: Iterable[Mechanism] = (),
) -> History:
    """Linear probing, then full fine-tuning, in whole steps at the exact rate ``expected_batch / samples``.

    Parameters
    ----------
    samples : int
        ``n``, private training samples.
    expected_batch : float
        In (0, ``n``]. The batches of Poisson sampling have random sizes of this mean.
    delta : float
        Below ``1 / n``.
    epochs, steps : float, int
        One of the two. Epochs become ``ceil(epochs n / expected_batch)`` steps, and never fewer.
    lp_share : float
        Share of the steps that probe linearly, rounded to whole steps. With one multiplier it is the share
        of the budget too, and the total epsilon is the same for every share.
    noise_multiplier, clip : float or None
        Of both phases; None: to be calibrated, not reported.
    releases : iterable of Mechanism
        One-off releases before the first phase, from the same budget.

    Returns
    -------
    History
        With the phases "lp" and "fft"; one of no steps is left out.

    Raises
    ------
    ValueError
        If a share above 0 and below 1 leaves a phase without a step.

    Examples
    --------
    >>> found = plan(1000, 100, delta=1e-5, epochs=10, lp_share=0.25)
    >>> [(m.name, m.sample_rate, m.steps) for m in found.mechanisms]
    [('lp', 0.1, 25), ('fft', 0.1, 75)]
    """
    samples = validate.integer("samples", samples, 1)
    expected_batch = validate.positive("expected_batch", expected_batch)
    if expected_batch < LEAST_BATCH:
        raise ValueError(
            f"expected_batch must be at least {LEAST_BATCH}, got {expected_batch:g}: nearly all batches "
            "would be empty"
        )
    if expected_batch > samples:
        raise ValueError(f"expected_batch must be at most samples={samples}, got {expected_batch:g}")
    lp_share = validate.fraction("lp_share", lp_share)
    rate = expected_batch / samples
    if epochs is not None and steps is None:
        # 10 / 0.1 may come out a rounding error above 100
        exact = validate.positive("epochs", epochs) * samples / expected_batch
        if exact >= 2**53:
            raise ValueError(f"epochs must give fewer than 2^53 steps, got {epochs:g}: use fewer")
        steps = max(1, math.ceil(exact - 1e-9))
    elif steps is None or epochs is not None:
        raise ValueError(f"exactly one of epochs and steps must be given, got epochs={epochs}, steps={steps}")
    steps = validate.integer("steps", steps, 1)
    probing = round(lp_share * steps)
    if 0 < lp_share < 1 and probing in (0, steps):
        raise ValueError(
            f"lp_share must leave a step to each phase, got {lp_share:g} of {steps} step(s): "
            "use 0, 1, or more steps"
        )
    phases = [("lp", probing), ("fft", steps - probing)]
    mechanisms = [Mechanism(name, rate, t, noise_multiplier, clip) for name, t in phases if t]
    return History([*releases, *mechanisms], delta, samples)
