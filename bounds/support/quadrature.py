"""Equations ``S' = R(S)`` of one variable, by the quadrature of ``1 / R``, many values of ``R`` at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev

from langevin.support.validate import FloatArray

DEGREE = 16
NODES = -np.cos(np.pi * np.arange(DEGREE + 1) / DEGREE)
TOL = 1e-9
"""Error of the time spent in a panel, relative to the time at its end."""
NARROWEST, PANELS, ZOOMS = 1e-14, 20_000, 8
GROUP = 32
"""Panels evaluated at a time."""
SLOWEST = 1e250


def _coefficients(degree: int) -> FloatArray:
    """Matrix from values at every ``DEGREE / degree``-th node to coefficients of Chebyshev."""
    return np.asarray(np.linalg.inv(chebyshev.chebvander(NODES[:: DEGREE // degree], degree)), np.float64)


def _integral(coefficients: FloatArray) -> FloatArray:
    """Coefficients of the integral from -1."""
    return np.asarray(chebyshev.chebint(coefficients, lbnd=-1), dtype=np.float64)


FINE = _coefficients(DEGREE)
ANTIDERIVATIVE = _integral(FINE)
AT_NODES = chebyshev.chebval(NODES, ANTIDERIVATIVE).T
COARSE_AT_NODES = chebyshev.chebval(NODES, _integral(_coefficients(DEGREE // 2))).T


class Panels:
    """Panels of ``S`` in order, with the values of ``1 / R`` at the nodes of each.

    Attributes
    ----------
    ends : ndarray, shape (p, 2)
    slow : ndarray, shape (p, 17)
        ``1 / R``.
    spent : ndarray, shape (p, 17)
        Times from the start of a panel to its nodes.
    wrong : ndarray, shape (p,)
        Estimates of their errors.
    """

    def __init__(self, rate: Callable[[FloatArray], FloatArray]) -> None:
        self.rate = rate
        self.ends, self.slow = np.zeros((0, 2)), np.zeros((0, DEGREE + 1))

    def add(self, ends: FloatArray) -> None:
        """Add panels."""
        clocks = ends.mean(1, keepdims=True) + np.diff(ends) / 2 * NODES
        with np.errstate(divide="ignore", over="ignore"):
            parts = [
                1 / self.rate(part.ravel()) for part in np.split(clocks, range(GROUP, len(clocks), GROUP))
            ]
        slow = np.minimum(np.concatenate(parts), SLOWEST).reshape(clocks.shape)
        self.ends, self.slow = np.concatenate([self.ends, ends]), np.concatenate([self.slow, slow])
        order = np.argsort(self.ends[:, 0])
        self.ends, self.slow = self.ends[order], self.slow[order]
        half = np.diff(self.ends) / 2
        self.spent = half * (self.slow @ AT_NODES.T)
        self.wrong = np.abs(self.spent - half * (self.slow[:, ::2] @ COARSE_AT_NODES.T)).max(1)
        self.stops = np.cumsum(self.spent[:, -1])

    def split(self, which: np.ndarray) -> None:
        """Halve panels."""
        (low, high), middle = self.ends[which].T, self.ends[which].mean(1)
        self.ends, self.slow = self.ends[~which], self.slow[~which]
        self.add(np.concatenate([np.array([low, middle]).T, np.array([middle, high]).T]))

    def rough(self, time: float) -> np.ndarray:
        """Panels that begin before ``time`` and are not accurate yet."""
        late = (self.stops - self.spent[:, -1]) > time
        wide = np.diff(self.ends)[:, 0] > NARROWEST * self.ends[:, 1]
        return ~(self.wrong <= TOL * self.stops) & wide & ~late

    def at(self, times: FloatArray) -> FloatArray:
        """``S`` at positive times before the last stop."""
        k = np.minimum(np.searchsorted(self.stops, times), len(self.stops) - 1)
        spent, half = self.spent[k], np.diff(self.ends)[k, 0] / 2
        left = times - (self.stops[k] - spent[:, -1])
        node = np.clip((spent <= left[:, None]).sum(1) - 1, 0, DEGREE - 1)
        low, high = NODES[node], NODES[node + 1]
        slow = FINE @ self.slow[k].T
        integral = ANTIDERIVATIVE @ self.slow[k].T * half
        x = (low + high) / 2
        for _ in range(6):
            with np.errstate(divide="ignore", invalid="ignore"):
                step = (chebyshev.chebval(x, integral, tensor=False) - left) / (
                    half * chebyshev.chebval(x, slow, tensor=False)
                )
            x = np.clip(x - np.where(np.isfinite(step), step, 0.0), low, high)
        return self.ends[k].mean(1) + half * x


def solve(
    rate: Callable[[FloatArray], FloatArray],
    times: FloatArray,
    limit: float = np.inf,
    allowed: Callable[[FloatArray], np.ndarray] | None = None,
) -> FloatArray:
    """Solve ``S' = R(S)`` from 0.

    Parameters
    ----------
    rate : callable
        ``R >= 0`` of an array of values of ``S``.
    times : ndarray, shape (m,)
    limit : float
        Largest ``S`` asked for.
    allowed : callable, optional
        Whether values of ``S`` are admitted, which holds up to some value.

    Returns
    -------
    ndarray, shape (m,)
        ``S``, infinite at times that are not reached.

    Examples
    --------
    >>> solve(lambda S: np.exp(-S), np.array([0.0, 1.0, np.e - 1])).round(8)
    array([0.        , 0.69314718, 1.        ])
    """
    end, out = float(times.max(initial=0.0)), np.where(times > 0, np.inf, 0.0)
    first = float(rate(np.zeros(1))[0])
    if not end > 0 or first * end == 0:
        return np.where(np.isfinite(out) | (first == 0), 0.0, out)
    panels, reach, ended = Panels(rate), 0.0, False
    while True:
        width = first * end if reach == 0 else 2 * reach
        target = min(reach + width, limit)
        if allowed is not None:
            admitted = _admitted(allowed, reach, target)
            target, ended = admitted, admitted < target
        if target > reach:
            panels.add(np.array([[reach, target]]))
            while (rough := panels.rough(end)).any():
                panels.split(rough)
                if len(panels.ends) > PANELS:
                    return out
        reach = target
        if reach == 0:
            return out
        if ended or reach >= limit or not panels.stops[-1] < end:
            break
    inside = (times > 0) & (times <= panels.stops[-1])
    out[inside] = panels.at(times[inside])
    return out


def _admitted(allowed: Callable[[FloatArray], np.ndarray], low: float, high: float) -> float:
    """Last value in an interval up to which all are admitted, nearly."""
    for _ in range(ZOOMS):
        grid = np.linspace(low, high, 33)
        good = np.logical_and.accumulate(allowed(grid))
        if good.all():
            return high
        k = int(good.sum())
        if k == 0:
            return low
        low, high = float(grid[k - 1]), float(grid[k])
    return low
