"""Conversion between phases and DP-SGD, with full or Poisson batches."""

from __future__ import annotations

import math
from dataclasses import dataclass

from langevin.model.schedule import Phase
from langevin.model.weights import Method
from langevin.support import validate


def noise_multiplier(phase: Phase, dt: float) -> float:
    """``nu`` of the Euler-Maruyama chain of a phase that clips: ``sigma q sqrt(2 / dt) / C`` (8'a).

    Noise standard deviation over ``C``, which bounds a sample's gradient under every form of clipping.

    Examples
    --------
    >>> round(noise_multiplier(Phase("lp", 1.0, sigma=2.0, clip=1.0, sample_rate=0.1), dt=0.01), 6)
    2.828427
    """
    if phase.clip is None:
        raise ValueError(f"clip must be positive for a noise multiplier, got None in the phase '{phase}'")
    return phase.sigma * phase.sample_rate * math.sqrt(2 / dt) / phase.clip


@dataclass(frozen=True)
class DPSGD:
    """One phase of DP-SGD, and the `Phase` whose Euler-Maruyama chain it is.

    With ``sample_rate=None`` (full batch) a step is
    ``theta <- theta - eta (sum_i clip(g_i) + nu C xi)``: an Euler-Maruyama step with ``dt = eta``
    and ``sigma = nu C sqrt(eta / 2)``, and privacy carries over exactly.

    With Poisson sampling at rate ``q`` it is
    ``theta <- theta - eta / (q n) (sum_batch clip(g_i) + nu C xi)``: a step of a phase with the same
    ``sample_rate``, ``dt = eta / n`` and ``sigma = nu C sqrt(dt) / (q sqrt(2))`` (new; theory for K outputs
    and mini-batches, section 8'a). The expected batch size ``q n`` is a public constant. **Privacy must not
    be read off the diffusion with this sigma**: its guarantee understates the loss of the subsampled
    mechanism. Use an accountant: `bounds.epsilon` with ``dt``.

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
    >>> dpsgd = DPSGD(0.5, 2.0, 1.0, 100, sample_rate=0.1, samples=1000)
    >>> print(dpsgd.phase("lp"))
    LP for time 0.05, sigma 0.316228, flat clip 1, sample rate 0.1
    """

    learning_rate: float
    noise_multiplier: float
    clip: float
    steps: int
    sample_rate: float | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        validate.positive("learning_rate", self.learning_rate)
        validate.non_negative("noise_multiplier", self.noise_multiplier)
        validate.positive("clip", self.clip)
        validate.integer("steps", self.steps, 1)
        if self.sample_rate is not None:
            validate.rate("sample_rate", self.sample_rate)
            if self.samples is None:
                raise ValueError("samples must be given with a sample_rate, got None")
            validate.integer("samples", self.samples, 1)

    @property
    def privacy_carries_over(self) -> bool:
        """Whether these steps have the privacy of the diffusion: full batch only."""
        return self.sample_rate is None

    @property
    def dt(self) -> float:
        """Step size of the Euler-Maruyama chain."""
        if self.sample_rate is None or self.samples is None:
            return self.learning_rate
        return self.learning_rate / self.samples

    def phase(self, method: Method) -> Phase:
        """The phase whose Euler-Maruyama chain in steps of `dt` is this DP-SGD, its sampling included."""
        scale = 1.0 if self.sample_rate is None or self.samples is None else self.sample_rate * self.samples
        # noise of a step: learning_rate * nu * C / scale = sigma * sqrt(2 dt)
        sigma = self.learning_rate * self.noise_multiplier * self.clip / scale / math.sqrt(2 * self.dt)
        rate = 1.0 if self.sample_rate is None else self.sample_rate
        return Phase(method, self.steps * self.dt, sigma, self.clip, sample_rate=rate)

    @classmethod
    def from_phase(cls, phase: Phase, *, dt: float, samples: int | None = None) -> DPSGD:
        """The DP-SGD that the Euler-Maruyama chain of ``phase`` in steps of ``dt`` is.

        Parameters
        ----------
        phase : Phase
        dt : float
            Step, in units of diffusion time.
        samples : int, optional
            ``n``; needed if the phase has a sample rate below 1. With full batches it decides the form: None
            for steps on summed gradients, otherwise ``sample_rate=1.0`` and steps on their mean.

        Raises
        ------
        ValueError
            Without flat clipping: unclipped steps have no finite sensitivity. Or without ``samples`` where
            they are needed.
        """
        validate.original("phase", phase, Phase)
        dt = validate.positive("dt", dt)
        if phase.clip is None or phase.clipping != "flat":
            raise ValueError(
                f"phase must have flat clipping to be a DP-SGD, got clip={phase.clip}, "
                f"clipping={phase.clipping!r}"
            )
        if samples is None:
            if phase.sample_rate < 1:
                raise ValueError(
                    f"samples must be given with sample_rate={phase.sample_rate:g}, got None: take the "
                    "number of training samples"
                )
            rate, learning_rate = None, dt
        else:
            samples, rate = validate.integer("samples", samples, 1), phase.sample_rate
            learning_rate = dt * samples
        if phase.time / dt >= 2**32:
            raise ValueError(f"dt must give fewer than 2^32 steps, got {dt:g} for a time of {phase.time:g}")
        steps = round(phase.time / dt)
        if abs(steps * dt - phase.time) > 1e-6 * dt:
            raise ValueError(f"dt must divide the phase's time, got {dt:g} for a time of {phase.time:g}")
        return cls(learning_rate, noise_multiplier(phase, dt), phase.clip, steps, rate, samples)
