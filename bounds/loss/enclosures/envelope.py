"""Envelopes of heads and pre-activations in the clock of a block."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from langevin.support.validate import FloatArray

LARGEST = 300.0
"""Cap of ``sqrt(G) S``: margins beyond exp(300) have no loss left."""


def outer(a: FloatArray, b: FloatArray) -> FloatArray:
    """Products ``a_q b_k``."""
    return a[:, None] * b


def swing(alpha: FloatArray, z: FloatArray, G: float | FloatArray, S: FloatArray) -> tuple[FloatArray, ...]:
    """Solve ``z' = G alpha``, ``alpha' = z`` over clock ``S``: alpha, its integral, z.

    ``G`` is a number, or an array of positive ones.
    """
    g = math.sqrt(G) if isinstance(G, float) else np.sqrt(G)
    x = np.minimum(g * S, LARGEST)
    # sinh(x) and cosh(x) - 1 by one exponential, also for small arguments
    growth = np.expm1(x)
    decline = growth / (1 + growth)
    rise = growth * decline / 2
    if not isinstance(g, float) or g > 0:
        ratio, square = (growth + decline) / (2 * g), rise / g**2
        small = x < 1e-8
        if small.any():
            # for small arguments the series is exact in floating point and avoids 0/0 at tiny g
            ratio, square = np.where(small, S, ratio), np.where(small, S**2 / 2, square)
    else:
        ratio, square = S, S**2 / 2
    cosh = 1 + rise
    return alpha * cosh + z * ratio, alpha * ratio + z * square, z * cosh + G * alpha * ratio


class Envelope:
    """One-sided solution of ``z' = G_up a+ + G_down a-``, ``a' = speed z`` of each neuron.

    With ``a = speed alpha`` this is ``z' = speed (G_up alpha+ + G_down alpha-)``, ``alpha' = z``.
    """

    def __init__(self, z: FloatArray, a: FloatArray, G_up: float, G_down: float, speed: float = 1.0) -> None:
        self.speed, self.G_up, self.G_down = speed, speed * G_up, speed * G_down
        self.z, self.alpha = z, a / speed
        g, alpha = math.sqrt(self.G_down), self.alpha
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(z > 0, -alpha / z, np.inf)
            ratio = np.where(alpha >= 0, 0.0, ratio)
            turn = np.arctanh(np.minimum(g * ratio, 1.0)) / g if g > 0 else ratio
        self.turn = np.where(alpha >= 0, 0.0, turn)
        """Clock at which the head turns positive; infinite if it never does."""
        finite = np.where(np.isfinite(self.turn), self.turn, 0.0)
        _, below, z_turn = swing(alpha, z, self.G_down, finite)
        self.start = np.where(alpha >= 0, alpha, 0.0)
        self.z_turn = np.where(alpha >= 0, z, z_turn)
        self.below = np.where(alpha >= 0, 0.0, below)

    def __call__(self, S: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return ``a`` and the integrals of its positive and of its negative part, shapes (q, h).

        ``S`` has shape (q,), or (q, h) with a clock for each neuron.
        """
        S = S[:, None] if S.ndim == 1 else S
        before, speed = self.turn > S, self.speed
        alpha, above, _ = swing(self.start, self.z_turn, self.G_up, np.where(before, 0.0, S - self.turn))
        if not before.any():
            return speed * alpha, speed * above, np.broadcast_to(speed * self.below, alpha.shape)
        early, below, _ = swing(self.alpha, self.z, self.G_down, S)
        return (
            speed * np.where(before, early, alpha),
            speed * np.where(before, 0.0, above),
            speed * np.where(before, below, self.below),
        )


class Both(NamedTuple):
    """The lower and the upper envelope at some clocks, shapes (q, h).

    Attributes
    ----------
    low, high : tuple of ndarray
        What `Envelope` returns.
    squares : ndarray, shape (4, q, h)
        Integrals of the squares of the negative and the positive part of the lower and the upper ``a``.
    wronskian : ndarray
        ``a b' - a' b`` of the lower ``a`` and the upper ``b``, while ``a < 0 < b``.
    """

    low: tuple[FloatArray, FloatArray, FloatArray]
    high: tuple[FloatArray, FloatArray, FloatArray]
    squares: FloatArray
    wronskian: FloatArray


class Envelopes:
    """A lower and an upper `Envelope`, evaluated together: one call of NumPy costs as much as fifty neurons.

    Both have four stretches: those before and after their turns.
    """

    def __init__(self, below: Envelope, above: Envelope) -> None:
        self.turns = np.array([below.turn, above.turn])
        self.speed = np.array([below.speed, below.speed, above.speed, above.speed])[:, None, None]
        self.G = np.array([below.G_down, below.G_up, above.G_down, above.G_up])[:, None, None]
        self.alpha = np.array([below.alpha, below.start, above.alpha, above.start])[:, None]
        self.z = np.array([below.z, below.z_turn, above.z, above.z_turn])[:, None]
        self.energy = self.z**2 - self.G * self.alpha**2
        self.product = self.alpha * self.z

    def __call__(self, S: FloatArray) -> Both:
        """Evaluate them at clocks (q,), or (q, h) with one for each neuron."""
        S = S[:, None] if S.ndim == 1 else S
        (low, high), speed = self.turns, self.speed
        length = np.array(
            [np.minimum(S, low), np.maximum(S - low, 0.0), np.minimum(S, high), np.maximum(S - high, 0.0)]
        )
        alpha, integral, z = swing(self.alpha, self.z, self.G, length)
        # (alpha z)' = z^2 + G alpha^2, and z^2 - G alpha^2 is constant
        squares = (alpha * z - self.product - self.energy * length) / (2 * self.G)
        squares = np.maximum(speed**2 * squares, 0.0)
        a, integral = speed * alpha, speed * integral
        return Both(
            (np.where(low > S, a[0], a[1]), integral[1], integral[0]),
            (np.where(high > S, a[2], a[3]), integral[3], integral[2]),
            squares,
            speed[2, 0, 0] * a[0] * z[3] - speed[0, 0, 0] * z[0] * a[3],
        )
