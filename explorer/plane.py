"""Samples, cones and neurons in the plane."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from langevin.model.alignment import cone, head_excess, own_class
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

# directions that are tried for the sides of a cone
_DIRECTIONS = 7200


@dataclass(frozen=True, eq=False)
class Plane:
    """What moves in the plane; inputs of more dimensions are projected onto the plane of their class means.

    Attributes
    ----------
    samples : ndarray, shape (n, 2)
    labels : ndarray, shape (n,)
        Class of each sample: its number in ``classes``, or -1 if the targets are no classes.
    classes : tuple of str
        Names of the classes, in the order of labels.
    neurons : ndarray, shape (m, h, 2)
        ``w_j`` at each time along one path of the diffusion.
    zeroth : ndarray, shape (m, h, 2)
        The same without noise.
    own : ndarray of int, shape (h,)
        Class in whose cone each neuron starts, as ``labels``.
    misaligned, zeroth_misaligned : ndarray of bool, shape (m, h)
        Whether its head is outside the aligned cone of this class; False if that is not defined.
    cones : dict of int to (float, float)
        Angles in radians between which a neuron responds to all samples of a class and to no other sample;
        only for classes that have such directions, in two dimensions.
    flat : bool
        Whether the inputs have two dimensions, so that nothing is projected.
    """

    samples: FloatArray
    labels: np.ndarray
    classes: tuple[str, ...]
    neurons: FloatArray
    zeroth: FloatArray
    own: np.ndarray
    misaligned: np.ndarray
    zeroth_misaligned: np.ndarray
    cones: dict[int, tuple[float, float]]
    flat: bool


Path = tuple[FloatArray, FloatArray]


def plane(problem: Problem, weights: Weights, path: Path, zeroth: Path) -> Plane:
    """Return what moves in the plane.

    Parameters
    ----------
    problem, weights
        At the start.
    path, zeroth : tuple of ndarray, shapes (m, h, d) and (m, h) or (m, h, K)
        First layer and head along one path of the diffusion, and without noise.
    """
    values = list(problem.labels.values())
    labels = np.full(problem.samples, -1)
    for k, value in enumerate(values):
        labels[problem.y == value] = k
    basis = _basis(problem, labels)
    starts = own_class(problem, weights.W) if values else np.zeros(len(weights.v))
    own = np.array([values.index(value) for value in starts]) if values else np.zeros(len(weights.v), int)
    return Plane(
        problem.X @ basis,
        labels,
        tuple(problem.labels),
        path[0] @ basis,
        zeroth[0] @ basis,
        own,
        _misaligned(problem, path[1], starts),
        _misaligned(problem, zeroth[1], starts),
        _cones(problem.X, labels) if problem.dim == 2 and problem.activation == "relu" else {},
        problem.dim == 2,
    )


def _basis(problem: Problem, labels: np.ndarray) -> FloatArray:
    """Return orthonormal columns, shape (d, 2): those of the plane in which class means differ most."""
    if problem.dim == 2:
        return np.eye(2)
    rows = [problem.X[labels == k].mean(axis=0) for k in np.unique(labels)]
    # two directions, however few the classes
    axes = np.linalg.svd(np.vstack([rows, problem.X]) if len(rows) < 2 else np.array(rows))[2]
    basis = np.zeros((problem.dim, 2))
    found = axes[:2].T
    basis[:, : found.shape[1]] = found * np.where(found.sum(axis=0) < 0, -1.0, 1.0)
    return basis


def _misaligned(problem: Problem, v: FloatArray, own: np.ndarray) -> np.ndarray:
    """Return whether each head is outside the aligned cone at each time, shape (m, h)."""
    if cone(problem) is None:
        return np.zeros(v.shape[:2], bool)
    return np.array([(head_excess(problem, head, own) > 0).any(axis=1) for head in v])


def _cones(X: FloatArray, labels: np.ndarray) -> dict[int, tuple[float, float]]:
    """Return the sides of the cone of each class that has one."""
    found = {}
    for k in np.unique(labels[labels >= 0]):
        own, others = X[labels == k], X[labels != k]
        middle = np.arctan2(*own.mean(axis=0)[::-1])
        # the own samples leave at most half a turn
        turns = middle + np.linspace(-np.pi, np.pi, _DIRECTIONS + 1)
        directions = np.stack([np.cos(turns), np.sin(turns)])
        inside = (own @ directions > 0).all(axis=0) & (others @ directions < 0).all(axis=0)
        if inside.any():
            found[int(k)] = (float(turns[inside][0]), float(turns[inside][-1]))
    return found
