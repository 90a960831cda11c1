"""Evaluate the theorems on splitting a budget for given data (sections 3, 5 and 6)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from bounds.allocation.crossover import Crossover, crossovers, lp_crossover
from bounds.allocation.share import LpShare, minimum_lp_share
from bounds.allocation.utility import BOUNDS, utility_curve
from bounds.band import Band
from bounds.features.assumptions import Assumptions, check_assumptions
from bounds.features.blocks import decouple
from bounds.features.classes import decouple_classes
from bounds.features.distortion import Distortion, distortion
from bounds.support.covers import ANY, Covers, declares
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate

COVERS = Covers(ANY, ANY, lp=("flat",), fft=("flat",), outputs=True)


@dataclass(frozen=True, eq=False)
class Advice:
    """The results of the theorems on a split, or the reason why there are none; see `split_advice`.

    Attributes
    ----------
    assumptions : Assumptions
        State of assumptions 3.1 and 3.2.
    minimum : tuple of LpShare
        By `minimum_lp_share`, one for each head.
    crossovers : tuple of Crossover
        By `lp_crossover`, for each head, and each class where classes decouple.
    distortions : tuple of Distortion
        By `distortion` from the start, one for each head.
    curves : dict of str to Band
        Bounds of the final loss, the sum over samples, whose ``times`` are shares: means over the heads, so
        that they bound the mean over these heads; only where all of them are valid.
    reasons : dict of str to str
        Why a bound is missing.
    start : float
        Mean loss at the start; an upper bound above it says nothing.
    samples : int
        Whose losses the bounds sum.
    time : float
        Total time.
    """

    assumptions: Assumptions
    minimum: tuple[LpShare, ...]
    crossovers: tuple[Crossover, ...]
    distortions: tuple[Distortion, ...]
    curves: dict[str, Band]
    reasons: dict[str, str]
    start: float
    samples: int
    time: float

    @property
    def minimum_share(self) -> tuple[float, float]:
        """Mean and standard error over the heads; NaN where the statement does not apply."""
        values = np.array([found.share for found in self.minimum])
        error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
        return float(values.mean()), float(error)

    @property
    def harmless(self) -> bool:
        """Whether full fine-tuning from the start, without probing, is sure to distort nothing (3.3')."""
        return all(found.valid and not found.misaligned.any() for found in self.distortions)

    @property
    def loss_optimal(self) -> tuple[float, str]:
        """Return the best share for the zeroth-order loss by theory (6b), or NaN, and the result in words.

        For a collapsed net whose margins start negative the best share is not a number but a bound: no
        minimiser switches later than the ``latest_switch``.
        """
        bad = next((found.reason for found in self.crossovers if not found.valid), "")
        if bad or not self.crossovers:
            return np.nan, f"theory does not say (6b): {bad or 'no neuron is in the cone of a class'}"
        if all(found.case == "fft" for found in self.crossovers):
            return 0.0, "0 (6b): the final loss rises with the time of probing"
        latest = max(found.latest_switch for found in self.crossovers) / self.time
        times = [found.critical_time for found in self.crossovers if found.case != "fft"]
        if self.time <= min(times):
            says = f"a short probing helps above time {min(times):.3g} only, there is {self.time:.3g}"
        else:
            says = f"some probing helps above time {max(times):.3g}"
        return np.nan, f"at most {min(latest, 1.0):.3g} (6b): {says}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, lists and dictionaries for JSON; no number where the theory gives none."""
        mean, error = self.minimum_share
        best, words = self.loss_optimal
        return {
            "assumptions": self.assumptions.to_dict(),
            "minimum lp share": {
                "valid": all(found.valid for found in self.minimum),
                "mean": mean,
                "standard error": error,
                "attainable": float(np.mean([found.attainable for found in self.minimum])),
                "reason": next((found.reason for found in self.minimum if not found.valid), ""),
                "source": self.minimum[0].source,
                "steps": float(np.mean([found.steps for found in self.minimum])),
                "failure": max(found.failure for found in self.minimum),
            },
            "distorts nothing without probing": self.harmless,
            "loss-optimal share": {"share": best, "says": words},
            "bounds": {
                name: {
                    "shares": band.times.tolist(),
                    "lower": band.lower.tolist(),
                    "upper": band.upper.tolist(),
                    "source": band.source,
                }
                for name, band in self.curves.items()
            },
            "no bounds": self.reasons,
            "loss at the start": self.start,
            "samples": self.samples,
        }


@declares(COVERS)
def split_advice(
    problem: Problem,
    weights: Sequence[Weights],
    *,
    sigma: float,
    clip: float,
    time: float,
    shares: ArrayLike,
    dt: float | None = None,
    sample_rate: float = 1.0,
    confidence: float | None = None,
) -> Advice:
    """Evaluate all statements on how to split a budget between probing and full fine-tuning.

    Re-derived or new, as each function it calls says of its own statement. A statement that does not cover
    the problem is left out, with its reason.

    Parameters
    ----------
    problem : Problem
        With labels -1 and +1, or K classes.
    weights : sequence of Weights
        The same first layer with one or more heads, such as draws of a Gaussian one.
    sigma, clip : float
        Noise and flat clipping threshold of both phases.
    time : float
        Total time, in units of diffusion time.
    shares : array_like
        At which to bound the final loss; rising, in [0, 1].
    dt : float, optional
        Step of the chain that spends the time: the minimum share is then of its steps.
    sample_rate, confidence : float
        Of its Poisson batches, see `minimum_lp_share`. All other statements are of full batches.

    Returns
    -------
    Advice
        Reading it off private data costs privacy that is not accounted for.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> weights = Weights([[1.0, -0.5], [-0.5, 1.0]], [-0.2, 0.3])
    >>> found = split_advice(problem, [weights], sigma=0.01, clip=1.0, time=2.0, shares=[0.0, 0.5])
    >>> found.assumptions.hold, round(found.minimum_share[0], 2), sorted(found.curves)
    (True, 0.3, ['certified', 'sandwich'])
    """
    if not weights:
        raise ValueError("weights must hold one or more Weights, got none")
    COVERS.require(problem)
    sigma, clip = validate.positive("sigma", sigma), validate.positive("clip", clip)
    time = validate.positive("time", time)
    chosen: dict[str, Any] = dict(clip=clip, sample_rate=sample_rate, confidence=confidence)
    if dt is None:
        # the budget that buys this time at this noise: the share is of the time
        chosen |= dict(rho=clip**2 * time / (4 * sigma**2), sigma=sigma)
    else:
        chosen |= dict(dt=dt, steps=round(time / dt))
    curves, reasons = _curves(problem, weights, sigma=sigma, clip=clip, time=time, shares=shares)
    return Advice(
        check_assumptions(problem, weights[0]),
        tuple(minimum_lp_share(problem, w, **chosen) for w in weights),
        tuple(found for w in weights for found in _crossovers(problem, w, time, clip)),
        tuple(distortion(problem, w, clip=clip) for w in weights),
        curves,
        reasons,
        float(np.mean([problem.losses(problem.outputs(w)).sum() for w in weights])),
        problem.samples,
        time,
    )


def _crossovers(problem: Problem, weights: Weights, time: float, clip: float) -> list[Crossover]:
    """One for each class of a ReLU network if the classes decouple, otherwise one for the whole."""
    if problem.outputs_dim > 1:
        return crossovers(problem, weights, time, clip)
    blocks, reason = decouple(problem, weights) if problem.activation == "relu" else ([], "")
    if reason or not blocks:
        return [lp_crossover(problem, weights, time=time, clip=clip)]
    parts = [
        (
            Problem(problem.X[b.samples], problem.y[b.samples], problem.activation, problem.loss),
            Weights(weights.W[b.neurons], weights.v[b.neurons]),
        )
        for b in blocks
        # a class without neurons has a constant loss
        if len(b.neurons)
    ]
    return [lp_crossover(part, own, time=time, clip=clip) for part, own in parts]


def _curves(
    problem: Problem, weights: Sequence[Weights], **settings: Any
) -> tuple[dict[str, Band], dict[str, str]]:
    """Means of each bound over the heads."""
    bands: dict[str, list[Band]] = {}
    reasons: dict[str, str] = {}
    _, mixed = (decouple if problem.outputs_dim == 1 else decouple_classes)(problem, weights[0])
    if mixed:
        # it holds, but was found 10^4 times the loss at the start, and takes a minute
        reasons["certified"] = f"not evaluated, as it says nothing of use where {mixed}"
    for w in weights:
        found = utility_curve(problem, w, bounds=tuple(n for n in BOUNDS if n not in reasons), **settings)
        reasons |= found.reasons
        for name, band in found.curves.items():
            bands.setdefault(name, []).append(band)
    curves = {}
    for name, found in bands.items():
        if name in reasons:
            continue
        valid = np.all([band.valid for band in found], axis=0)
        why = next((band.reason for band in found if band.reason), "")
        if not valid.any():
            reasons[name] = why
            continue
        low, high = (np.mean([getattr(band, side) for band in found], axis=0) for side in ("lower", "upper"))
        curves[name] = Band(found[0].times, low, high, valid, why, found[0].source)
    return curves, reasons
