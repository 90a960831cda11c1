"""Activations: everything that solvers, reductions, bounds and parsers know of each.

A new activation is one entry of `ACTIVATIONS`; `register` adds one at run time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Elementwise = Callable[[Any], Any]


@dataclass(frozen=True)
class Activation:
    """An activation ``phi``.

    ``value`` and ``slope`` are elementwise. Except for the activations that the compiled code has of its own
    (``"relu"``, ``"linear"``), they are also compiled by numba for single numbers: write them with NumPy's
    elementwise functions and `erf`.

    Attributes
    ----------
    name : str
        Key in `ACTIVATIONS`.
    value, slope : callable
        ``phi(z)`` and its derivative; where ``phi`` has a kink, the slope that training uses there.
    lipschitz : float
        Largest ``|slope|``.
    homogeneous : bool
        Whether ``phi(a z) = a phi(z)`` for all ``a > 0``.
    smooth : bool
        Whether the slope is continuous.
    tensor_value, tensor_slope : callable or None
        ``value`` and ``slope`` for torch tensors; None: not available on a GPU.
    """

    name: str
    value: Elementwise
    slope: Elementwise
    lipschitz: float
    homogeneous: bool = False
    smooth: bool = True
    tensor_value: Any = None
    tensor_slope: Any = None


ACTIVATIONS: dict[str, Activation] = {}


def register(activation: Activation) -> Activation:
    """Add an activation to `ACTIVATIONS`; ``del ACTIVATIONS[name]`` removes it.

    Raises
    ------
    ValueError
        If the name is taken.
    """
    if activation.name in ACTIVATIONS:
        raise ValueError(
            f"name must be new, got {activation.name!r}, which ACTIVATIONS has already: choose another name"
        )
    ACTIVATIONS[activation.name] = activation
    return activation


def erf(z: Any) -> Any:
    """The error function, for arrays, and in compiled code for single numbers."""
    from scipy import special

    return special.erf(z)


register(
    Activation(
        "relu",
        lambda z: np.maximum(z, 0.0),
        lambda z: (z > 0).astype(np.float64),
        lipschitz=1.0,
        homogeneous=True,
        smooth=False,
        tensor_value=lambda z: z.relu(),
        # not z > 0: a NaN has to pass
        tensor_slope=lambda z: ((z <= 0) ^ True).to(z.dtype),
    )
)

register(
    Activation(
        "linear",
        lambda z: z,
        np.ones_like,
        lipschitz=1.0,
        homogeneous=True,
        tensor_value=lambda z: z,
        tensor_slope=lambda z: z.new_ones(()).expand_as(z),
    )
)


# --- GELU: z times the normal distribution function, exactly ------------------------------------

_ROOT_HALF, _DENSITY = math.sqrt(0.5), 1 / math.sqrt(2 * math.pi)


def _gelu(z: Any) -> Any:
    return 0.5 * z * (1.0 + erf(z * _ROOT_HALF))


def _gelu_slope(z: Any) -> Any:
    return 0.5 * (1.0 + erf(z * _ROOT_HALF)) + z * (_DENSITY * np.exp(-0.5 * z * z))


register(
    Activation(
        "gelu",
        _gelu,
        _gelu_slope,
        # at z = sqrt(2)
        lipschitz=0.5 * (1.0 + math.erf(1.0)) + math.exp(-1.0) / math.sqrt(math.pi),
        tensor_value=lambda z: 0.5 * z * (1.0 + (z * _ROOT_HALF).erf()),
        tensor_slope=lambda z: 0.5 * (1.0 + (z * _ROOT_HALF).erf()) + z * (_DENSITY * (-0.5 * z * z).exp()),
    )
)


# --- tanh ---------------------------------------------------------------------------------------

register(
    Activation(
        "tanh",
        lambda z: np.tanh(z),
        lambda z: 1.0 - np.tanh(z) ** 2,
        lipschitz=1.0,
        tensor_value=lambda z: z.tanh(),
        tensor_slope=lambda z: 1.0 - z.tanh().square(),
    )
)
