"""What a step across hyperplanes works on."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from langevin.engine.kernels.jit import INNER, njit

# |z_ij| up to this share of max(||w_j||, ||V_j||) ||x_i|| is rounding: the neuron is on the hyperplane
ON_PLANE = 1e-13
# rounds in which slopes on hyperplanes are sought, and sweeps a round
ROUNDS, SWEEPS = 50, 8
# slopes between 0 and 1 of a sample whose combinations are all taken into account
HEAVIEST = 4
# times that a step's clipping factors and slopes are matched
MATCHES = 6

STEPS, CROSSINGS, SLIDES, FORCED, ORIGINS = range(5)
COUNTS = 5
REACHED, PAUSED, LOST = range(3)


class Net(NamedTuple):
    """What all steps read."""

    X: np.ndarray  # (n, k)
    XT: np.ndarray  # (k, n)
    y: np.ndarray  # (n, K): targets, for classes one-hot or -1 and +1
    squared: np.ndarray  # (n,): ||x_i||^2
    lengths: np.ndarray  # (n,)
    lead: np.ndarray  # (n,), int64: the first sample with the same hyperplane
    ratio: np.ndarray  # (n,): x_i over that sample
    parallel: bool  # whether any two samples share a hyperplane
    loss: int  # as in `Data` or `OutputsData` of the engine's kernels, with the address of its residual
    residual: int
    clipping: int
    clip: float
    stabiliser: float


class State(NamedTuple):
    """Where a path stands."""

    W: np.ndarray  # (h, k)
    V: np.ndarray  # (h, K)
    slopes: np.ndarray  # (h, n): mean slopes of the last step, a first guess on hyperplanes


class Damping(NamedTuple):
    """Minus the outputs' Jacobian, ``N R R^T`` at frozen slopes; ``Q`` diagonalises ``R^T N R``.

    ``N`` is the tangent kernel. Outputs of all samples are in one row, (K, n).
    """

    right: np.ndarray  # (K n, m): N R Q
    left: np.ndarray  # (K n, m): R Q
    values: np.ndarray  # (m,)


class Room(NamedTuple):
    """Work space."""

    Z: np.ndarray  # (h, n): pre-activations at the start
    on: np.ndarray  # (h, n): slopes at the start
    features: np.ndarray  # (h, n): mean over the step
    products: np.ndarray  # (h, n)
    pulled: np.ndarray  # (h, k)
    scaled: np.ndarray  # (n, k)
    # V_j . r_i / ||r_i|| is scale_j drive_ji; of one output all neurons share a row, which spares work
    drive: np.ndarray  # (h, n), or (1, n)
    scale: np.ndarray  # (h,)
    directions: np.ndarray  # (K, n): r_i / ||r_i||
    pulls: np.ndarray  # (K, n): mean c_i r_i
    outputs: np.ndarray  # (3, K, n): at the start of the step, predicted at its end, and their mean
    sample: np.ndarray  # (3, K): outputs, residual and target of one sample
    samples: np.ndarray  # (5, n)
    neuron: np.ndarray  # (9, n)
    plane: np.ndarray  # (n,), int64
    # of each sample: how many slopes between 0 and 1 are told apart, their weights, values and neurons
    heavies: np.ndarray  # (n,), int64
    heavy: np.ndarray  # (HEAVIEST, n)
    odds: np.ndarray  # (HEAVIEST, n)
    whose: np.ndarray  # (HEAVIEST, n), int64
    inputs: np.ndarray  # (k,)
    head: np.ndarray  # (h, K): mean over the step
    W: np.ndarray  # (h, k): the first stage's
    V: np.ndarray  # (h, K)


# rows of `outputs` and of `samples`: moments of the squared norms, ||r_i||, and mean pulls c_i ||r_i||
START, PREDICTED, OUTPUT = range(3)
MEAN, VARIANCE, THIRD, RESIDUAL, PULL = range(5)
# of `neuron`: BEFORE are slopes, OWN the pulls as the neuron sees them
Z, RATE, SLOPE, FORCE, PLANE_FORCE, SHARE, AREA, BEFORE, OWN = range(9)


@njit(**INNER)
def length(W, j):
    """Norm of row ``j`` of ``W``."""
    total = 0.0
    for c in range(W.shape[1]):
        total += W[j, c] * W[j, c]
    return math.sqrt(total)


@njit(**INNER)
def copy(source, target):
    """Copy a matrix into another."""
    for a in range(source.shape[0]):
        for b in range(source.shape[1]):
            target[a, b] = source[a, b]


@njit(**INNER)
def copy_state(source, target):
    """Copy a state into another."""
    copy(source.W, target.W)
    copy(source.V, target.V)
    copy(source.slopes, target.slopes)


@njit(**INNER)
def state_norm(state):
    """Of all weights."""
    total = 0.0
    for j in range(state.V.shape[0]):
        for k in range(state.V.shape[1]):
            total += state.V[j, k] * state.V[j, k]
        for c in range(state.W.shape[1]):
            total += state.W[j, c] * state.W[j, c]
    return math.sqrt(total)


def workspace(h: int, n: int, k: int, outputs: int) -> tuple[Room, tuple[State, State, State]]:
    """Work space of `advance`, and three states."""

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape)

    room = Room(
        Z=zeros(h, n),
        on=zeros(h, n),
        features=zeros(h, n),
        products=zeros(h, n),
        pulled=zeros(h, k),
        scaled=zeros(n, k),
        drive=zeros(1 if outputs == 1 else h, n),
        scale=np.ones(h),
        directions=zeros(outputs, n),
        pulls=zeros(outputs, n),
        outputs=zeros(3, outputs, n),
        sample=zeros(3, outputs),
        samples=zeros(5, n),
        neuron=zeros(9, n),
        plane=np.zeros(n, np.int64),
        heavies=np.zeros(n, np.int64),
        heavy=zeros(HEAVIEST, n),
        odds=zeros(HEAVIEST, n),
        whose=np.zeros((HEAVIEST, n), np.int64),
        inputs=zeros(k),
        head=zeros(h, outputs),
        W=zeros(h, k),
        V=zeros(h, outputs),
    )
    first, second, third = (State(zeros(h, k), zeros(h, outputs), zeros(h, n)) for _ in range(3))
    return room, (first, second, third)
