"""Schedules: which parameters train, for how long, with which noise, clipping and sampling rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from langevin.model.weights import Method
from langevin.support import html, validate
from langevin.support.command import nearest
from langevin.support.validate import FloatArray

Clipping = Literal["flat", "normalised", "margin", "column"]

METHODS = ("lp", "fft")
CLIPPINGS = ("flat", "normalised", "margin", "column")
# clipping that is defined for one loss alone, and in linear probing alone
CLIPPING_LOSSES = {"margin": "softmax", "column": "ovr"}
RECORDS = 101
# its square, over any time, is within the range of doubles
LARGEST_SIGMA = 1e100


@dataclass(frozen=True)
class Phase:
    """A period of training with fixed trained parameters, noise, clipping and sampling rate.

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
    clipping : {"flat", "normalised", "margin", "column"}
        ``"flat"`` is ``g min(1, C / ||g||)`` and ``"normalised"`` ``g C / (||g|| + stabiliser)`` as in
        DP-NSGD. ``"margin"`` and ``"column"`` are for linear probing with K outputs, see Notes.
    stabiliser : float
        ``r`` of the normalised clipping; must be positive there, unused otherwise.
    sample_rate : float
        Probability ``q`` in (0, 1] with which each sample enters the batch of a step, independently (Poisson
        sampling); 1 for full batches. A step of the Euler-Maruyama chain then divides the clipped sum of
        its batch by ``q``; see `langevin.DPSGD`.

    Notes
    -----
    Flat clipping makes the drift of linear probing non-monotone with the softmax loss for ``K >= 3`` and with
    one-vs-rest for ``K >= 2``. Two forms of clipping, new here (theory for K outputs, section 1a'), have a
    monotone drift and the same sensitivity ``C``, so that they have the same privacy:

    - margin clipping, for the softmax loss: the gradient of a sample with features ``A`` is multiplied by
      ``min(1, C / (sqrt(2) g ||A||))``, where ``g = 1 - p_y`` is the probability of the wrong classes. Where
      it acts, the norm is at least ``C sqrt(K / (2 (K - 1)))`` and at most ``C``. For ``K = 2`` it is flat
      clipping.
    - column clipping, for one-vs-rest: the gradient of each output's column of the head is clipped at
      ``C / sqrt(K)``.

    Examples
    --------
    >>> Phase("lp", time=0.5, sigma=0.5, clip=1.0).clip
    1.0
    >>> Phase("fft", time=1.0, sigma=0.5, clip=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: clip must be positive or None, got -1.0
    >>> print(Phase("lp", time=0.5, clip=1.0, clipping="margin", sample_rate=0.1))
    LP for time 0.5, sigma 0, margin clip 1, sample rate 0.1
    """

    method: Method
    time: float
    sigma: float = 0.0
    clip: float | None = None
    clipping: Clipping = "flat"
    stabiliser: float = 0.01
    sample_rate: float = 1.0

    def __post_init__(self) -> None:
        validate.choice("method", self.method, METHODS)
        validate.choice("clipping", self.clipping, CLIPPINGS)
        for name, value in (
            ("time", validate.positive("time", self.time)),
            ("sigma", validate.non_negative("sigma", self.sigma)),
            ("clip", validate.positive_or_none("clip", self.clip)),
            ("stabiliser", validate.positive("stabiliser", self.stabiliser)),
            ("sample_rate", validate.rate("sample_rate", self.sample_rate)),
        ):
            object.__setattr__(self, name, value)
        if self.sigma > LARGEST_SIGMA:
            raise ValueError(f"sigma must be at most {LARGEST_SIGMA:g}, got {self.sigma:g}: take less noise")
        if self.clipping != "flat" and self.clip is None:
            raise ValueError(f"clip must be positive with clipping={self.clipping!r}, got None")
        if self.clipping in CLIPPING_LOSSES and self.method != "lp":
            raise ValueError(
                f"clipping must be 'flat' or 'normalised' with method {self.method!r}, got "
                f"{self.clipping!r}, which is defined for linear probing alone"
            )

    def __str__(self) -> str:
        clip = "no clipping" if self.clip is None else f"{self.clipping} clip {self.clip:g}"
        rate = f", sample rate {self.sample_rate:g}" if self.sample_rate < 1 else ""
        return f"{self.method.upper()} for time {self.time:g}, sigma {self.sigma:g}, {clip}{rate}"


@dataclass(frozen=True)
class Schedule:
    """A sequence of `Phase`, in the order in which they run.

    The constructors `lp`, `fft` and `lp_fft` take ``clipping``, ``stabiliser`` and ``sample_rate`` as `Phase`
    does; in `lp_fft` they apply to both phases.

    Examples
    --------
    >>> schedule = Schedule.lp_fft(lp_time=0.5, fft_time=1.5, sigma=0.5, clip=1.0)
    >>> schedule.duration
    2.0
    >>> [phase.method for phase in schedule]
    ['lp', 'fft']
    >>> schedule
    Schedule(LP for time 0.5, sigma 0.5, flat clip 1; then FFT for time 1.5, sigma 0.5, flat clip 1)
    """

    phases: tuple[Phase, ...]

    def __init__(self, phases: Sequence[Phase]) -> None:
        phases = [validate.original("phases", p, Phase) for p in validate.sequence("phases", phases, Phase)]
        if not phases:
            raise ValueError("phases must hold at least one Phase, got none")
        object.__setattr__(self, "phases", tuple(phases))

    @classmethod
    def lp(cls, *, time: float, sigma: float = 0.0, clip: float | None = None, **rest: Any) -> Schedule:
        """Linear probing: only the head trains; ``rest`` as in `Phase`."""
        return cls([Phase("lp", time, sigma, clip, **rest)])

    @classmethod
    def fft(cls, *, time: float, sigma: float = 0.0, clip: float | None = None, **rest: Any) -> Schedule:
        """Full fine-tuning: everything trains; ``rest`` as in `Phase`."""
        return cls([Phase("fft", time, sigma, clip, **rest)])

    @classmethod
    def lp_fft(
        cls,
        *,
        lp_time: float,
        fft_time: float,
        sigma: float = 0.0,
        clip: float | None = None,
        **rest: Any,
    ) -> Schedule:
        """Linear probing, then full fine-tuning; a phase of length 0 is omitted; ``rest`` as in `Phase`."""
        lp_time = validate.non_negative("lp_time", lp_time)
        fft_time = validate.non_negative("fft_time", fft_time)
        if lp_time + fft_time == 0:
            raise ValueError("lp_time + fft_time must be positive, got 0.0")
        lengths: tuple[tuple[Method, float], ...] = (("lp", lp_time), ("fft", fft_time))
        return cls([Phase(m, t, sigma, clip, **rest) for m, t in lengths if t > 0])

    @classmethod
    def from_file(cls, path: str | Path) -> Schedule:
        '''Read a schedule from a TOML file with a table ``[[phase]]`` per phase, in their order.

        The keys of a table are the parameters of `Phase`, with the same defaults; ``clip = "none"`` switches
        clipping off. Keys above the first table apply to every phase that does not set them itself.

        Raises
        ------
        ValueError
            If the file cannot be read, or a phase in it is wrong; names file, phase, key and value.

        Examples
        --------
        >>> import pathlib, tempfile
        >>> text = """
        ... clip = 1.0
        ... [[phase]]
        ... method = "lp"
        ... time = 0.5
        ... [[phase]]
        ... method = "fft"
        ... time = 1.0
        ... """
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "plan.toml")
        ...     _ = file.write_text(text)
        ...     print(Schedule.from_file(file))
        LP for time 0.5, sigma 0, flat clip 1; then FFT for time 1, sigma 0, flat clip 1
        '''
        import tomllib

        try:
            with validate.path("schedule", path).open("rb") as file:
                found = tomllib.load(file)
        except (OSError, ValueError, RecursionError) as error:
            said = getattr(error, "strerror", None) or error
            raise ValueError(f"schedule must be a TOML file of phases, got {str(path)!r}: {said}") from None
        tables = found.pop("phase", None)
        if not isinstance(tables, list) or not tables or not all(isinstance(t, dict) for t in tables):
            raise ValueError(f"schedule {path} must have a table [[phase]] per phase, got {tables!r}")
        _require_keys(f"schedule {path}, above the phases", found)
        places = (f"schedule {path}, phase {k}" for k in range(1, len(tables) + 1))
        return cls([_phase(place, found | table) for place, table in zip(places, tables, strict=True)])

    def __repr__(self) -> str:
        return f"Schedule({self})"

    def _repr_html_(self) -> str:
        numbered = enumerate(zip(self.starts, self.phases, strict=True), 1)
        rows = {f"phase {k}, from time {start:g}": phase for k, (start, phase) in numbered}
        return html.table(f"Schedule of time {self.duration:g}", rows)

    def __iter__(self) -> Iterator[Phase]:
        return iter(self.phases)

    def __len__(self) -> int:
        return len(self.phases)

    def __str__(self) -> str:
        return "; then ".join(str(phase) for phase in self.phases)

    def full_batches(self) -> Schedule:
        """The same schedule on full batches."""
        return Schedule([replace(phase, sample_rate=1.0) for phase in self])

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


def _require_keys(where: str, found: Mapping[str, Any]) -> None:
    """Refuse keys that no `Phase` has, and values of another type than its parameters."""
    known = {field.name: field for field in fields(Phase)}
    for key, value in found.items():
        if key not in known:
            raise ValueError(f"{where}: unknown key {key!r}; {nearest(key, known)}")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if key not in ("method", "clipping") and not number and (key, value) != ("clip", "none"):
            allowed = 'a number or "none"' if key == "clip" else "a number"
            remedy = ": write numbers without quotes" if isinstance(value, str) else ""
            raise ValueError(f"{where}: {key} must be {allowed}, got {value!r}{remedy}")


def _phase(where: str, table: Mapping[str, Any]) -> Phase:
    """Return the phase of a table of a file."""
    _require_keys(where, table)
    for key, example in (("method", '"lp" or "fft"'), ("time", "its length in diffusion time")):
        if key not in table:
            raise ValueError(f"{where}: {key} is missing; add {key} = ..., {example}")
    given: dict[str, Any] = {key: None if value == "none" else value for key, value in table.items()}
    try:
        return Phase(**given)
    except (ValueError, TypeError) as error:
        # as it is written in TOML
        said = str(error).replace("None", '"none"')
        raise ValueError(f"{where}: {said}") from None
