"""Losses of one sample: everything that solvers, reductions, bounds and parsers know of each.

A new loss is one entry of `LOSSES`; `register` adds one at run time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

# W(1/e), the largest value of -f r(f) for the logistic loss: the root of w exp(w) = 1/e
OMEGA = 0.2784645427610738

Elementwise = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Loss:
    """A loss ``l(f, y)`` of the output ``f`` at the label ``y``.

    ``value`` and ``residual`` are elementwise. Except for the losses that the compiled code has of its own
    (``"logistic"``, ``"square"``), they are also compiled by numba for single numbers: write them with
    NumPy's elementwise functions.

    Attributes
    ----------
    name : str
        Key in `LOSSES`.
    value, residual, curvature : callable
        ``l(f, y)``, and its first and second derivative in ``f``.
    smoothness : float
        Largest second derivative in ``f``: the constant ``s`` of the bounds.
    signs : bool
        Whether labels must be -1 and +1; otherwise any real targets are allowed.
    convex : bool
        Whether ``l`` is convex in ``f``.
    symmetric : bool
        Whether ``l(-f, -y) = l(f, y)``.
    largest_residual : float or None
        Bound of ``|residual|`` over all ``f`` and ``y``; None: there is none.
    growth : callable or None
        ``y`` to the largest value over ``f`` of ``-f residual(f, y)`` (theory, 1b: Omega for the logistic
        loss, ``y^2/4`` for the square), elementwise; None: not known.
    tensor_value, tensor_residual : callable or None
        ``value`` and ``residual`` for torch tensors; None: not available on a GPU.
    """

    name: str
    value: Elementwise
    residual: Elementwise
    curvature: Elementwise
    smoothness: float
    signs: bool = False
    convex: bool = True
    symmetric: bool = True
    largest_residual: float | None = None
    growth: Callable[[Any], Any] | None = None
    tensor_value: Any = None
    tensor_residual: Any = None


LOSSES: dict[str, Loss] = {}


def register(loss: Loss) -> Loss:
    """Add a loss to `LOSSES`; ``del LOSSES[name]`` removes it.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    if loss.name in LOSSES:
        raise ValueError(
            f"name must be new, got {loss.name!r}, which LOSSES has already: choose another name"
        )
    LOSSES[loss.name] = loss
    return loss


# --- logistic: log(1 + exp(-y f)) --------------------------------------------------------------


def _logistic(f: Any, y: Any) -> Any:
    return np.logaddexp(0.0, -y * f)


def _logistic_residual(f: Any, y: Any) -> Any:
    from scipy.special import expit

    return -y * expit(-y * f)


def _logistic_curvature(f: Any, y: Any) -> Any:
    r = np.abs(_logistic_residual(f, y))
    return r * (1 - r)


def _logistic_tensor(f: Any, y: Any) -> Any:
    return (-y * f).relu() + (-f.abs()).exp().log1p()


def _logistic_tensor_residual(f: Any, y: Any) -> Any:
    return -y / (1.0 + (y * f).exp())


register(
    Loss(
        "logistic",
        _logistic,
        _logistic_residual,
        _logistic_curvature,
        smoothness=0.25,
        signs=True,
        largest_residual=1.0,
        growth=lambda y: np.full_like(y, OMEGA),
        tensor_value=_logistic_tensor,
        tensor_residual=_logistic_tensor_residual,
    )
)


# --- square: (f - y)^2 / 2 ---------------------------------------------------------------------

register(
    Loss(
        "square",
        lambda f, y: 0.5 * (f - y) ** 2,
        lambda f, y: f - y,
        lambda f, y: np.ones_like(f - y),
        smoothness=1.0,
        growth=lambda y: y**2 / 4,
        tensor_value=lambda f, y: 0.5 * (f - y).square(),
        tensor_residual=lambda f, y: f - y,
    )
)


# --- Huber: the square loss up to |f - y| = 1, with slope 1 beyond --------------------------------


def _huber(f: Any, y: Any) -> Any:
    size = np.abs(f - y)
    near = np.minimum(size, 1.0)
    return near * (size - 0.5 * near)


def _huber_residual(f: Any, y: Any) -> Any:
    return np.minimum(np.maximum(f - y, -1.0), 1.0)


def _huber_growth(y: Any) -> Any:
    size = np.abs(y)
    return np.where(size <= 2, size**2 / 4, size - 1)


def _huber_tensor(f: Any, y: Any) -> Any:
    size = (f - y).abs()
    near = size.clamp(max=1.0)
    return near * (size - 0.5 * near)


register(
    Loss(
        "huber",
        _huber,
        _huber_residual,
        lambda f, y: (np.abs(f - y) <= 1).astype(np.float64),
        smoothness=1.0,
        largest_residual=1.0,
        growth=_huber_growth,
        tensor_value=_huber_tensor,
        tensor_residual=lambda f, y: (f - y).clamp(-1.0, 1.0),
    )
)
