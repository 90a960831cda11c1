"""What bounds of distances and norms know of each phase: its noise, its drift, how it spreads paths."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from bounds.distance.spread import Features, Spread, spread
from bounds.support.phases import probing_first
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights


@dataclass(frozen=True)
class Part:
    """One phase.

    Attributes
    ----------
    phase : Phase
    noise_rate : float
        ``s^2``: expected squared norm, per unit time, of the noise in the coordinates that have a drift;
        of the chain the sampling noise included. Infinite if that has no bound.
    free_rate : float
        The same of coordinates without a drift, that do not change the loss: the gauge of the softmax loss.
    reach : float
        Bound of the norm of the drift; infinite if there is none.
    features : Features or None
        In linear probing before any full fine-tuning, where all paths share them.
    dt : float or None
        Step of the chain; None for the diffusion.
    """

    phase: Phase
    noise_rate: float
    free_rate: float
    reach: float
    features: Features | None
    dt: float | None

    @cached_property
    def spread(self) -> Spread | None:
        """How fast the drift can drive paths apart that share their features."""
        return None if self.features is None else spread(self.features, self.phase, self.dt)

    @property
    def unbounded_sampling(self) -> str:
        """Why the sampling noise has no bound, or ''."""
        if np.isfinite(self.noise_rate):
            return ""
        return (
            f"without clipping, sample_rate={self.phase.sample_rate:g} adds noise that has no bound: give a "
            "clip; lp_expected_loss has the exact loss of linear probing"
        )


def parts(problem: Problem, weights: Weights, schedule: Schedule, dt: float | None = None) -> list[Part]:
    """Describe each phase, of the diffusion or of the chain in steps of ``dt``."""
    features = Features(problem, weights)
    gauge = weights.width if LOSSES[problem.loss].gauge else 0
    found = []
    for phase, shared in zip(schedule, probing_first(schedule), strict=True):
        if shared:
            gradients = features.gradients(phase)
        else:
            gradients = np.full(problem.samples, np.inf if phase.clip is None else phase.clip)
        moving = weights.trained_parameters(phase.method) - gauge
        noise_rate = 2 * phase.sigma**2 * moving
        if dt is not None and phase.sample_rate < 1:
            omega = (1 - phase.sample_rate) / phase.sample_rate
            noise_rate += dt * omega * float(gradients @ gradients)
        found.append(
            Part(
                phase,
                noise_rate,
                2 * phase.sigma**2 * gauge,
                float(gradients.sum()),
                features if shared else None,
                dt,
            )
        )
    return found
