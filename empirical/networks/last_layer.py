"""The last layer of a body, for plans and simulations of what full fine-tuning changes."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from empirical.networks.bodies import eager
from empirical.networks.embed import Features, embed

# that neither train nor mix features
_IDLE = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.AdaptiveAvgPool2d)
_RELU = (nn.ReLU, nn.ReLU6)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


class LastLayer(NamedTuple):
    """The last layer of a body and what comes before it; see `last_layer`.

    Attributes
    ----------
    below : nn.Module
        From images to the layer's inputs, shape (n, k) or (n, k, height, width).
    W : ndarray, shape (h, k + 1)
        Weights, the bias as the last column.
    activation : {"relu", "linear"}
    pooled : bool
        Whether features are means over positions.
    """

    below: nn.Module
    W: NDArray[np.float64]
    activation: Literal["relu", "linear"]
    pooled: bool

    def inputs(self, images: NDArray[np.float32] | torch.Tensor, *, batch: int = 1024) -> Features:
        """Inputs of the layer, shape (n, k + 1), a column of ones at the end.

        Of a pooled layer the mean over positions: ``phi(W x)`` of it is the features only if ``phi`` is
        linear, see `departure`.
        """
        mean = [nn.AdaptiveAvgPool2d(1), nn.Flatten()] if self.pooled else []
        found = embed(nn.Sequential(self.below, *mean), images, batch=batch)
        return np.column_stack([found, np.ones(len(found), found.dtype)])

    def departure(self, body: nn.Module, images: NDArray[np.float32] | torch.Tensor) -> float:
        """Relative distance between ``phi(W x)`` and the body's features, in norm over all images."""
        z = self.inputs(images) @ self.W.T
        features = embed(body, images)
        found = np.maximum(z, 0) if self.activation == "relu" else z
        return float(np.linalg.norm(found - features) / np.linalg.norm(features))


def last_layer(body: nn.Module) -> LastLayer:
    """Split a body into its last layer and what comes before it.

    Give ``W`` and `LastLayer.inputs` of public images to `plan_share`: full fine-tuning then is simulated on
    the layer that it changes.

    Parameters
    ----------
    body : nn.Module
        A sequence that ends in a dense layer, or in a convolution of 1 x 1 and a mean over positions; each
        followed by batch normalisation, which becomes a part of ``W``, and a ReLU, or by neither.

    Returns
    -------
    LastLayer
        A ReLU6 is taken to be a ReLU; `LastLayer.departure` tells how much that changes.

    Raises
    ------
    TypeError
        If the body is no such sequence, with the module that does not fit.

    Examples
    --------
    >>> from empirical import mlp
    >>> body = mlp((1, 2, 2), (8, 3))
    >>> found = last_layer(body)
    >>> images = np.random.default_rng(0).random((5, 1, 2, 2), dtype=np.float32)
    >>> found.W.shape, found.inputs(images).shape, found.departure(body, images) < 1e-6
    ((3, 9), (5, 9), True)
    """
    layers = _flat(eager(body))
    pooled = any(isinstance(layer, nn.AdaptiveAvgPool2d) for layer in _taken(layers, _IDLE))
    active = _taken(layers, _RELU, most=1)
    norms = _taken(layers, _NORMS, most=1)
    layer = layers.pop() if layers else None
    if not isinstance(layer, nn.Linear | nn.Conv2d):
        got = type(layer).__name__ if layer is not None else "nothing"
        raise TypeError(
            f"body must be a sequence that ends in a dense layer, or a 1 x 1 convolution and a mean over "
            f"positions, got {got} there: give W yourself, and its inputs as X"
        )
    W, bias = _dense(layer, pooled)
    for norm in norms:
        scale, shift = _folded(norm)
        W, bias = scale[:, None] * W, scale * bias + shift
    found = np.column_stack([W, bias])
    return LastLayer(nn.Sequential(*layers), found, "relu" if active else "linear", pooled)


def _flat(module: nn.Module) -> list[nn.Module]:
    """Layers of nested sequences; a class with a forward of its own stays whole."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return [layer for child in module for layer in _flat(child)]
    return [module]


def _taken(layers: list[nn.Module], kinds: tuple[type, ...], most: int | None = None) -> list[nn.Module]:
    """Remove the modules of some kinds from the end of a list, and return them."""
    found: list[nn.Module] = []
    while layers and isinstance(layers[-1], kinds) and (most is None or len(found) < most):
        found.append(layers.pop())
    return found


def _dense(layer: nn.Linear | nn.Conv2d, pooled: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights (h, k) and bias (h,)."""
    weight = layer.weight.detach().double().cpu().numpy()
    if isinstance(layer, nn.Conv2d):
        plain = (layer.kernel_size, layer.stride, layer.groups, layer.padding)
        if plain != ((1, 1), (1, 1), 1, (0, 0)) or not pooled:
            raise TypeError(
                f"body must end in a dense layer, or a 1 x 1 convolution and a mean over positions, got "
                f"{layer}{'' if pooled else ' without a mean'}: give W yourself, and its inputs as X"
            )
        weight = weight[:, :, 0, 0]
    bias = layer.bias
    return weight, np.zeros(len(weight)) if bias is None else bias.detach().double().cpu().numpy()


def _folded(norm: nn.Module) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and shift of batch normalisation in evaluation."""
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if norm.running_mean is None or norm.running_var is None:
        raise TypeError(f"body must have fixed statistics, got {norm} without them: set track_running_stats")
    mean, var = (value.double().cpu().numpy() for value in (norm.running_mean, norm.running_var))
    scale = 1 / np.sqrt(var + norm.eps)
    if norm.affine:
        scale = scale * norm.weight.detach().double().cpu().numpy()
        return scale, norm.bias.detach().double().cpu().numpy() - scale * mean
    return scale, -scale * mean
