"""Which parameters train, how long, with which noise and clipping; and the same as DP-SGD."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from langevin import _validate
from langevin._validate import FloatArray
from langevin.problem import Method

Clipping = Literal["flat", "normalised"]

METHODS = ("lp", "fft")
CLIPPINGS = ("flat", "normalised")
RECORDS = 101
# its square, over any time, is within the range of doubles
LARGEST_SIGMA = 1e100


@dataclass(frozen=True)
class Phase:
    """A stretch of training with one set of trained parameters, one noise and one clipping.

    Parameters
    ----------
    method : {"lp", "fft"}
        Linear probing trains the head ``v``; full fine-tuning trains ``W`` and ``v``.
    time : float
        Length, in units of diffusion time.
    sigma : float
        Noise ``sigma`` of ``d theta = b dt + sqrt(2) sigma dB``.
    clip : float or None
        Threshold ``C`` of the per-sample gradient norm over the trained parameters; None: no
        clipping.
    clipping : {"flat", "normalised"}
        ``g min(1, C / ||g||)``, or ``g C / (||g|| + stabiliser)`` as in DP-NSGD.
    stabiliser : float
        ``r`` of the normalised clipping; must be positive there, unused otherwise.

    Examples
    --------
    >>> Phase("lp", time=0.5, sigma=0.5, clip=1.0).clip
    1.0
    >>> Phase("fft", time=1.0, sigma=0.5, clip=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: clip must be positive or None, got -1.0
    """

    method: Method
    time: float
    sigma: float = 0.0
    clip: float | None = None
    clipping: Clipping = "flat"
    stabiliser: float = 0.01

    def __post_init__(self) -> None:
        _validate.choice("method", self.method, METHODS)
        _validate.choice("clipping", self.clipping, CLIPPINGS)
        for name, value in (
            ("time", _validate.positive("time", self.time)),
            ("sigma", _validate.non_negative("sigma", self.sigma)),
            ("clip", _validate.positive_or_none("clip", self.clip)),
            ("stabiliser", _validate.positive("stabiliser", self.stabiliser)),
        ):
            object.__setattr__(self, name, value)
        if self.sigma > LARGEST_SIGMA:
            raise ValueError(f"sigma must be at most {LARGEST_SIGMA:g}, got {self.sigma:g}: take less noise")
        if self.clipping == "normalised" and self.clip is None:
            raise ValueError("clip must be positive with clipping='normalised', got None")

    def __str__(self) -> str:
        clip = "no clipping" if self.clip is None else f"{self.clipping} clip {self.clip:g}"
        return f"{self.method.upper()} for time {self.time:g}, sigma {self.sigma:g}, {clip}"


@dataclass(frozen=True)
class Schedule:
    """A sequence of `Phase`, in the order in which they run.

    Examples
    --------
    >>> schedule = Schedule.lp_fft(lp_time=0.5, fft_time=1.5, sigma=0.5, clip=1.0)
    >>> schedule.duration
    2.0
    >>> [phase.method for phase in schedule]
    ['lp', 'fft']
    """

    phases: tuple[Phase, ...]

    def __init__(self, phases: Sequence[Phase]) -> None:
        phases = [_validate.original("phases", p, Phase) for p in _validate.sequence("phases", phases, Phase)]
        if not phases:
            raise ValueError("phases must hold at least one Phase, got none")
        object.__setattr__(self, "phases", tuple(phases))

    @classmethod
    def lp(cls, *, time: float, sigma: float = 0.0, clip: float | None = None, **clipping: Any) -> Schedule:
        """Linear probing: only the head trains."""
        return cls([Phase("lp", time, sigma, clip, **clipping)])

    @classmethod
    def fft(cls, *, time: float, sigma: float = 0.0, clip: float | None = None, **clipping: Any) -> Schedule:
        """Full fine-tuning: everything trains."""
        return cls([Phase("fft", time, sigma, clip, **clipping)])

    @classmethod
    def lp_fft(
        cls,
        *,
        lp_time: float,
        fft_time: float,
        sigma: float = 0.0,
        clip: float | None = None,
        **clipping: Any,
    ) -> Schedule:
        """Linear probing, then full fine-tuning; a phase of length 0 is left out."""
        lp_time = _validate.non_negative("lp_time", lp_time)
        fft_time = _validate.non_negative("fft_time", fft_time)
        if lp_time + fft_time == 0:
            raise ValueError("lp_time + fft_time must be positive, got 0.0")
        lengths: tuple[tuple[Method, float], ...] = (("lp", lp_time), ("fft", fft_time))
        return cls([Phase(m, t, sigma, clip, **clipping) for m, t in lengths if t > 0])

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __len__(self) -> int:
        return len(self.phases)

    def __str__(self) -> str:
        return "; then ".join(str(phase) for phase in self.phases)

    @property
    def duration(self) -> float:
        """Total time."""
        return math.fsum(phase.time for phase in self.phases)

    @property
    def starts(self) -> FloatArray:
        """Start time of each phase, shape (len(self),)."""
        return np.concatenate([[0.0], np.cumsum([phase.time for phase in self.phases])[:-1]])

    def time_in(self, times: ArrayLike) -> FloatArray:
        """Time spent in each phase by each of ``times``, shape (len(self), len(times))."""
        t = _validate.array("times", times, 1)
        lengths = np.array([phase.time for phase in self.phases])
        return np.clip(t[None, :] - self.starts[:, None], 0.0, lengths[:, None])

    def default_times(self, count: int = RECORDS) -> FloatArray:
        """``count`` equidistant times from 0 to the end."""
        return np.linspace(0.0, self.duration, _validate.integer("count", count, 1))


def record_times(schedule: Schedule, times: ArrayLike | None) -> FloatArray:
    """Validate the times at which a run or a bound is wanted.

    Returns
    -------
    ndarray, shape (m,)
        Strictly increasing, within ``[0, schedule.duration]``; equidistant if ``times`` is None.
    """
    _validate.original("schedule", schedule, Schedule)
    if times is None:
        return schedule.default_times()
    given: Any = [times] if np.isscalar(times) else times
    t = np.array(_validate.array("times", given, 1))
    if (np.diff(t) <= 0).any():
        i = int(np.argmax(np.diff(t) <= 0))
        raise ValueError(f"times must increase strictly, got {t[i]} before {t[i + 1]}")
    end = schedule.duration
    slack = 1e-9 * end
    if t[0] < 0 or t[-1] > end + slack:
        raise ValueError(
            f"times must lie in [0, {end:g}], the schedule's duration, got {t[0]:g} to {t[-1]:g}"
        )
    return t


@dataclass(frozen=True)
class Grid:
    """A schedule and its record times in whole steps of ``dt``.

    Attributes
    ----------
    dt : float
        Step size.
    phase_steps : tuple of int
        Number of steps of each phase; a phase change falls on a step.
    record_steps : ndarray of int64, shape (m,)
        Steps at which observables are recorded, strictly increasing.
    times : ndarray, shape (m,)
        The requested times where they fall on a step, else the nearest step's time.
    """

    dt: float
    phase_steps: tuple[int, ...]
    record_steps: np.ndarray
    times: FloatArray

    @property
    def steps(self) -> int:
        """Total number of steps."""
        return sum(self.phase_steps)

    @property
    def phase_starts(self) -> tuple[int, ...]:
        """First step of each phase."""
        return tuple(int(s) for s in np.cumsum((0, *self.phase_steps))[:-1])


def grid(schedule: Schedule, dt: float, times: ArrayLike | None) -> Grid:
    """Cut a schedule into steps of ``dt``.

    A phase whose length is no multiple of ``dt`` is rounded to whole steps with a warning.

    Raises
    ------
    ValueError
        If a phase is shorter than half a step, or two record times fall on one step.
    """
    _validate.original("schedule", schedule, Schedule)
    dt = _validate.positive("dt", dt)
    phase_steps = []
    for phase in schedule:
        exact = phase.time / dt
        # which may be infinite
        if exact >= 2**32:
            raise ValueError(f"dt must give fewer than 2^32 steps a phase, got {dt:g}: take a larger dt")
        steps = round(exact)
        if steps < 1:
            raise ValueError(
                f"dt must be at most the length of each phase, got {dt:g} for a phase of time "
                f"{phase.time:g}: take dt <= {phase.time:g}"
            )
        if abs(steps - exact) > 1e-6 * max(1.0, exact):
            warnings.warn(
                f"a phase of time {phase.time:g} is no multiple of dt={dt:g}: "
                f"it runs {steps} steps, a time of {steps * dt:g}",
                stacklevel=3,
            )
        phase_steps.append(steps)
    total = sum(phase_steps)
    wanted = record_times(schedule, times)
    record_steps = np.minimum(np.rint(wanted / dt).astype(np.int64), total)
    if times is None:
        record_steps, kept = np.unique(record_steps, return_index=True)
        wanted = wanted[kept]
    repeated = np.diff(record_steps) == 0
    if repeated.any():
        i = int(np.argmax(repeated))
        raise ValueError(
            f"times must be at least one step apart, got {wanted[i]:g} and {wanted[i + 1]:g} with "
            f"dt={dt:g}: take fewer times or a smaller dt"
        )
    on_step = np.abs(wanted - record_steps * dt) <= 1e-6 * dt
    return Grid(dt, tuple(phase_steps), record_steps, np.where(on_step, wanted, record_steps * dt))


@dataclass(frozen=True)
class DPSGD:
    """One phase of DP-SGD, and its map to the Langevin diffusion.

    With ``sample_rate=None`` (full batch) a step is
    ``theta <- theta - eta (sum_i clip(g_i) + nu C xi)``: an Euler-Maruyama step with ``dt = eta``
    and ``sigma = nu C sqrt(eta / 2)``, and privacy carries over exactly.

    With Poisson sampling at rate ``q`` it is
    ``theta <- theta - eta / (q n) (sum_batch clip(g_i) + nu C xi)``: the same mean drift and the
    same *DP* noise as a step with ``dt = eta / n`` and ``sigma = nu C sqrt(eta) / (q sqrt(2 n))``.
    The sampling noise comes on top of that, and **privacy must not be read through this map**: the
    diffusion's guarantee understates the loss of the subsampled mechanism. Use an accountant.

    Parameters
    ----------
    learning_rate : float
        ``eta``.
    noise_multiplier : float
        ``nu``, noise standard deviation over ``clip``.
    clip : float
        ``C``.
    steps : int
        ``K``.
    sample_rate : float or None
        Poisson rate ``q`` in (0, 1], or None for full-batch steps on summed gradients.
    samples : int or None
        ``n``; needed with a sample rate.

    Examples
    --------
    >>> dpsgd = DPSGD(learning_rate=0.02, noise_multiplier=5.0, clip=1.0, steps=100)
    >>> phase = dpsgd.phase("fft")
    >>> round(phase.time, 6), round(phase.sigma, 6)
    (2.0, 0.5)
    >>> DPSGD.from_phase(phase, dt=dpsgd.dt).noise_multiplier
    5.0
    """

    learning_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    sample_rate: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        _validate.positive("learning_rate", self.learning_rate)
        _validate.non_negative("noise_multiplier", self.noise_multiplier)
        _validate.positive("clip", self.clip)
        _validate.integer("steps", self.steps, 1)
        if self.sample_rate is not None:
            _validate.positive("sample_rate", self.sample_rate)
            _validate.fraction("sample_rate", self.sample_rate)
            if self.samples is None:
                raise ValueError("samples must be given with a sample_rate, got None")
            _validate.integer("samples", self.samples, 1)

    @property
    def privacy_carries_over(self) -> bool:
        """Whether the diffusion's privacy is that of these steps: full batch only."""
        return self.sample_rate is None

    @property
    def dt(self) -> float:
        """Step size of the Euler-Maruyama chain."""
        if self.sample_rate is None or self.samples is None:
            return self.learning_rate
        return self.learning_rate / self.samples

    def phase(self, method: Method) -> Phase:
        """The phase of clipped Langevin diffusion with the same drift and the same DP noise."""
        scale = 1.0 if self.sample_rate is None or self.samples is None else self.sample_rate * self.samples
        # noise of a step: learning_rate * nu * C / scale = sigma * sqrt(2 dt)
        sigma = self.learning_rate * self.noise_multiplier * self.clip / scale / math.sqrt(2 * self.dt)
        return Phase(method, self.steps * self.dt, sigma, self.clip)

    @classmethod
    def from_phase(
        cls, phase: Phase, *, dt: float, sample_rate: float | None = None, samples: int | None = None
    ) -> DPSGD:
        """The DP-SGD whose map is ``phase`` in steps of ``dt``.

        Raises
        ------
        ValueError
            Without flat clipping: unclipped steps have no finite sensitivity.
        """
        _validate.original("phase", phase, Phase)
        dt = _validate.positive("dt", dt)
        if phase.clip is None or phase.clipping != "flat":
            raise ValueError(
                f"phase must have flat clipping to be a DP-SGD, got clip={phase.clip}, "
                f"clipping={phase.clipping!r}"
            )
        if sample_rate is None:
            learning_rate, scale = dt, 1.0
        else:
            _validate.positive("sample_rate", sample_rate)
            if samples is None:
                raise ValueError("samples must be given with a sample_rate, got None")
            samples = _validate.integer("samples", samples, 1)
            learning_rate, scale = dt * samples, sample_rate * samples
        nu = phase.sigma * math.sqrt(2 * dt) * scale / (learning_rate * phase.clip)
        if phase.time / dt >= 2**32:
            raise ValueError(f"dt must give fewer than 2^32 steps, got {dt:g} for a time of {phase.time:g}")
        steps = round(phase.time / dt)
        if abs(steps * dt - phase.time) > 1e-6 * dt:
            raise ValueError(f"dt must divide the phase's time, got {dt:g} for a time of {phase.time:g}")
        return cls(learning_rate, nu, phase.clip, steps, sample_rate, samples)
