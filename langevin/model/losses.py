"""Losses of one sample: everything that solvers, reductions, bounds and parsers know of each.

A new loss is one entry of `LOSSES`; `register` adds one at run time.
"""

from __future__ import annotations

import math
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

    Unless ``classes`` is set, ``value`` and ``residual`` are elementwise. Except for the losses that the
    compiled code has of its own (``"logistic"``, ``"square"``), they are also compiled by numba for single
    numbers: write them with NumPy's elementwise functions. With K outputs and K real targets the loss of a
    sample is the sum over its outputs.

    A loss with ``classes`` compares K >= 2 outputs ``F (..., n, K)`` with one-hot targets ``Y (n, K)``:
    ``value(F, Y)`` has shape (..., n), ``residual(F, Y)`` (..., n, K) and ``curvature(F, Y)``, the Hessian in
    the outputs of a sample, (..., n, K, K).

    Attributes
    ----------
    name : str
        Key in `LOSSES`.
    value, residual, curvature : callable
        ``l(f, y)``, and its first and second derivative in ``f``.
    smoothness : float
        Largest second derivative in ``f``, with K outputs the largest eigenvalue of the Hessian, for any K:
        the constant ``s`` of the bounds.
    signs : bool
        Whether labels must be -1 and +1.
    classes : bool
        Whether the loss compares K outputs with K classes. Without ``signs`` and ``classes``, any real
        targets are allowed.
    convex : bool
        Whether ``l`` is convex in ``f``.
    symmetric : bool
        Whether ``l(-f, -y) = l(f, y)``.
    largest_residual : float or None
        Bound of ``|residual|`` of one output over all ``f`` and ``y``; None: there is none.
    largest_norm : float or None
        Bound of ``||residual||`` that holds for any number of outputs, where there is one; see `steepest`.
    growth : callable or None
        ``y`` to the largest value over ``f`` of ``-f residual(f, y)`` (theory, 1b: Omega for the logistic
        loss, ``y^2/4`` for the square), elementwise; with ``classes`` one-hot ``Y (n, K)`` to the largest
        ``-residual . f`` of each sample, shape (n,) (theory for K outputs, section 0: ``Omega_K``). None: not
        known.
    gauge : bool
        Whether the same number added to all outputs changes nothing, see `langevin.model.gauge`.
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
    classes: bool = False
    largest_norm: float | None = None
    gauge: bool = False

    @property
    def real(self) -> bool:
        """Whether any real targets are allowed, and K of them with K outputs."""
        return not (self.signs or self.classes)

    def steepest(self, outputs: int = 1) -> float | None:
        """Bound of the norm of a sample's residual with that many outputs; None: there is none.

        Examples
        --------
        >>> LOSSES["ovr"].steepest(4)
        2.0
        >>> round(LOSSES["softmax"].steepest(4), 3)
        1.414
        """
        if self.largest_norm is not None or self.largest_residual is None:
            return self.largest_norm
        return self.largest_residual * math.sqrt(outputs)


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


# --- softmax: log-sum-exp(f) - f_y ---------------------------------------------------------------


def _others(F: Any, Y: Any) -> tuple[Any, Any, Any]:
    """Outputs less the class's own, whether an output is another class's, and ``-margin``."""
    from scipy.special import logsumexp

    lead = F - (F * Y).sum(axis=-1, keepdims=True)
    other = np.broadcast_to(Y == 0, lead.shape)
    return lead, other, logsumexp(np.where(other, lead, -np.inf), axis=-1)


# through the margin: the difference of log-sum-exp and f_y would lose all digits of a small loss
def _softmax(F: Any, Y: Any) -> Any:
    return np.logaddexp(0.0, _others(F, Y)[2])


def _softmax_residual(F: Any, Y: Any) -> Any:
    from scipy.special import expit

    lead, other, behind = _others(F, Y)
    # of the own class exp is not taken: it may overflow, and 1 - p loses the digits of a small residual
    shares = np.exp(np.where(other, lead - np.logaddexp(0.0, behind)[..., None], -np.inf))
    return np.where(other, shares, -expit(behind)[..., None])


def _softmax_curvature(F: Any, Y: Any) -> Any:
    p = np.abs(_softmax_residual(F, Y))
    p = np.where(Y == 0, p, 1 - p)
    return p[..., None] * (np.eye(p.shape[-1]) - p[..., None, :])


def _softmax_growth(Y: Any) -> Any:
    from scipy.special import lambertw

    return np.full(Y.shape[:-1], lambertw((Y.shape[-1] - 1) / math.e).real)


def _others_tensor(F: Any, Y: Any) -> tuple[Any, Any]:
    lead = F - (F * Y).sum(-1, keepdim=True)
    return lead, lead.masked_fill(Y != 0, -math.inf).logsumexp(-1)


def _softplus_tensor(z: Any) -> Any:
    return z.relu() + (-z.abs()).exp().log1p()


def _softmax_tensor_residual(F: Any, Y: Any) -> Any:
    lead, behind = _others_tensor(F, Y)
    shares = (lead - _softplus_tensor(behind)[..., None]).masked_fill(Y != 0, -math.inf).exp()
    return shares - behind.sigmoid()[..., None] * Y


register(
    Loss(
        "softmax",
        _softmax,
        _softmax_residual,
        _softmax_curvature,
        smoothness=0.5,
        symmetric=False,
        largest_residual=1.0,
        growth=_softmax_growth,
        tensor_value=lambda F, Y: _softplus_tensor(_others_tensor(F, Y)[1]),
        tensor_residual=_softmax_tensor_residual,
        classes=True,
        largest_norm=math.sqrt(2),
        gauge=True,
    )
)


# --- one-vs-rest: the sum of the logistic losses of all classes ------------------------------------

register(
    Loss(
        "ovr",
        lambda F, Y: _logistic(F, 2 * Y - 1).sum(axis=-1),
        lambda F, Y: _logistic_residual(F, 2 * Y - 1),
        lambda F, Y: _logistic_curvature(F, 2 * Y - 1)[..., None] * np.eye(Y.shape[-1]),
        smoothness=0.25,
        symmetric=False,
        largest_residual=1.0,
        growth=lambda Y: np.full(Y.shape[:-1], Y.shape[-1] * OMEGA),
        tensor_value=lambda F, Y: _logistic_tensor(F, 2 * Y - 1).sum(-1),
        tensor_residual=lambda F, Y: _logistic_tensor_residual(F, 2 * Y - 1),
        classes=True,
    )
)
