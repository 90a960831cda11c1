"""One run of the simulator as plain data: problem, network, schedule, and how it is run."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from langevin import _validate, data, files, initial
from langevin._random import generator
from langevin.model.activations import ACTIVATIONS
from langevin.model.losses import LOSSES
from langevin.observables import OBSERVABLES
from langevin.problem import GramWeights, Problem, Weights
from langevin.schedule import CLIPPINGS, Clipping, Schedule

Features = Literal["collapsed", "gaussian"]
Head = Literal["gaussian", "zero", "prototype"]
Method = Literal["lp", "fft", "lp-fft"]
Reduce = Literal["auto", "none", "span", "kernel", "gram", "collapsed"]

CHOICES: dict[str, Collection[str]] = {
    "activation": ACTIVATIONS,
    "loss": LOSSES,
    "features": ("collapsed", "gaussian"),
    "head": ("gaussian", "zero", "prototype"),
    "method": ("lp", "fft", "lp-fft"),
    "clipping": CLIPPINGS,
    "precision": ("double", "single"),
    "reduce": ("auto", "none", "span", "kernel", "gram", "collapsed"),
}
# entries of W from which a linear net's is known by its Gram matrix alone, unless neurons are asked for
_LARGE = 2**18
# of which a solver keeps count in 32 bits
_MOST_STEPS = 2**32


class Start(NamedTuple):
    """Where a simulation starts.

    Attributes
    ----------
    problem : Problem
    weights : Weights
    own_head : bool
        Whether the head is the user's.
    file : FileProblem or None
        Of data from a file.
    """

    problem: Problem
    weights: Weights
    own_head: bool
    file: files.FileProblem | None = None


@dataclass(frozen=True)
class Simulation:
    """What ``python -m langevin.simulate`` is asked for, under the names of its options.

    Parameters
    ----------
    data : str
        "separable", "teacher", "digits", or a file, see `langevin.from_file`.
    label : str
        Column of a table's labels.
    samples, dim : int
        Of synthetic data.
    spread : float
        Within a class of separable data.
    classes : tuple of int
        The two private digits.
    activation : str
    loss : str or None
        As in `Problem`; None: logistic, or square for ``data="teacher"``.
    width : int
        Neurons; a file's own first layer has its own.
    features : {"collapsed", "gaussian"} or None
        First layer on synthetic data; None: collapsed for ReLU on separable data, else Gaussian.
    head : {"gaussian", "zero", "prototype"}
    head_scale : float or None
        Root mean square of the head's entries; None: ``1/sqrt(width)``.
    method : {"lp", "fft", "lp-fft"}
    lp_share : float
        Share of the time for linear probing in "lp-fft".
    time, dt : float
        Total diffusion time, and the step.
    sigma : float
    clip : float or None
    clipping : {"flat", "normalised"}
    stabiliser : float
    paths : int
    seed : int
        Of data, weights and noise.
    device, precision, reduce
        See `langevin.euler_maruyama`.

    Raises
    ------
    ValueError, TypeError
        On values out of range, or that contradict each other.

    Examples
    --------
    >>> simulation = Simulation(samples=8, dim=3, width=12, time=0.1, dt=0.01)
    >>> problem, weights, *_ = simulation.start()
    >>> problem.X.shape, weights.width, [phase.method for phase in simulation.schedule]
    ((8, 3), 12, ['lp', 'fft'])
    """

    data: str = "separable"
    label: str = "y"
    samples: int = 64
    dim: int = 16
    spread: float = 0.2
    classes: tuple[int, int] = (3, 8)
    activation: str = "relu"
    loss: str | None = None
    width: int = 512
    features: Features | None = None
    head: Head = "gaussian"
    head_scale: float | None = None
    method: Method = "lp-fft"
    lp_share: float = 0.25
    time: float = 1.0
    dt: float = 5e-4
    sigma: float = 0.5
    clip: float | None = 1.0
    clipping: Clipping = "flat"
    stabiliser: float = 0.01
    paths: int = 64
    seed: int = 0
    device: str = "cpu"
    precision: Literal["double", "single"] = "double"
    reduce: Reduce = "auto"

    def __post_init__(self) -> None:
        _validate.instance("data", self.data, str)
        _validate.instance("label", self.label, str)
        if self.data not in ("separable", "teacher", "digits") and not self.is_file:
            raise ValueError(f"data must be separable, teacher, digits or {files.ALLOWED}, got {self.data!r}")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value is not None or name not in ("loss", "features"):
                _validate.choice(name, value, allowed)
        for name in ("samples", "dim", "width", "paths"):
            _validate.integer(name, getattr(self, name), 1)
        if self.data == "teacher" and self.loss is not None and LOSSES[self.loss].signs:
            real = " or ".join(repr(name) for name, loss in LOSSES.items() if not loss.signs)
            raise ValueError(f"loss must be {real} with data='teacher', got {self.loss!r}")
        if self.data == "teacher" and self.features == "collapsed":
            raise ValueError(
                f"features must be 'gaussian' with data='teacher', got {self.features!r}: its targets are no "
                "classes to collapse to"
            )
        if self.features is not None and not self.synthetic:
            raise ValueError(f"features must be left out with data={self.data!r}, got {self.features!r}")
        try:
            generator(self.seed, "seed")
        except ValueError:
            raise ValueError(f"seed must be a seed, a whole number from 0; got {self.seed!r}") from None
        _validate.device(self.device)
        if self.head_scale is not None:
            _validate.non_negative("head_scale", self.head_scale)
        _ = self.schedule

    @property
    def idle(self) -> dict[str, str]:
        """Parameters on which nothing depends beside the values of the others, and why."""
        synthetic, theirs = self.synthetic, f"data={self.data!r} have their own"
        reads = {"samples": synthetic, "dim": synthetic, "spread": self.data == "separable"}
        reads["classes"] = self.data == "digits"
        own = {name: theirs for name, read in reads.items() if not read}
        if not self.is_file:
            own["label"] = f"data={self.data!r} have no columns"
        there = files.held(self.data) if self.is_file else ()
        own |= {name: "the file has its own first layer" for name in ("width",) if "W" in there}
        own |= {name: "the file has its own head" for name in ("width", "head", "head_scale") if "v" in there}
        if self.head == "zero":
            own.setdefault("head_scale", "a zero head has none")
        if self.method != "lp-fft":
            own["lp_share"] = f"method={self.method!r} has one phase"
        if self.clip is None:
            own["clipping"] = "there is no clipping"
        if self.clip is None or self.clipping != "normalised":
            own["stabiliser"] = "clipping is not normalised"
        return own

    @property
    def synthetic(self) -> bool:
        """Whether the data are made up."""
        return self.data in ("separable", "teacher")

    @property
    def is_file(self) -> bool:
        """Whether the data are in a file."""
        return files.is_file(self.data)

    @property
    def steps(self) -> int:
        """Steps of ``dt`` in all."""
        return round(self.time / self.dt)

    @property
    def schedule(self) -> Schedule:
        """The phases, in whole steps, so that the change falls on one."""
        clip = _validate.positive_or_none("clip", self.clip)
        time, share = _validate.positive("time", self.time), _validate.fraction("lp_share", self.lp_share)
        dt = _validate.positive("dt", self.dt)
        rest: dict[str, Any] = dict(
            sigma=self.sigma, clip=clip, clipping=self.clipping, stabiliser=self.stabiliser
        )
        if dt > time:
            raise ValueError(f"dt must be at most the time, got {dt:g} for a time of {time:g}")
        if time / dt >= _MOST_STEPS:
            raise ValueError(f"dt must give fewer than 2^32 steps, got {dt:g} for a time of {time:g}")
        steps = self.steps
        if self.method == "lp":
            return Schedule.lp(time=steps * dt, **rest)
        if self.method == "fft":
            return Schedule.fft(time=steps * dt, **rest)
        lp_steps = round(share * steps)
        if (share > 0 and lp_steps == 0) or (share < 1 and lp_steps == steps):
            raise ValueError(
                f"lp_share must leave a step to each phase, got {share:g} of {steps} steps: take a smaller dt"
            )
        return Schedule.lp_fft(lp_time=lp_steps * dt, fft_time=(steps - lp_steps) * dt, **rest)

    def start(self, observables: tuple[str, ...] = ()) -> Start:
        """Problem and weights, and what a file says of them.

        Parameters
        ----------
        observables : tuple of str
            Asked for beside the default ones: those of neurons need single ones.

        Raises
        ------
        ValueError, MemoryError
            On a file that is no problem, or weights that do not fit into memory.
        """
        teacher = self.data == "teacher"
        loss = self.loss or ("square" if teacher else "logistic")
        collapsed = self.features == "collapsed" or (
            self.features is None and self.data == "separable" and self.activation == "relu"
        )
        neurons = self.reduce in ("none", "span") or any(
            name in OBSERVABLES and OBSERVABLES[name].neurons for name in observables
        )
        large = self.width * self.dim > _LARGE and not neurons
        by_gram = self.synthetic and not collapsed and self.activation == "linear" and large
        if not by_gram and not self.is_file:
            # refuse weights of single neurons that do not fit into memory
            _validate.memory(
                4.0 * 8 * self.width * self.dim,
                f"width={self.width} with single neurons",
                "take fewer, or a linear activation with Gaussian features, which knows no single ones",
            )
        W = v = file = None
        if self.data == "separable":
            problem = data.orthogonally_separable(
                self.samples,
                self.dim,
                spread=self.spread,
                activation=self.activation,
                loss=loss,
                test_samples=self.samples,
                rng=self.seed,
            )
        elif teacher:
            problem = data.linear_teacher(
                self.samples,
                self.dim,
                activation=self.activation,
                loss=loss,
                test_samples=self.samples,
                rng=self.seed,
            )
        elif self.data == "digits":
            problem, start = data.digits(
                self.classes, self.width, activation=self.activation, loss=loss, rng=self.seed
            )
            W = start.W
        else:
            file = files.from_file(self.data, label=self.label, activation=self.activation, loss=loss)
            problem, W, v = file.problem, file.W, file.v
        if by_gram:
            return Start(problem, self._gram_weights(problem), False)
        given = v is not None
        if W is None and collapsed:
            W = initial.collapsed_features(problem, self.width, rng=self.seed).W
        elif W is None:
            width = self.width if v is None else len(v)
            W = initial.gaussian_features(width, problem.dim, rng=self.seed)
        if v is None:
            if self.head == "gaussian":
                v = initial.gaussian_head(len(W), self.head_scale, rng=self.seed)
            elif self.head == "zero":
                v = initial.zero_head(len(W))
            else:
                v = initial.prototype_head(problem, W, self.head_scale)
        return Start(problem, Weights(W, v), given, file)

    def _gram_weights(self, problem: Problem) -> GramWeights:
        weights = initial.gaussian_gram(problem, self.width, head_scale=self.head_scale, rng=self.seed)
        if self.head == "zero":
            return GramWeights(weights.W, initial.zero_head(len(weights.W)), self.width)
        if self.head == "prototype":
            scale = self.width**-0.5 if self.head_scale is None else self.head_scale
            # a root mean square over fewer neurons of the same norm
            v = initial.prototype_head(problem, weights.W, scale * (self.width / len(weights.W)) ** 0.5)
            return GramWeights(weights.W, v, self.width)
        return weights
