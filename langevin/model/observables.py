"""Observables of a run: names, units and meaning; the own class of a neuron.

Over ``(path, time)``: loss, accuracy, displacement, squared distance to the zeroth-order path, shares of
misaligned, distorted and dead neurons; held-out accuracies on request. Over neurons, on request:
alignment, own-class pre-activation and head alignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from langevin.model.problem import Problem, beyond_scalar
from langevin.model.schedule import Schedule
from langevin.support import validate
from langevin.support.validate import FloatArray


@dataclass(frozen=True)
class Observable:
    """Description of an observable.

    Attributes
    ----------
    meaning : str
        In a line.
    units : str
        "1" for ratios and counts.
    classes : bool
        Whether it needs labels -1 and +1, or classes.
    neurons : bool
        Whether it looks at single neurons, which not every reduction simulates.
    per_neuron : bool
        Whether it has a ``neuron`` dimension.
    held_out : bool
        Whether it needs ``X_test`` and ``y_test``.
    default : bool
        Whether it is observed unless others are asked for.
    """

    meaning: str
    units: str = "1"
    classes: bool = False
    neurons: bool = False
    per_neuron: bool = False
    held_out: bool = False
    default: bool = True


_EACH_NEURON: dict[str, Any] = dict(classes=True, neurons=True, per_neuron=True, default=False)

OBSERVABLES = {
    "loss": Observable("training loss, the sum over samples", "loss"),
    "accuracy": Observable(
        "share of training samples with y f > 0, or the largest output in their class", classes=True
    ),
    "displacement": Observable("distance ||theta_t - theta_0|| of all parameters", "parameter"),
    "squared_distance": Observable(
        "squared distance ||theta_t - theta~_t||^2 to the zeroth-order path on the same grid", "parameter^2"
    ),
    "misaligned": Observable("share of neurons with s_j v_j < 0", classes=True, neurons=True),
    "distorted": Observable(
        "share of neurons whose mean own-class pre-activation is below its start", classes=True, neurons=True
    ),
    "dead": Observable("share of ReLU neurons active on no training sample", classes=True, neurons=True),
    "alignment": Observable("cosine of w_j and the mean of its own class", **_EACH_NEURON),
    "preactivation": Observable("mean of w_j . x over its own class", "input parameter", **_EACH_NEURON),
    "head_alignment": Observable("s_j v_j", "parameter", **_EACH_NEURON),
    "test_accuracy": Observable(
        "share of held-out samples with y f > 0, or the largest output in their class",
        classes=True,
        held_out=True,
        default=False,
    ),
    "knn_accuracy": Observable(
        "k-nearest-neighbour accuracy of the hidden features on held-out samples",
        classes=True,
        held_out=True,
        default=False,
    ),
}


def requested(
    problem: Problem, schedule: Schedule, names: Sequence[str] | None, exclude: Sequence[str] = ()
) -> tuple[str, ...]:
    """Check the names requested in addition to the defaults.

    Raises
    ------
    ValueError
        On an unknown name, or one that the problem or the schedule does not allow.
    """
    names = (
        [names]
        if isinstance(names, str)
        else validate.sequence("observables", () if names is None else names, str)
    )
    asked = tuple(dict.fromkeys(names))
    for name in asked:
        if name not in OBSERVABLES or name in exclude:
            allowed = ", ".join(n for n in OBSERVABLES if n not in exclude)
            raise ValueError(f"observables must be among {allowed}; got {name!r}")
        observable = OBSERVABLES[name]
        if observable.neurons and (beyond := beyond_scalar(problem, schedule)):
            raise ValueError(
                f"observables: {name!r} needs a scalar head and full batches, got {beyond}: leave it out"
            )
        if observable.classes and not problem.classification:
            raise ValueError(
                f"observables: {name!r} needs labels -1 and +1, or classes, but y holds other targets"
            )
        if observable.held_out and problem.X_test is None:
            raise ValueError(f"observables: {name!r} needs held-out points: give Problem X_test and y_test")
    return asked


def select(
    problem: Problem, asked: Sequence[str], exclude: Sequence[str] = (), *, neurons: bool = True
) -> tuple[str, ...]:
    """Return the observables: the defaults that the problem allows, and those ``asked`` for in addition.

    Without ``neurons``, those that look at single neurons are no defaults.
    """
    defaults = [
        name
        for name, o in OBSERVABLES.items()
        if o.default
        and (problem.classification or not o.classes)
        and (neurons or not o.neurons)
        and name not in exclude
    ]
    return tuple(dict.fromkeys([*defaults, *asked]))


def own_class(problem: Problem, W: FloatArray) -> FloatArray:
    """Own class ``s_j`` of each neuron, -1 or +1: where it responds more, on average over a class.

    Under Assumption 3.2 this is the class of the neuron's cone.

    Parameters
    ----------
    W : ndarray, shape (h, d)

    Returns
    -------
    ndarray, shape (h,)

    Raises
    ------
    ValueError
        If the problem has K outputs.
    """
    if problem.outputs_dim > 1:
        raise ValueError(
            f"problem must have one output for the own class of a neuron, got K={problem.outputs_dim}: take "
            "'logistic' for two classes"
        )
    features = problem.features(W)
    difference = np.zeros(W.shape[0])
    for label in (-1.0, 1.0):
        members = problem.y == label
        if members.any():
            difference += label * features[members].mean(axis=0)
    return np.where(difference >= 0, 1.0, -1.0)
