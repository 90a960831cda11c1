"""Sandwich bounds on the zeroth-order loss of decoupled problems (sections 4b and 4b')."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from bounds.band import Band, nowhere
from bounds.features.blocks import COVERS as BLOCKS
from bounds.loss.enclosure import CLASSES, enclose
from bounds.support.covers import declares
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights

SOURCE = "new (4b); replaces Theorems 4.2 and 4.3 of [1]"
SOURCE_OUTPUTS = "new (4b')"
COVERS = {"one output": BLOCKS, "K classes": CLASSES}


@declares(COVERS)
def sandwich(problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None = None) -> Band:
    r"""Enclose the zeroth-order loss of a decoupled problem, clipped or not.

    New (4b); replaces Theorems 4.2 and 4.3 of [1]_. In the clock ``S = int sum_i c_i g_i dt``
    of a block (``g_i = |r_i|``, ``c_i`` the clipping factor) heads and pre-activations obey linear
    differential inequalities with ``cosh`` and ``sinh`` solutions. They enclose the margins and the
    gradient norms, which in turn enclose the clock. Clipping is exact, and the two bounds meet on
    collapsed classes.

    With K classes (new, 4b') each class takes the tightest form that covers it, and ``source`` names those in
    use: (a), exactly the scalar statement, if each neuron's heads of other classes are equal (softmax), or
    minus the head of its own class (one-vs-rest); (c), the exact flow, if the samples of the class are equal;
    (b), any heads (softmax).

    Assumptions
        With one output either a ReLU net under assumption 3.2 (and, for full fine-tuning, 3.1), or a linear
        net whose neurons each keep one sign of ``y_i w_j . x_i`` (and, for full fine-tuning, ``y_i y_k <x_i,
        x_k> >= 0`` for all pairs). With K classes a ReLU net under assumption 3.2': each neuron is strictly
        active on the samples of exactly one class (and, for full fine-tuning, 3.1': ``<x_i, x_k>`` is
        positive within classes and not positive between them).

    Parameters
    ----------
    problem, weights, schedule
        What is trained, from where, and how; the noise plays no part.
    times : array_like, shape (m,), optional
        Times within the schedule.

    Returns
    -------
    Band
        Bounds of ``L(theta~_t)``, up to the integration error of the clock, which is padded by 1e-6 but
        not enclosed in interval arithmetic. Not valid, for good, from the first time at which a neuron may
        leave its cone or (square loss) a margin may reach 1; nowhere if an assumption fails.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = Problem([[1.0, 0.0], [0.0, 1.0]], [1, -1])
    >>> weights = Weights([[1.0, -0.5], [-0.5, 1.0]], [0.1, -0.2])
    >>> band = sandwich(problem, weights, Schedule.fft(time=2.0, clip=1.0), [0.0, 2.0])
    >>> band.valid, band.upper.round(3)
    (array([ True,  True]), array([1.243, 0.505]))
    >>> problem = Problem(np.eye(3), [0, 1, 2], loss="softmax")
    >>> weights = Weights(np.eye(3) - 0.4, np.zeros((3, 3)))
    >>> band = sandwich(problem, weights, Schedule.fft(time=5.0), [5.0])
    >>> band.source, band.lower.round(3), band.upper.round(3)
    ("new (4b'(a))", array([0.143]), array([0.143]))
    """
    found = enclose(problem, weights, schedule, times)
    t = record_times(schedule, times)
    if isinstance(found, str):
        return nowhere(t, found, SOURCE if problem.outputs_dim == 1 else SOURCE_OUTPUTS)
    upper = found.upper.sum(1)
    # at time 0 they differ by roundoff
    lower = np.minimum(found.lower.sum(1), upper)
    source = SOURCE if found.source == "4b" else f"new ({found.source})"
    return Band(t, lower, upper, found.valid, found.reason, source)
