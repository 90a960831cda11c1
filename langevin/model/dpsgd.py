"""Conversion between the diffusion and full-batch DP-SGD."""

from __future__ import annotations

import math
from dataclasses import dataclass

from langevin.model.schedule import Phase
from langevin.model.weights import Method
from langevin.support import validate


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
        validate.positive("learning_rate", self.learning_rate)
        validate.non_negative("noise_multiplier", self.noise_multiplier)
        validate.positive("clip", self.clip)
        validate.integer("steps", self.steps, 1)
        if self.sample_rate is not None:
            validate.positive("sample_rate", self.sample_rate)
            validate.fraction("sample_rate", self.sample_rate)
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
        validate.original("phase", phase, Phase)
        dt = validate.positive("dt", dt)
        if phase.clip is None or phase.clipping != "flat":
            raise ValueError(
                f"phase must have flat clipping to be a DP-SGD, got clip={phase.clip}, "
                f"clipping={phase.clipping!r}"
            )
        if sample_rate is None:
            learning_rate, scale = dt, 1.0
        else:
            validate.positive("sample_rate", sample_rate)
            if samples is None:
                raise ValueError("samples must be given with a sample_rate, got None")
            samples = validate.integer("samples", samples, 1)
            learning_rate, scale = dt * samples, sample_rate * samples
        nu = phase.sigma * math.sqrt(2 * dt) * scale / (learning_rate * phase.clip)
        if phase.time / dt >= 2**32:
            raise ValueError(f"dt must give fewer than 2^32 steps, got {dt:g} for a time of {phase.time:g}")
        steps = round(phase.time / dt)
        if abs(steps * dt - phase.time) > 1e-6 * dt:
            raise ValueError(f"dt must divide the phase's time, got {dt:g} for a time of {phase.time:g}")
        return cls(learning_rate, nu, phase.clip, steps, sample_rate, samples)
