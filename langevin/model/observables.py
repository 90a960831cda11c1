"""Observables of a run: names, units, dimensions and meaning.

Over ``(path, time)``: loss, accuracy, displacement, squared distance to the zeroth-order path, shares of
misaligned, distorted and dead neurons; held-out accuracies on request. Also on request: of each neuron its
alignment, own-class pre-activation and head, of each class its accuracy, and the confusion of classes at the
last record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from langevin.model.alignment import CONES, cone
from langevin.model.problem import Problem
from langevin.support import validate


@dataclass(frozen=True)
class Observable:
    """Description of an observable.

    Attributes
    ----------
    meaning : str
        In a line.
    units : str
        "1" for ratios and counts.
    dims : tuple of str
        Dimensions besides ``path``: ``time``, unless it is observed at the last record alone, ``neuron``,
        ``class`` and ``predicted`` class.
    classes : bool
        Whether it needs labels -1 and +1, or classes.
    neurons : bool
        Whether it looks at single neurons, which not every reduction simulates.
    cone : bool
        Whether it needs the aligned cones of `langevin.model.alignment`.
    held_out : bool
        Whether it needs ``X_test`` and ``y_test``.
    default : bool
        Whether it is observed unless others are asked for.
    one_output, several : str
        What takes its place with one output, or with K; empty where it is defined itself.
    """

    meaning: str
    units: str = "1"
    dims: tuple[str, ...] = ("time",)
    classes: bool = False
    neurons: bool = False
    cone: bool = False
    held_out: bool = False
    default: bool = True
    one_output: str = ""
    several: str = ""

    @property
    def over_time(self) -> bool:
        """Whether it is observed at every record."""
        return "time" in self.dims

    @property
    def per_neuron(self) -> bool:
        """Whether it has a ``neuron`` dimension."""
        return "neuron" in self.dims

    def missing(self, problem: Problem) -> str:
        """Say what a problem lacks for it, and the remedy, or nothing."""
        K = problem.outputs_dim
        if self.classes and not problem.classification:
            return "needs labels -1 and +1, or classes, but y holds other targets"
        if self.held_out and problem.X_test is None:
            return "needs held-out points: give Problem X_test and y_test"
        if self.cone and cone(problem) is None:
            return f"needs a loss with aligned cones, {' or '.join(CONES)}, got {problem.loss!r}"
        if self.one_output and K == 1:
            return f"needs K outputs, got one: take {self.one_output!r}"
        if self.several and K > 1:
            return f"needs one output, got K = {K}: take {self.several!r}"
        return ""


_OF_NEURONS: dict[str, Any] = dict(classes=True, neurons=True)
_EACH_NEURON: dict[str, Any] = dict(_OF_NEURONS, dims=("time", "neuron"), default=False)
_ON_REQUEST: dict[str, Any] = dict(classes=True, default=False)
_HELD_OUT: dict[str, Any] = dict(_ON_REQUEST, held_out=True)
_CONFUSION = ("class", "predicted")

OBSERVABLES = {
    "loss": Observable("training loss, the sum over samples", "loss"),
    "accuracy": Observable(
        "share of training samples with y f > 0, or the largest output in their class", classes=True
    ),
    "displacement": Observable("distance ||theta_t - theta_0|| of all parameters", "parameter"),
    "squared_distance": Observable(
        "squared distance ||theta_t - theta~_t||^2 to the zeroth-order path on the same grid", "parameter^2"
    ),
    "misaligned": Observable(
        "share of neurons with s_j v_j < 0, or with K outputs a head outside the aligned cone of their class",
        cone=True,
        **_OF_NEURONS,
    ),
    "distorted": Observable(
        "share of neurons whose mean own-class pre-activation is below its start", **_OF_NEURONS
    ),
    "dead": Observable("share of ReLU neurons active on no training sample", **_OF_NEURONS),
    "wholly_misaligned": Observable(
        "share of neurons whose head exceeds every condition of the aligned cone of their class",
        cone=True,
        default=False,
        one_output="misaligned",
        **_OF_NEURONS,
    ),
    "alignment": Observable("cosine of w_j and the mean of its own class", **_EACH_NEURON),
    "preactivation": Observable("mean of w_j . x over its own class", "input parameter", **_EACH_NEURON),
    "head_alignment": Observable("s_j v_j", "parameter", several="cone_distance", **_EACH_NEURON),
    "cone_distance": Observable(
        "distance of v_j to the aligned cone of its own class", "parameter", cone=True, **_EACH_NEURON
    ),
    "test_accuracy": Observable(
        "share of held-out samples with y f > 0, or the largest output in their class", **_HELD_OUT
    ),
    "knn_accuracy": Observable(
        "k-nearest-neighbour accuracy of the hidden features on held-out samples", **_HELD_OUT
    ),
    "class_accuracy": Observable(
        "accuracy on the training samples of a class", dims=("time", "class"), **_ON_REQUEST
    ),
    "test_class_accuracy": Observable(
        "accuracy on the held-out samples of a class", dims=("time", "class"), **_HELD_OUT
    ),
    "confusion": Observable(
        "training samples of a class that are predicted to be of another, at the last record",
        dims=_CONFUSION,
        **_ON_REQUEST,
    ),
    "test_confusion": Observable(
        "held-out samples of a class that are predicted to be of another, at the last record",
        dims=_CONFUSION,
        **_HELD_OUT,
    ),
}


def requested(problem: Problem, names: Sequence[str] | None, exclude: Sequence[str] = ()) -> tuple[str, ...]:
    """Check the names requested in addition to the defaults.

    Raises
    ------
    ValueError
        On an unknown name, or one that the problem does not allow.
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
        if missing := OBSERVABLES[name].missing(problem):
            raise ValueError(f"observables: {name!r} {missing}")
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
        if o.default and not o.missing(problem) and (neurons or not o.neurons) and name not in exclude
    ]
    return tuple(dict.fromkeys([*defaults, *asked]))
