"""From a simulation to the arrays of all views: the pure model of the explorer.

`draw` takes a `langevin.simulation.config.Simulation`, whose fields are the options of ``python -m
langevin.simulate``, and returns `Views`: arrays over the same ``m`` times. Nothing here knows of a browser::

    from explorer.presets import PRESETS
    from explorer.views import draw

    for preset in PRESETS:
        views = draw(preset.simulation)        # or replace(preset.simulation, sigma=0.1), ...
        views.times                            # (m,)
        views.plane.neurons                    # (m, h, 2), of path 0; .zeroth without noise
        views.plane.misaligned                 # (m, h) bool; .own: class of each neuron
        views.curves["loss"].mean              # (m,); .low, .high, .zeroth; other names in CURVES
        views.theorems.distance["paper"].upper # (m,), NaN where it does not hold; .reason
        views.epsilon                          # (m,)
        preset.says(views)                     # two sentences, and the theorem's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

import bounds
from bounds.distance.approximation import Kind
from explorer.plane import Plane, plane
from langevin.model.observables import OBSERVABLES
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.simulation.config import Simulation
from langevin.solvers.diffusion import euler_maruyama
from langevin.solvers.errors import Diverged
from langevin.solvers.trajectory import trajectory
from langevin.solvers.zeroth import zeroth_order
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    import xarray as xr

DELTA = 1e-5
RECORDS = 101
# paths of the first picture
FEW = 4
# recorded over time where a problem has them
CURVES = ("loss", "squared_distance", "misaligned", "distorted", "dead", "accuracy", "test_accuracy")
CONFUSIONS = ("test_confusion", "confusion")
# times at which privacy is counted in the first picture, and by an accountant of Poisson batches
_COUNTED, _ACCOUNTED = 12, 6


@dataclass(frozen=True, eq=False)
class Curve:
    """An observable over time.

    Attributes
    ----------
    mean, low, high : ndarray, shape (m,)
        Over the paths: the mean, and the middle 90 %.
    error : ndarray, shape (m,)
        Standard error of the mean; NaN for one path.
    zeroth : ndarray, shape (m,), or None
        Of the zeroth-order path, without noise; None if it has no such observable.
    """

    mean: FloatArray
    low: FloatArray
    high: FloatArray
    error: FloatArray
    zeroth: FloatArray | None


@dataclass(frozen=True, eq=False)
class Theorems:
    """What the theorems say of a run; each statement says by itself where and why it does not hold.

    Attributes
    ----------
    distance : dict of str to bounds.Band
        Bounds on the expected squared distance to the zeroth-order path, by `bounds.approximation_error`'s
        ``kind``.
    zeroth_loss, expected_loss : bounds.Band or None
        Enclosures of the losses; None in the first picture.
    distortion : bounds.Distortion
        Of full fine-tuning from the start.
    alignment : bounds.AlignmentTime
        Of linear probing from the start.
    """

    distance: dict[str, bounds.Band]
    zeroth_loss: bounds.Band | None
    expected_loss: bounds.Band | None
    distortion: bounds.Distortion
    alignment: bounds.AlignmentTime


@dataclass(frozen=True, eq=False)
class Views:
    """All that is shown of a simulation.

    Attributes
    ----------
    simulation : Simulation
        With the number of paths that were simulated.
    problem, weights, schedule
        What was simulated.
    times : ndarray, shape (m,)
        Diffusion times, the same in all views.
    probing : float
        Time at which linear probing ends; 0 without it, the last time without full fine-tuning.
    plane : Plane
        The neurons moving.
    curves : dict of str to Curve
        Those of `CURVES` that the problem has.
    epsilon : ndarray, shape (m,)
        Privacy spent by each time at ``delta``; infinite without noise or clipping.
    delta : float
    accountant : str
        Why ``epsilon`` is NaN, if it is.
    confusion : ndarray, shape (K, K), or None
        Mean number of samples by class and prediction at the end, held-out ones if there are any.
    theorems : Theorems
    failure : str
        What went wrong, if a path diverged.
    """

    simulation: Simulation
    problem: Problem
    weights: Weights
    schedule: Schedule
    times: FloatArray
    probing: float
    plane: Plane
    curves: dict[str, Curve]
    epsilon: FloatArray
    delta: float
    accountant: str
    confusion: FloatArray | None
    theorems: Theorems
    failure: str

    @property
    def counts(self) -> dict[str, float]:
        """Mean numbers of misaligned, distorted and dead neurons at the end, and of them without noise."""
        found, width = {}, self.weights.width
        for name in ("misaligned", "distorted", "dead"):
            if name in self.curves:
                curve = self.curves[name]
                found[name] = float(curve.mean[-1]) * width
                if curve.zeroth is not None:
                    found[f"zeroth_{name}"] = float(curve.zeroth[-1]) * width
                    found[f"first_{name}"] = float(curve.zeroth[0]) * width
        return found


def draw(simulation: Simulation, *, delta: float = DELTA, quick: bool = False) -> Views:
    """Simulate, and return the arrays of all views.

    Parameters
    ----------
    simulation : Simulation
        With single neurons, whatever its ``reduce``.
    delta : float
        At which privacy is counted.
    quick : bool
        Simulate at most `FEW` paths, and leave out the bounds that take longer.

    Raises
    ------
    ValueError, TypeError, MemoryError
        On values that cannot be simulated, with the remedy.
    """
    if quick:
        simulation = replace(simulation, paths=min(simulation.paths, FEW))
    start = simulation.start()
    problem, weights, schedule = start.problem, start.weights, simulation.schedule
    times = schedule.default_times(min(RECORDS, simulation.steps + 1))
    given = (problem, weights, schedule)
    asked = observables(problem)
    same: dict[str, Any] = dict(dt=simulation.dt, times=times)
    of_neurons = [name for name in asked if OBSERVABLES[name].neurons]
    zeroth = zeroth_order(*given, **same, reduce="span", observables=[*of_neurons, *_accuracies(asked)])
    seeded: dict[str, Any] = dict(rng=simulation.seed, observables=asked)
    failure = ""
    try:
        run = euler_maruyama(
            *given, **same, **seeded, paths=simulation.paths, reduce="span", threads=1, precision="double"
        )
    except Diverged as error:
        run, failure = error.run, str(error)
    paths = [trajectory(*given, **same, **seeded, noisy=noisy) for noisy in (True, False)]
    times = run.time.values
    epsilon, accountant = spent(schedule, times, delta, simulation.dt, quick=quick)
    return Views(
        simulation,
        *given,
        times,
        float(np.sum([phase.time for phase in schedule if phase.method == "lp"])),
        plane(problem, weights, *paths),
        {name: _curve(run, zeroth, name) for name in CURVES if name in run},
        epsilon,
        delta,
        accountant,
        next((run[name].mean("path").values for name in CONFUSIONS if name in run), None),
        theorems(simulation, *given, times, quick=quick),
        failure,
    )


def theorems(
    simulation: Simulation,
    problem: Problem,
    weights: Weights,
    schedule: Schedule,
    times: FloatArray,
    *,
    quick: bool = False,
) -> Theorems:
    """Return what the theorems say; ``quick`` leaves out what integrates the zeroth-order flow."""
    given = (problem, weights, schedule, times)
    chain: dict[str, Any] = {"dt": simulation.dt} if simulation.sample_rate < 1 else {}
    distortion = bounds.distortion(problem, weights, clip=simulation.clip)
    # the flow is smooth, and its integration fast
    smooth = distortion.valid or problem.activation != "relu" or simulation.method == "lp"
    sharpest: Kind = "ode" if smooth or chain else "lambert"
    kinds: tuple[Kind, ...] = ("paper", "monotone") if quick else ("paper", "monotone", sharpest)
    base = "flow" if smooth or chain else "sandwich"
    return Theorems(
        {kind: bounds.approximation_error(*given, kind=kind, **chain) for kind in kinds},
        None if quick else bounds.sandwich(*given),
        None if quick else bounds.certified_loss(*given, base=base, **chain),
        distortion,
        bounds.alignment_time(problem, weights, clip=simulation.clip),
    )


def spent(
    schedule: Schedule, times: FloatArray, delta: float, dt: float, *, quick: bool = False
) -> tuple[FloatArray, str]:
    """Return the privacy spent by each time, and why it is not known.

    ``quick`` counts at a few times, with straight lines between them; so does the accountant that Poisson
    batches take, which ``quick`` leaves out.
    """
    found = np.full(len(times), np.nan)
    if any(phase.clip is None for phase in schedule):
        return found, "without clipping nothing is private"
    sampled = any(phase.sample_rate < 1 for phase in schedule)
    if sampled and quick:
        return found, "being computed"
    count = _ACCOUNTED if sampled else _COUNTED if quick else len(times) - 1
    at = np.unique(np.linspace(1, len(times) - 1, count).round().astype(int))
    try:
        values = [bounds.epsilon(until(schedule, float(times[i])), delta, dt) for i in at]
    except (ValueError, ArithmeticError, MemoryError) as error:
        return found, str(error)
    except ImportError as error:
        return found, f"Poisson batches need an accountant: {error}"
    return np.interp(times, np.append(0.0, times[at]), np.append(0.0, values)), ""


def until(schedule: Schedule, time: float) -> Schedule:
    """Return the part of a schedule up to a positive time."""
    lengths = schedule.time_in([time])[:, 0]
    parts = zip(schedule, lengths, strict=True)
    return Schedule([replace(phase, time=float(length)) for phase, length in parts if length > 0])


def observables(problem: Problem) -> tuple[str, ...]:
    """Return the names of `CURVES` and `CONFUSIONS` that the problem has and that are no defaults."""
    wanted = [name for name in CURVES if not OBSERVABLES[name].missing(problem)]
    wanted += [name for name in CONFUSIONS if not OBSERVABLES[name].missing(problem)][:1]
    return tuple(wanted)


def _accuracies(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith("accuracy")]


def _curve(run: xr.Dataset, zeroth: xr.Dataset, name: str) -> Curve:
    values = run[name].values
    with np.errstate(all="ignore"):
        mean = values.mean(axis=0)
        error = values.std(axis=0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan * mean
        low, high = np.quantile(values, [0.05, 0.95], axis=0)
    return Curve(mean, low, high, error, zeroth[name].values if name in zeroth else None)
