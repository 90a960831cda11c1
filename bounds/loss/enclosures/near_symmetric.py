"""Margins of a softmax class near those of the scalar net that its averaged heads train as (4b'(b))."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from bounds.features.blocks import MARGINS
from bounds.features.classes import ClassBlock
from bounds.loss.enclosures.clocked import Bounds, Clocked
from bounds.loss.enclosures.one_output import OneOutput
from langevin.model.schedule import Phase
from langevin.support.validate import FloatArray

Growth = Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]
LARGEST = 150.0
"""Cap of ``sqrt(G) S``, below which squares of hyperbolic functions are finite."""
PASSES = 3
"""Times that bounds of the outputs sharpen those of the softmax, and these the former."""


class Moved(NamedTuple):
    """Bounds of what the deviations have done up to some clocks; the first axis of the last three: subspaces.

    Attributes
    ----------
    features, heads : ndarray, shape (q,)
        Distances of ``z_i`` (of any sample) and of ``alpha`` from those of the averaged net.
    seen : ndarray, shape (c, q)
        Squared norm of the part of ``E`` in a subspace.
    features_out, heads_out : ndarray, shape (c, q)
        Norms of the parts of ``z_i`` and ``alpha`` out of it.
    outputs : ndarray, shape (q, n)
        Norms of ``E^T z_i``.
    """

    features: FloatArray
    heads: FloatArray
    seen: FloatArray
    features_out: FloatArray
    heads_out: FloatArray
    outputs: FloatArray


class Near(NamedTuple):
    """How far a gradient may be from that of the averaged net, in two orthogonal parts.

    Attributes
    ----------
    mean : ndarray
        Of the averaged heads and the features.
    apart : ndarray, shape (q, n)
        Of what tells the other classes apart.
    """

    mean: FloatArray
    apart: FloatArray


Effects = tuple[FloatArray, FloatArray, Near]


def excess(r: FloatArray, rivals: int) -> FloatArray:
    """Largest log-mean-exp of numbers of mean 0 and norm ``r``: one of them is large (Bennett)."""
    if rivals == 1:
        return np.zeros_like(r)
    top = r * math.sqrt((rivals - 1) / rivals)
    return np.logaddexp(top, math.log(rivals - 1) - top / (rivals - 1)) - math.log(rivals)


class NearSymmetric(Clocked):
    """Enclosure of a class of at least three near the net that its averaged heads train as, up to its cones.

    Let ``E_j`` be a neuron's heads of the other classes less their mean, and ``1 / (K - 1) + s_i`` the
    softmax of these classes' outputs. The mean pull ``alpha`` moves as that of a symmetric head does, and
    ``z_i`` is pulled by ``alpha - E s_i``. The norm of ``E`` never grows, and what it loses bounds the
    integral of ``||s_i||^2``.
    Everything is in the units of the scalar net: inputs times ``sqrt(K / (K - 1))``, heads divided by it.

    Parameters
    ----------
    block : ClassBlock
    norms : ndarray, shape (samples,)
        ``||x_i||^2``.
    """

    loss = MARGINS["logistic"]
    steepness = math.sqrt(2)
    source = "4b'(b)"

    def __init__(self, block: ClassBlock, norms: FloatArray) -> None:
        self.rivals = block.classes - 1
        self.scale = math.sqrt(block.classes / self.rivals)
        self.m_low = self.m_high = block.margins
        scalar = block.averaged()
        self.mean = OneOutput(scalar, self.loss, self.scale**2 * norms, "4b'(a)")
        self.sizes, self.G = self.scale * np.sqrt(norms), float(scalar.G.max())
        E = (block.rivals - block.rivals.mean(1, keepdims=True)) / self.scale
        self.deviation = float(np.linalg.norm(E))
        self.start = self._subspaces(scalar.Z, scalar.alpha, E)
        self._latest: tuple[FloatArray, Effects] | None = None

    def _subspaces(self, Z: FloatArray, alpha: FloatArray, E: FloatArray) -> Moved:
        """Return the start, for the best span of leading directions of ``z_i`` and ``alpha``, and all."""
        U, s, T = np.linalg.svd(np.column_stack([Z, alpha]), full_matrices=False)
        seen = np.append(0.0, np.cumsum(((U.T @ E) ** 2).sum(1)))
        parts = (s[:, None] * T) ** 2
        out = np.sqrt(np.vstack([np.cumsum(parts[::-1], 0)[::-1], np.zeros(parts.shape[1])]))
        z_out, alpha_out = out[:, :-1].max(1), out[:, -1]
        z = float(np.linalg.norm(Z, axis=0).max())
        best = int((np.sqrt(seen) * z + self.deviation * z_out).argmin())
        which = np.array([best, len(seen) - 1])[:, None]
        still = np.zeros(1)
        return Moved(still, still, seen[which], z_out[which], alpha_out[which], np.zeros((1, Z.shape[1])))

    def prepare(self, phase: Phase) -> None:
        self.mean.prepare(phase)
        self._latest = None

    def _largest(self, outputs: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Bounds of the mean Jacobian of the softmax up to outputs of some norm, and of ``||s||`` at it."""
        n = self.rivals
        top = np.clip(outputs * math.sqrt((n - 1) / n), 1e-9, 700.0)
        jacobian = np.minimum(0.5, np.expm1(top) / (n * top))
        return jacobian, np.minimum(jacobian * outputs, math.sqrt((n - 1) / n))

    def moved(self, phase: Phase, S: FloatArray) -> tuple[Moved, FloatArray, FloatArray]:
        """Bound what the deviations do up to clocks (q,) of a phase; also ``||z_i||`` and ``||alpha||``."""
        z_mean, alpha = self.mean.extent(phase, S)
        E, start = self.deviation, self.start
        features = heads = seen = features_out = heads_out = z = np.zeros(0)
        outputs = np.full((len(S), 1), np.inf)
        for _ in range(PASSES):
            jacobian, share = self._largest(outputs.max(1))
            grow = self._growth(phase, S, jacobian, share)
            features, heads = grow(start.features, start.heads)
            features_out, heads_out = grow(start.features_out, start.heads_out)
            seen = start.seen + jacobian * S / 2 * (E * features_out / self.scale) ** 2
            z = z_mean + features[:, None]
            within = np.sqrt(seen)[:, :, None] * z + E * features_out[:, :, None]
            outputs = np.minimum(within.min(0), E * z)
        return Moved(features, heads, seen, features_out, heads_out, outputs), z, alpha

    def _growth(self, phase: Phase, S: FloatArray, jacobian: FloatArray, share: FloatArray) -> Growth:
        """Solve ``u' = G (v + E ||s||)``, ``v' = u`` by bounds of ``||s||`` and of its square's integral."""
        if phase.method == "lp":
            return lambda u, v: (np.broadcast_to(u, (*u.shape[:-1], len(S))), v + u * S)
        g, E = math.sqrt(self.G), self.deviation
        x = np.minimum(g * S, LARGEST)
        cosh, sinh, twice = np.cosh(x), np.sinh(x), np.sinh(2 * x) / (4 * g)
        budget = self.scale * E * np.sqrt(jacobian / 2)
        even = np.minimum(share * sinh / g, budget * np.sqrt(twice + S / 2))
        odd = np.minimum(share * (cosh - 1) / g, budget * np.sqrt(np.maximum(twice - S / 2, 0.0)))
        return lambda u, v: (
            u * cosh + v * g * sinh + self.G * E * even,
            v * cosh + u * sinh / g + g * E * odd,
        )

    def _near(self, phase: Phase, S: FloatArray) -> Effects:
        """What the deviations do; kept, as several bounds ask for it at the same clocks."""
        if self._latest is None or self._latest[0] is not S:
            self._latest = S, self._effects(phase, S)
        return self._latest[1]

    def _effects(self, phase: Phase, S: FloatArray) -> Effects:
        """Bound at clocks what the deviations do to margins: products, log-sum-exp, and norms."""
        moved, z, alpha = self.moved(phase, S)
        u, v = moved.features[:, None], moved.heads[:, None]
        shares = self._largest(moved.outputs)[1]
        gradient = u
        if phase.method == "fft":
            gradient = np.hypot(u, self.sizes * (v + self.deviation * shares))
        near = Near(gradient, shares * z / self.scale)
        return alpha * u + z * v, excess(moved.outputs, self.rivals), near

    def _lower(self, phase: Phase, S: FloatArray, mean: Bounds) -> Bounds:
        """Lower bounds from those of the averaged net."""
        (m, size), (moved, above, near) = mean, self._near(phase, S)
        m = m - moved - math.log(self.rivals) - above
        if phase.clip is None or size is None:
            return m, None
        if phase.clipping == "margin":
            return m, math.sqrt(2) / self.scale * np.maximum(size - near.mean, 0.0)
        return m, np.maximum(size - near.mean, 0.0)

    def _upper(self, phase: Phase, S: FloatArray, mean: Bounds) -> Bounds:
        """Upper bounds from those of the averaged net."""
        (m, size), (moved, _, near) = mean, self._near(phase, S)
        m = m + moved - math.log(self.rivals)
        if phase.clip is None or size is None:
            return m, None
        if phase.clipping == "margin":
            return m, math.sqrt(2) / self.scale * (size + near.mean)
        return m, np.hypot(size + near.mean, near.apart)

    def probed(self, phase: Phase, S: FloatArray, spent: FloatArray) -> tuple[Bounds, Bounds]:
        low, high = self.mean.probed(phase, S, spent)
        return self._lower(phase, S, low), self._upper(phase, S, high)

    def least(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[0]
        return self._lower(phase, S, self.mean.least(phase, S))

    def most(self, phase: Phase, S: FloatArray) -> Bounds:
        if phase.method == "lp":
            return self.probing(phase, S)[1]
        return self._upper(phase, S, self.mean.most(phase, S))

    def conditions(self, phase: Phase, S: FloatArray) -> list[tuple[np.ndarray, str]]:
        return []

    def between(self, phase: Phase, S_low: FloatArray, S_high: FloatArray) -> tuple[FloatArray, FloatArray]:
        if phase.method == "lp":
            return super().between(phase, S_low, S_high)
        m_low, m_high = self.mean.between(phase, S_low, S_high)
        moved, above, _ = self._near(phase, S_high)
        m_low, m_high = m_low - math.log(self.rivals), m_high - math.log(self.rivals)
        return m_low - moved - above, m_high + moved

    def advance(
        self, phase: Phase, S_low: float, S_high: float, m_low: FloatArray, m_high: FloatArray
    ) -> None:
        ends = np.array([S_low]), np.array([S_high])
        if phase.method == "lp":
            # the samples move by the margins of the class, not by those of the averaged net
            (mean_low, _), (mean_high, _) = (
                self.mean.probed(phase, S, self.spent(phase, S))[k] for k, S in enumerate(ends)
            )
            (mean_low,), (mean_high,) = mean_low, mean_high
        else:
            (mean_low,), (mean_high,) = self.mean.between(phase, *ends)
        self.start = self.moved(phase, ends[1])[0]
        self.mean.advance(phase, S_low, S_high, mean_low, mean_high)
