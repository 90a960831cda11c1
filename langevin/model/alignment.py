"""Own class of a neuron, and how far its head is from the cone in which it is aligned with that class.

While the head of a neuron is in the aligned cone of its own class, training moves the neuron towards the
samples of this class; outside, it may turn the neuron away from them. With one output the cone is
``s_j v_j >= 0``; the cones of K outputs are new (theory for K outputs, section 3').
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from langevin.model.problem import Problem
from langevin.support.validate import FloatArray


@dataclass(frozen=True)
class Cone:
    """The aligned cone of a class, given by conditions on the K numbers of a head.

    Attributes
    ----------
    excess : callable
        Heads ``(h, K)`` and own classes, as numbers ``(h,)``, to how far each condition is exceeded, shape
        (h, m): the head is aligned if no entry is positive, and wholly misaligned if all are.
    distance : callable
        The excess to the Euclidean distance from the cone, shape (h,).
    """

    excess: Callable[[FloatArray, np.ndarray], FloatArray]
    distance: Callable[[FloatArray], FloatArray]


def _orthant_distance(excess: FloatArray) -> FloatArray:
    """Distance where each condition is on another coordinate."""
    return np.linalg.norm(np.maximum(excess, 0.0), axis=1)


def _lead_of_others(V: FloatArray, own: np.ndarray) -> FloatArray:
    """``V_jk - V_jc`` for the classes ``k`` other than the own one ``c``."""
    other = np.arange(V.shape[1]) != own[:, None]
    return (V - np.take_along_axis(V, own[:, None], axis=1))[other].reshape(len(V), -1)


def _softmax_distance(excess: FloatArray) -> FloatArray:
    # the nearest head of the cone raises V_c, and lowers all above it, to their common mean
    ordered = -np.sort(-excess, axis=1)
    means = np.cumsum(ordered, axis=1) / np.arange(2, ordered.shape[1] + 2)
    rise = np.maximum(means.max(axis=1), 0.0)
    return np.hypot(rise, _orthant_distance(excess - rise[:, None]))


def _signed(V: FloatArray, own: np.ndarray) -> FloatArray:
    """``-V_jc`` for the own class ``c`` and ``V_jk`` for the others."""
    return np.where(np.arange(V.shape[1]) == own[:, None], -V, V)


# of the losses with classes: {V_c >= V_k for all k}, and {V_c >= 0 >= V_k}
CONES = {"softmax": Cone(_lead_of_others, _softmax_distance), "ovr": Cone(_signed, _orthant_distance)}
_ONE_OUTPUT = Cone(lambda V, own: -own[:, None] * V, _orthant_distance)


def cone(problem: Problem) -> Cone | None:
    """The aligned cone of a problem's classes; None if it has no classes, or a loss for which none is known.

    With one output any loss will do, and own classes are -1 or +1.
    """
    if not problem.classification:
        return None
    return _ONE_OUTPUT if problem.outputs_dim == 1 else CONES.get(problem.loss)


def head_excess(problem: Problem, v: FloatArray, own: np.ndarray) -> FloatArray:
    """How far each head exceeds each condition of the aligned cone of its own class.

    Conditions are compared without a tolerance: a head on the boundary, such as a zero head, is aligned.

    Parameters
    ----------
    problem : Problem
    v : ndarray, shape (h,) or (h, K)
        Heads of neurons.
    own : ndarray, shape (h,)
        Their own classes, see `own_class`.

    Returns
    -------
    ndarray, shape (h, m)
        With softmax ``m = K - 1``, with one-vs-rest ``K``, with one output 1. A neuron is misaligned if any
        entry of its row is positive, and wholly misaligned if all are.

    Raises
    ------
    ValueError
        If the problem has no aligned cones.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> head_excess(problem, np.array([[1.0, 3.0, 0.0]]), np.array([0]))
    array([[ 2., -1.]])
    """
    return _required(problem).excess(v.reshape(len(v), -1), own)


def cone_distance(problem: Problem, v: FloatArray, own: np.ndarray) -> FloatArray:
    """Distance ``a_j`` of each head to the aligned cone of its own class, shape (h,).

    0 for aligned neurons; with one output ``|v_j|`` for misaligned ones. Arguments and errors are those of
    `head_excess`.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> cone_distance(problem, np.array([[1.0, 3.0, 0.0], [1.0, 1.0, 0.0]]), np.array([0, 0]))
    array([1.41421356, 0.        ])
    """
    return _required(problem).distance(head_excess(problem, v, own))


def _required(problem: Problem) -> Cone:
    found = cone(problem)
    if found is None:
        raise ValueError(
            f"problem must have labels -1 and +1, or a loss among {', '.join(CONES)}, for aligned cones, got "
            f"loss {problem.loss!r}{'' if problem.classification else ' with other targets'}"
        )
    return found


def own_class(problem: Problem, W: FloatArray) -> np.ndarray:
    """Own class of each neuron: the one on whose samples it responds most, on average.

    Under Assumption 3.2, or 3.2' with K classes, this is the class of the neuron's cone. On a tie, such as of
    a neuron that is active on no sample, it is +1, or the first class.

    Parameters
    ----------
    W : ndarray, shape (h, d)

    Returns
    -------
    ndarray, shape (h,)
        Labels as in ``problem.y``: -1.0 or +1.0, or class numbers.

    Raises
    ------
    ValueError
        If the problem has no classes.

    Examples
    --------
    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> own_class(problem, np.array([[-1.0, 0.5, 0.2], [0.0, 0.0, 1.0]]))
    array([1, 2])
    """
    if not problem.classification:
        raise ValueError(
            f"problem must have labels -1 and +1, or classes, for the own class of a neuron, got "
            f"loss {problem.loss!r} with other targets"
        )
    features = problem.features(W)
    # +1 comes first: ties are its
    labels = np.array([1.0, -1.0] if problem.outputs_dim == 1 else range(problem.outputs_dim))
    means = np.zeros((len(labels), len(W)))
    for mean, label in zip(means, labels, strict=True):
        members = problem.y == label
        if members.any():
            mean[:] = features[members].mean(axis=0)
    return labels[means.argmax(axis=0)]
