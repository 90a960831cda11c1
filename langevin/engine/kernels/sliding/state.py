"""What a step across hyperplanes works on."""

# pyright: reportArgumentType=false, reportCallIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from langevin.engine.kernels.jit import JIT, njit

# |z_ij| up to this share of max(||w_j||, |v_j|) ||x_i|| is rounding: the neuron is on the hyperplane
ON_PLANE = 1e-13
# rounds in which slopes on hyperplanes are sought, and sweeps a round
ROUNDS, SWEEPS = 50, 8
# slopes between 0 and 1 of a sample whose combinations are all taken into account
HEAVIEST = 4
# times that a step's clipping factors and slopes are matched
MATCHES = 6

STEPS, CROSSINGS, SLIDES, FORCED = range(4)
REACHED, PAUSED, LOST = range(3)


class Net(NamedTuple):
    """What all steps read."""

    X: np.ndarray  # (n, k)
    XT: np.ndarray  # (k, n)
    y: np.ndarray  # (n,)
    squared: np.ndarray  # (n,): ||x_i||^2
    lengths: np.ndarray  # (n,)
    lead: np.ndarray  # (n,), int64: the first sample with the same hyperplane
    ratio: np.ndarray  # (n,): x_i over that sample
    parallel: bool  # whether any two samples share a hyperplane
    loss: int  # as in `langevin.engine.kernels.types.Data`, with the address of its residual
    residual: int
    clipping: int
    clip: float
    stabiliser: float


class State(NamedTuple):
    """Where a path stands."""

    W: np.ndarray  # (h, k)
    v: np.ndarray  # (h,)
    slopes: np.ndarray  # (h, n): mean slopes of the last step, a first guess on hyperplanes


class Damping(NamedTuple):
    """Minus the outputs' Jacobian, ``K D`` at frozen slopes; ``Q`` diagonalises ``D^1/2 K D^1/2``."""

    right: np.ndarray  # (n, m): K D^1/2 Q
    left: np.ndarray  # (n, m): D^1/2 Q
    values: np.ndarray  # (m,)


class Room(NamedTuple):
    """Work space."""

    Z: np.ndarray  # (h, n): pre-activations at the start
    on: np.ndarray  # (h, n): slopes at the start
    features: np.ndarray  # (h, n): mean over the step
    products: np.ndarray  # (h, n)
    pulled: np.ndarray  # (h, k)
    scaled: np.ndarray  # (n, k)
    samples: np.ndarray  # (8, n)
    neuron: np.ndarray  # (8, n)
    plane: np.ndarray  # (n,), int64
    # of each sample: how many slopes between 0 and 1 are told apart, their weights, values and neurons
    heavies: np.ndarray  # (n,), int64
    heavy: np.ndarray  # (HEAVIEST, n)
    odds: np.ndarray  # (HEAVIEST, n)
    whose: np.ndarray  # (HEAVIEST, n), int64
    inputs: np.ndarray  # (k,)
    head: np.ndarray  # (h,)
    W: np.ndarray  # (h, k): the first stage's
    v: np.ndarray  # (h,)


MEAN, VARIANCE, THIRD, RESIDUAL, PULL, OUTPUT, START, PREDICTED = range(8)
Z, RATE, SLOPE, OWN, FORCE, PLANE_FORCE, SHARE, AREA = range(8)


@njit(**JIT)
def length(W, j):
    """Norm of row ``j`` of ``W``."""
    total = 0.0
    for c in range(W.shape[1]):
        total += W[j, c] * W[j, c]
    return math.sqrt(total)


@njit(**JIT)
def copy(source, target):
    """Copy a matrix into another."""
    for a in range(source.shape[0]):
        for b in range(source.shape[1]):
            target[a, b] = source[a, b]


@njit(**JIT)
def copy_state(source, target):
    """Copy a state into another."""
    copy(source.W, target.W)
    copy(source.slopes, target.slopes)
    for j in range(source.v.size):
        target.v[j] = source.v[j]


@njit(**JIT)
def state_norm(state):
    """Of all weights."""
    total = 0.0
    for j in range(state.v.size):
        total += state.v[j] * state.v[j]
        for c in range(state.W.shape[1]):
            total += state.W[j, c] * state.W[j, c]
    return math.sqrt(total)


def workspace(h: int, n: int, k: int) -> tuple[Room, tuple[State, State, State]]:
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
        samples=zeros(8, n),
        neuron=zeros(8, n),
        plane=np.zeros(n, np.int64),
        heavies=np.zeros(n, np.int64),
        heavy=zeros(HEAVIEST, n),
        odds=zeros(HEAVIEST, n),
        whose=np.zeros((HEAVIEST, n), np.int64),
        inputs=zeros(k),
        head=zeros(h),
        W=zeros(h, k),
        v=zeros(h),
    )
    first, second, third = (State(zeros(h, k), zeros(h), zeros(h, n)) for _ in range(3))
    return room, (first, second, third)
