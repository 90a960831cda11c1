"""Envelopes of heads and pre-activations in the clock of a block."""

from __future__ import annotations

import math

import numpy as np

from langevin.support.validate import FloatArray

LARGEST = 300.0
"""Cap of ``sqrt(G) S``: margins beyond exp(300) have no loss left."""


def outer(a: FloatArray, b: FloatArray) -> FloatArray:
    """Products ``a_q b_k``."""
    return a[:, None] * b


def swing(alpha: FloatArray, z: FloatArray, G: float, S: FloatArray) -> tuple[FloatArray, ...]:
    """Solve ``z' = G alpha``, ``alpha' = z`` over clock ``S``: alpha, its integral, z."""
    g = math.sqrt(G)
    x = np.minimum(g * S, LARGEST)
    if g > 0:
        # for small arguments the series is exact in floating point and avoids 0/0 at tiny g
        ratio = np.where(x < 1e-8, S, np.sinh(x) / g)
        square = np.where(x < 1e-8, S**2 / 2, 2 * (np.sinh(x / 2) / g) ** 2)
    else:
        ratio, square = S, S**2 / 2
    cosh = np.cosh(x)
    return alpha * cosh + z * ratio, alpha * ratio + z * square, z * cosh + G * alpha * ratio


class Envelope:
    """One-sided solution of ``z' = G_up a+ + G_down a-``, ``a' = speed z`` of each neuron.

    With ``a = speed alpha`` this is ``z' = speed (G_up alpha+ + G_down alpha-)``, ``alpha' = z``.
    """

    def __init__(
        self, z: FloatArray, a: FloatArray, G_up: float, G_down: float, speed: float = 1.0
    ) -> None:
        self.speed, self.G_up, self.G_down = speed, speed * G_up, speed * G_down
        self.z, self.alpha = z, a / speed
        g, alpha = math.sqrt(self.G_down), self.alpha
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.where(z > 0, -alpha / z, np.inf)
            ratio = np.where(alpha >= 0, 0.0, ratio)
            turn = np.arctanh(np.minimum(g * ratio, 1.0)) / g if g > 0 else ratio
        self.turn = np.where(alpha >= 0, 0.0, turn)
        """Clock at which the head turns positive; infinite if it never does."""
        self.reached = np.where(np.isfinite(self.turn), self.turn, 0.0)
        _, below, z_turn = swing(alpha, z, self.G_down, self.reached)
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

    def before_turn(self, S: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``a`` and ``z`` while heads are negative, at clocks (q, h) that do not exceed the turn."""
        alpha, _, z = swing(self.alpha, self.z, self.G_down, S)
        return self.speed * alpha, z

    def after_turn(self, S: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``a`` and ``z`` once heads are positive, at clocks (q, h) that are not below a finite turn."""
        alpha, _, z = swing(self.start, self.z_turn, self.G_up, S - self.reached)
        return self.speed * alpha, z

    def squares_before(self, S: FloatArray) -> FloatArray:
        """Integral of the square of the negative part of ``a``, shape (q, h)."""
        S = np.minimum(S, self.turn)
        return self._square(*self.before_turn(S), self.speed * self.alpha, self.z, self.G_down, S)

    def squares_after(self, S: FloatArray) -> FloatArray:
        """Integral of the square of the positive part of ``a``, shape (q, h)."""
        S = np.where(np.isfinite(self.turn), np.maximum(S, self.reached), 0.0)
        start = self.speed * self.start, self.z_turn
        return self._square(*self.after_turn(S), *start, self.G_up, S - self.reached)

    def _square(
        self, a: FloatArray, z: FloatArray, a_0: FloatArray, z_0: FloatArray, G: float, S: FloatArray
    ) -> FloatArray:
        """Integral of ``a^2``, of ``z' = G alpha`` and ``a' = speed z``: ``a'' = speed G alpha``.

        ``(a z)' = speed (z^2 + G alpha^2)`` and ``z^2 - G alpha^2`` is constant.
        """
        energy = z_0**2 - G * (a_0 / self.speed) ** 2
        twice = a * z - a_0 * z_0 - self.speed * energy * S
        return np.maximum(self.speed * twice / (2 * G), 0.0)
