"""Configuration of a simulation as plain data: problem, network, schedule, and how it runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from langevin.data import files
from langevin.model.problem import ACTIVATIONS, LOSSES
from langevin.model.schedule import CLIPPING_LOSSES, Clipping, Schedule
from langevin.simulation.start import Start, begin
from langevin.support import options, validate
from langevin.support.rng import generator

Features = Literal["collapsed", "gaussian"]
Head = Literal["gaussian", "zero", "prototype"]
Method = Literal["lp", "fft", "lp-fft"]
Precision = Literal["double", "single"]
Reduce = Literal["auto", "none", "span", "kernel", "gram", "collapsed"]

# data of any number of classes
_COUNTED = ("separable", "ring", "glyphs")
# drawn from a law, with features that are not pre-trained
_SYNTHETIC = ("separable", "ring", "teacher")
# what a file of phases says
SCHEDULED = ("method", "lp_share", "time", "sigma", "clip", "clipping", "stabiliser", "sample_rate")
# of which a solver keeps count in 32 bits
_MOST_STEPS = 2**32


@dataclass(frozen=True)
class Simulation:
    """One run of the simulator; its fields are the options of ``python -m langevin.simulate``.

    Parameters
    ----------
    data : str
        separable (Assumption 3.1), ring (classes in the plane, equally spaced on a circle), teacher
        (regression on a linear teacher), digits (some of scikit-learn's digits, features pre-trained on the
        others), glyphs (synthetic characters, features pre-trained on others), or a file of classes: .npz
        with X, y and optionally W, v, X_test, y_test; .csv or .parquet, features in all columns but one.
    label : str
        Column of the labels in a .csv or .parquet file.
    samples : int
        Training samples of synthetic data and glyphs.
    dim : int
        Input dimension of synthetic data.
    spread : float or None
        Spread within a class of separable data and on a ring; 0 is collapsed. By default 0.2, or half of what
        the number of classes allows if this is less.
    classes : tuple of int
        The private digits, two to ten; for separable data, rings and glyphs the number of classes. More than
        two need loss softmax or ovr.
    activation : str
        Activation.
    loss : str or None
        Loss; by default square for the teacher, otherwise logistic. softmax and ovr (one-vs-rest) have an
        output per class.
    width : int
        Number of neurons, for linear nets up to 1e12; unused if a file has a first layer W.
    features : {"collapsed", "gaussian"} or None
        First layer on synthetic data; by default collapsed for ReLU on separable data, otherwise gaussian.
    head : {"gaussian", "zero", "prototype"}
        Initial head.
    head_scale : float or None
        Root mean square of the head's entries; by default 1/sqrt(width).
    method : {"lp", "fft", "lp-fft"}
        What trains: the head, everything, or first the head and then everything.
    schedule_file : str or None
        TOML file of phases, with any of method, time, sigma, clip, clipping, stabiliser and sample_rate in
        each table [[phase]]; replaces all options of these names and ``lp_share``. See langevin.Phase.
    lp_share : float
        Share of the time spent on linear probing in lp-fft.
    time : float
        Total diffusion time.
    dt : float
        Step size, in diffusion time.
    sigma : float
        Noise of d theta = b dt + sqrt(2) sigma dB.
    clip : float or None
        Per-sample gradient norm threshold, or none.
    clipping : {"flat", "normalised", "margin", "column"}
        flat: g min(1, C/norm of g); normalised: g C/(norm of g + r); margin, for softmax, and column, for
        ovr: see langevin.Phase, for linear probing only.
    stabiliser : float
        r of normalised clipping.
    sample_rate : float
        Probability with which each sample enters the batch of a step (Poisson sampling); 1 for full batches.
    paths : int
        Number of independent paths.
    seed : int
        Seed of data, weights and noise.
    device : str
        cpu, or an NVIDIA GPU: cuda or cuda:<number>.
    precision : {"double", "single"}
        Precision of the simulation.
    reduce : {"auto", "none", "span", "kernel", "gram", "collapsed"}
        What to simulate, all with the same law: the cheapest (auto), the full chain (none), inputs in the
        span of the data, linear probing's kernel, a linear net's Gram matrix, a collapsed net.

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

    data: str = field(default="separable", metadata={"metavar": "DATA"})
    label: str = field(default="y", metadata={"metavar": "COLUMN"})
    samples: int = 64
    dim: int = 16
    spread: float | None = None
    classes: tuple[int, ...] = (3, 8)
    activation: str = field(default="relu", metadata={"choices": tuple(ACTIVATIONS)})
    loss: str | None = field(default=None, metadata={"choices": tuple(LOSSES)})
    width: int = 512
    features: Features | None = None
    head: Head = "gaussian"
    head_scale: float | None = None
    method: Method = "lp-fft"
    schedule_file: str | None = field(default=None, metadata={"option": "schedule", "metavar": "FILE"})
    lp_share: float = 0.25
    time: float = 1.0
    dt: float = 5e-4
    sigma: float = 0.5
    clip: float | None = 1.0
    clipping: Clipping = "flat"
    stabiliser: float = 0.01
    sample_rate: float = 1.0
    paths: int = 64
    seed: int = 0
    device: str = "cpu"
    precision: Precision = "double"
    reduce: Reduce = "auto"

    def __post_init__(self) -> None:
        validate.instance("data", self.data, str)
        validate.instance("label", self.label, str)
        if self.data not in (*_SYNTHETIC, "digits", "glyphs") and not self.is_file:
            raise ValueError(
                f"data must be separable, ring, teacher, digits, glyphs or {files.ALLOWED}, got {self.data!r}"
            )
        for name, allowed in options.choices(Simulation).items():
            value = getattr(self, name)
            if value is not None or name not in ("loss", "features"):
                validate.choice(name, value, allowed)
        for name in ("samples", "dim", "width", "paths"):
            validate.integer(name, getattr(self, name), 1)
        self._require_classes()
        if self.data == "teacher" and self.loss is not None and not LOSSES[self.loss].real:
            real = " or ".join(repr(name) for name, loss in LOSSES.items() if loss.real)
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
        validate.device(self.device)
        if self.head_scale is not None:
            validate.non_negative("head_scale", self.head_scale)
        self._require_clipping()
        _ = self.schedule

    def _require_classes(self) -> None:
        """Refuse classes that the data or the loss do not allow."""
        classes = tuple(validate.sequence("classes", self.classes, int))
        count = len(classes)
        if self.data in _COUNTED:
            if count > 2:
                raise ValueError(
                    f"classes must be one number with data {self.data!r}, that of its classes, got "
                    f"{classes}: take {count} for as many"
                )
            count = validate.integer("classes", classes[0], 2) if count == 1 else 2
        elif self.data != "digits":
            return
        elif count < 2 or len(set(classes)) < count or not set(classes) <= set(range(10)):
            raise ValueError(f"classes must be two different digits from 0 to 9, or more, got {classes}")
        loss = self.loss or "logistic"
        if count > 2 and not LOSSES[loss].classes:
            several = " or ".join(repr(name) for name, entry in LOSSES.items() if entry.classes)
            raise ValueError(f"loss must be {several} for {count} classes, got {loss!r}")

    def _require_clipping(self) -> None:
        """Refuse clipping of K outputs where it is not defined."""
        needed = CLIPPING_LOSSES.get(self.clipping)
        if needed is None or self.schedule_file is not None:
            return
        if self.method != "lp":
            raise ValueError(
                f"clipping must be 'flat' or 'normalised' with method {self.method!r}, got "
                f"{self.clipping!r}, which is defined for linear probing alone: take method 'lp'"
            )
        if needed != (loss := self.loss or "logistic"):
            raise ValueError(
                f"clipping must be 'flat' or 'normalised' with loss {loss!r}, got {self.clipping!r}: take "
                f"loss {needed!r}, for which it is defined"
            )

    @property
    def idle(self) -> dict[str, str]:
        """Parameters that have no effect, given the values of the others, and what makes them have none."""
        synthetic, theirs = self.synthetic, f"with data {self.data!r}"
        reads = {"samples": synthetic or self.data == "glyphs"}
        reads |= {"dim": self.data in ("separable", "teacher"), "spread": self.data in ("separable", "ring")}
        counted = self.data in _COUNTED and len(self.classes) == 1
        reads |= {"classes": self.data == "digits" or counted, "label": self.is_file}
        found = {name: theirs for name, read in reads.items() if not read}
        held = files.held(self.data) if self.is_file else ()
        if "v" in held:
            found |= dict.fromkeys(("width", "head", "head_scale"), "with the head of the file")
        if "W" in held:
            found["width"] = "with the first layer of the file"
        if self.head == "zero":
            found.setdefault("head_scale", "with head 'zero'")
        if self.method != "lp-fft":
            found["lp_share"] = f"with method {self.method!r}"
        if self.clip is None:
            found["clipping"] = found["stabiliser"] = "without clipping"
        elif self.clipping != "normalised":
            found["stabiliser"] = f"with clipping {self.clipping!r}"
        if self.schedule_file is not None:
            found |= dict.fromkeys(SCHEDULED, f"with the schedule of {self.schedule_file!r}")
        return found

    @property
    def class_count(self) -> int:
        """Number of classes of data that have any number of them."""
        return self.classes[0] if len(self.classes) == 1 else 2

    @property
    def synthetic(self) -> bool:
        """Tell whether the data are synthetic."""
        return self.data in _SYNTHETIC

    @property
    def is_file(self) -> bool:
        """Tell whether the data are in a file."""
        return files.is_file(self.data)

    @property
    def steps(self) -> int:
        """Steps of ``dt`` in all."""
        return round((self.time if self.schedule_file is None else self.schedule.duration) / self.dt)

    @cached_property
    def schedule(self) -> Schedule:
        """The phases in whole steps, so that phases change on a step; a file is read once."""
        if self.schedule_file is None:
            return self._method_schedule()
        schedule, dt = Schedule.from_file(self.schedule_file), validate.positive("dt", self.dt)
        for k, phase in enumerate(schedule, 1):
            steps = phase.time / dt
            if steps >= _MOST_STEPS or abs(steps - round(steps)) > 1e-6 * max(1.0, steps) or steps < 0.5:
                raise ValueError(
                    f"schedule {self.schedule_file}, phase {k}: time must be a whole number of steps of dt, "
                    f"fewer than 2^32, got {phase.time:g} for dt {dt:g}: take a dt that divides it"
                )
        return schedule

    def _method_schedule(self) -> Schedule:
        clip = validate.positive_or_none("clip", self.clip)
        time, share = validate.positive("time", self.time), validate.fraction("lp_share", self.lp_share)
        dt = validate.positive("dt", self.dt)
        rest: dict[str, Any] = dict(
            sigma=self.sigma, clip=clip, clipping=self.clipping, stabiliser=self.stabiliser
        )
        rest["sample_rate"] = validate.rate("sample_rate", self.sample_rate)
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
        """Return problem and weights, with the labels of a file.

        Parameters
        ----------
        observables : tuple of str
            Requested in addition to the defaults; those of neurons require individual neurons.

        Raises
        ------
        ValueError, MemoryError
            On a file that is no problem, or weights that do not fit into memory.
        """
        return begin(self, observables)
