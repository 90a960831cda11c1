"""The paper's story in five simulations, and what each run shows, in sentences that its own numbers fill.

`PRESETS` is plain data: a key, a title and a `langevin.simulation.config.Simulation` each. ``says`` takes the
`explorer.views.Views` of that simulation, quick or not, and returns `Said`: two plain sentences on what the
run shows, and what the theorem says of it with its number. No number is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import NamedTuple

import numpy as np

import bounds
from explorer.views import Views
from langevin.model.alignment import own_class
from langevin.simulation.config import Simulation
from langevin.support.validate import FloatArray


class Said(NamedTuple):
    """What a run shows: two sentences, and what the theorem says."""

    first: str
    second: str
    theorem: str


@dataclass(frozen=True)
class Preset:
    """A simulation of the story.

    Attributes
    ----------
    key : str
        In addresses.
    title : str
    simulation : Simulation
    says : callable
        From `Views` of this simulation to `Said`.
    """

    key: str
    title: str
    simulation: Simulation
    says: Callable[[Views], Said]


def response(views: Views, features: FloatArray) -> FloatArray:
    """Return each neuron's mean product with the samples of its own class, over that at the start.

    Parameters
    ----------
    features : ndarray, shape (m, h, 2)
        `Plane.neurons` or `Plane.zeroth`, of inputs in two dimensions.

    Returns
    -------
    ndarray, shape (m, h)
    """
    problem = views.problem
    own = own_class(problem, views.weights.W)[:, None] == problem.y
    means = own @ problem.X / own.sum(axis=1, keepdims=True)
    products = (features * means).sum(axis=-1)
    return products / products[0]


def _count(number: float) -> str:
    """Write a mean number of neurons."""
    with localcontext(rounding=ROUND_HALF_UP):
        # as the browser rounds
        return f"{float(format(Decimal(float(number)), '.3g')):g}"


def _heads(number: float) -> str:
    return f"{_count(number)} head{' starts' if number == 1 else 's start'}"


def _distorted(views: Views) -> str:
    """Say how many neurons are distorted at the end, with noise and without."""
    counts, paths = views.counts, views.simulation.paths
    return (
        f"{_count(counts['distorted'])} of {views.weights.width} neurons respond less to their class than at "
        f"the start (mean of {paths} path{'s' if paths > 1 else ''}; without noise "
        f"{_count(counts['zeroth_distorted'])})"
    )


def _misaligned(views: Views) -> Said:
    counts, found = views.counts, views.theorems.distortion
    sure = found.misaligned & found.survives
    start = views.weights.W @ views.problem.X.T
    own = own_class(views.problem, views.weights.W)[:, None] == views.problem.y
    kept = 1 - found.largest_drop / np.where(own, start, np.inf).min(axis=1)
    lowest = response(views, views.plane.zeroth)[:, sure].min()
    return Said(
        f"{_count(counts['first_misaligned'])} of {views.weights.width} heads start with the wrong sign, "
        "and full fine-tuning moves their neurons away from the samples of their class until the head "
        "has changed its sign.",
        f"At the end {_distorted(views)}.",
        f"Theorem 3.3, re-derived: without noise, {int(sure.sum())} of the {int(found.misaligned.sum())} "
        "misaligned neurons are sure to stay active on all samples of their class, and keep at least "
        f"{np.floor(100 * kept[sure].min()):.0f}% of each response; the lowest mean is {lowest:.0%}.",
    )


def _probing(views: Views) -> Said:
    counts, misaligned = views.counts, views.curves["misaligned"]
    assert misaligned.zeroth is not None
    left = np.flatnonzero(misaligned.zeroth > 0)
    aligned = views.times[min(left[-1] + 1, len(views.times) - 1)] if left.size else 0.0
    return Said(
        f"Until time {views.probing:.3g} the head alone trains: the neurons stand still while the "
        f"{_count(counts['first_misaligned'])} misaligned heads change sign.",
        f"Full fine-tuning then starts from aligned heads: at the end {_distorted(views)}.",
        "Theorem 3.4, re-derived: without noise, probing has aligned all heads by time "
        f"{views.theorems.alignment.sharp:.3g}; the last one is aligned at time {aligned:.3g}.",
    )


def _noise(views: Views) -> Said:
    distance, band = views.curves["squared_distance"], views.theorems.distance["paper"]
    return Said(
        "The heads are probed first here too, but with "
        f"sigma {views.simulation.sigma:g}, for epsilon {views.epsilon[-1]:.3g}.",
        f"Noise moves features whatever the schedule: at the end {_distorted(views)}.",
        "Theorem 2.2: the expected squared distance of all weights from those without noise is at most "
        f"{band.upper[-1]:.3g} at the end; over the paths it is {distance.mean[-1]:.3g}.",
    )


def _zero(views: Views) -> Said:
    counts, width = views.counts, views.weights.width
    never = 1 - views.theorems.distortion.probability
    return Said(
        "A head of zeros has no wrong sign, so that "
        f"{_count(counts['first_misaligned'])} of {width} heads start misaligned.",
        f"Full fine-tuning needs no probing then: at the end {_distorted(views)}.",
        "Theorem 3.3, re-derived: without noise a zero head distorts nothing, while a Gaussian head "
        f"misaligns some of {width} neurons with probability 1 - {never:.2g}.",
    )


def _budget(views: Views) -> Said:
    clip, sigma = views.simulation.clip, views.simulation.sigma
    assert clip is not None
    rho = bounds.zcdp(views.schedule)
    whole, half = (
        bounds.minimum_lp_share(views.problem, views.weights, clip=clip, sigma=sigma, rho=part)
        for part in (rho, rho / 2)
    )
    never = "" if half.attainable else ", more than there is"
    return Said(
        f"With {views.problem.samples} samples and sigma {sigma:.3g} a budget of epsilon "
        f"{views.epsilon[-1]:.3g} pays for time {views.schedule.duration:.3g}, and probing takes "
        f"{views.probing / views.schedule.duration:.0%} of it.",
        f"At the end {_distorted(views)}.",
        f"Theorem 5.1, re-derived: probing with {whole.share:.0%} of this budget is sure to prevent all "
        f"distortion without noise; of half the budget it would take {half.share:.0%}{never}.",
    )


def describe(views: Views) -> Said:
    """Say what any run shows, as the presets do of theirs."""
    counts, loss = views.counts, views.curves["loss"]
    distance, band = views.curves["squared_distance"], views.theorems.distance["paper"]
    first = "These targets are no classes, so that no neuron has one."
    if "zeroth_distorted" in counts:
        first = f"At the end {_distorted(views)}."
    if "zeroth_misaligned" in counts:
        begin, end = counts["first_misaligned"], counts["misaligned"]
        first += (
            f" {_heads(begin)} misaligned and {_count(end)} end so (without noise "
            f"{_count(counts['zeroth_misaligned'])})."
        )
    zeroth = "" if loss.zeroth is None else f", without noise {loss.zeroth[-1]:.3g}"
    second = f"The loss falls from {loss.mean[0]:.3g} to {loss.mean[-1]:.3g}{zeroth}."
    if loss.mean[-1] > loss.mean[0]:
        second = second.replace("falls", "rises")
    name, upper = band.source.partition(":")[0].replace("[1]", "the paper"), band.upper[-1]
    theorem = f"{name} gives no bound at the end: {band.reason}."
    if np.isfinite(upper):
        theorem = (
            f"{name}: the expected squared distance of all weights from those without noise is at most "
            f"{upper:.3g} at the end; over the paths it is {distance.mean[-1]:.3g}."
        )
    return Said(first, second, theorem)


_PLANE = Simulation(
    data="separable",
    samples=20,
    dim=2,
    loss="logistic",
    width=32,
    dt=2e-3,
    sigma=0.03,
    lp_share=0.6,
    paths=16,
    seed=1,
    reduce="span",
)
# noise for epsilon 1 at delta 1e-5
_SMALL = replace(_PLANE, samples=400, time=0.05, dt=1e-4, sigma=0.59, lp_share=0.76)
PRESETS = (
    Preset("misaligned", "A misaligned head distorts", replace(_PLANE, method="fft"), _misaligned),
    Preset("probing", "Probing first prevents it", _PLANE, _probing),
    Preset("noise", "Noise does it anyway", replace(_PLANE, sigma=0.5), _noise),
    Preset("zero", "A zero head needs no probing", replace(_PLANE, method="fft", head="zero"), _zero),
    Preset("budget", "A small budget", _SMALL, _budget),
)
