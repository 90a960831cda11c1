"""Schedules: which parameters train, for how long, with which noise and clipping; conversion to DP-SGD."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from langevin.model.weights import Method
from langevin.support import validate
from langevin.support.validate import FloatArray

Clipping = Literal["flat", "normalised"]

METHODS = ("lp", "fft")
CLIPPINGS = ("flat", "normalised")
RECORDS = 101
# its square, over any time, is within the range of doubles
LARGEST_SIGMA = 1e100


@dataclass(frozen=True)
class Phase:
    """A period of training with fixed trained parameters, noise and clipping.

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
        validate.choice("method", self.method, METHODS)
        validate.choice("clipping", self.clipping, CLIPPINGS)
        for name, value in (
            ("time", validate.positive("time", self.time)),
            ("sigma", validate.non_negative("sigma", self.sigma)),
            ("clip", validate.positive_or_none("clip", self.clip)),
            ("stabiliser", validate.positive("stabiliser", self.stabiliser)),
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
        phases = [validate.original("phases", p, Phase) for p in validate.sequence("phases", phases, Phase)]
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
        """Linear probing, then full fine-tuning; a phase of length 0 is omitted."""
        lp_time = validate.non_negative("lp_time", lp_time)
        fft_time = validate.non_negative("fft_time", fft_time)
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
        t = validate.array("times", times, 1)
        lengths = np.array([phase.time for phase in self.phases])
        return np.clip(t[None, :] - self.starts[:, None], 0.0, lengths[:, None])

    def default_times(self, count: int = RECORDS) -> FloatArray:
        """``count`` equidistant times from 0 to the end."""
        return np.linspace(0.0, self.duration, validate.integer("count", count, 1))
