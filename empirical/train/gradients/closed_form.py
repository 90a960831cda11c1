"""Clipped gradients of chains of linear layers in closed form."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from empirical.networks.bodies import ACTIVATIONS, Body, Classifier
from empirical.networks.subsets import Adapter, Mask
from empirical.train.losses import Loss
from langevin.model import activations

# derivatives of the activations in a chain
_SLOPES: dict[type[nn.Module], Any] = {
    module: activations.ACTIVATIONS[name].tensor_slope for name, module in ACTIVATIONS.items()
}


def chain(model: nn.Module) -> list[nn.Module] | None:
    """Layers of a chain of linear layers and known activations on flat inputs; None for other networks.

    Only exact types count: a subclass may have its own ``forward``, and a hook may change a layer's input or
    output.
    """
    layers = _links(model)
    if layers is None:
        return None
    params = [p for layer in layers for p in layer.parameters()]
    return layers if len(set(params)) == len(params) else None


def _links(model: nn.Module) -> list[nn.Module] | None:
    kind = type(model)
    if _changed(model):
        return None
    if kind in (nn.Sequential, Body, Classifier):
        # not children(), which passes over the second place of a module
        inner = [_links(child) for child in model._modules.values() if child is not None]
        known = [links for links in inner if links is not None]
        return None if len(known) < len(inner) else list(itertools.chain.from_iterable(known))
    if kind is nn.Flatten and (model.start_dim, model.end_dim) == (1, -1):
        return [model]
    if kind is nn.Linear or (kind in _SLOPES and getattr(model, "approximate", "none") == "none"):
        return [model]
    if kind is Adapter and type(model.base) is nn.Linear:
        return None if any(map(_changed, model.children())) else [model]
    return None


def _changed(module: nn.Module) -> bool:
    """Whether a module differs from its type: it has hooks, or its own ``forward``."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
    return any(hooks) or bool(module._backward_pre_hooks) or "forward" in vars(module)


class ClosedForm:
    """A chain of linear layers: one backward pass, in which a per-sample gradient is an outer product.

    The gradient of a sample in a layer's weight is ``delta a^T``, of norm ``|delta| |a|``, or, under a mask
    ``M`` of ones and zeros, the root of ``sum_oi delta_o^2 M_oi a_i^2``.
    """

    def __init__(self, layers: list[nn.Module], loss: Loss, masks: Mask) -> None:
        self._layers, self._loss, self._masks = layers, loss, masks
        trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
        self._first = trained.index(True)
        self.params = [p for layer in layers for p in layer.parameters() if p.requires_grad]
        self._outer: dict[nn.Parameter, tuple[Tensor, Tensor | None]] = {}

    @torch.no_grad()
    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        inputs: list[Tensor] = []
        a = x
        for layer in self._layers:
            inputs.append(a)
            a = layer(a)
        delta = self._loss.slope(a, y)
        square = delta.new_zeros(len(x))
        self._outer = {}
        for place in range(len(self._layers) - 1, self._first - 1, -1):
            layer, a = self._layers[place], inputs[place]
            deeper = place > self._first
            if isinstance(layer, nn.Linear):
                square += self._linear(layer, delta, a)
                if deeper:
                    delta = delta @ layer.weight
            elif isinstance(layer, Adapter):
                down, up, base = layer.down, layer.up, layer.base
                assert isinstance(down, nn.Linear)
                assert isinstance(up, nn.Linear)
                assert isinstance(base, nn.Linear)
                inner = delta @ up.weight
                square += self._linear(up, delta, down(a))
                square += self._linear(down, inner, a)
                square += self._linear(base, delta, a)
                if deeper:
                    delta = delta @ base.weight + inner @ down.weight
            elif type(layer) in _SLOPES and deeper:
                delta = delta * _SLOPES[type(layer)](a)
            elif isinstance(layer, nn.Flatten) and deeper:
                delta = delta.view_as(a)
        return square.sqrt()

    def _linear(self, layer: nn.Linear, delta: Tensor, a: Tensor) -> Tensor:
        """Squared norms of the gradients in one layer; what `total` needs is kept."""
        square = delta.new_zeros(len(delta))
        of_delta = delta**2
        for p, right in ((layer.weight, a), (layer.bias, None)):
            if not isinstance(p, nn.Parameter) or not p.requires_grad:
                continue
            self._outer[p] = delta, right
            mask = self._masks.get(p)
            if mask is None:
                own = of_delta.sum(1)
                square += own if right is None else own * (right**2).sum(1)
            else:
                own = of_delta @ mask
                square += own if right is None else (own * right**2).sum(1)
        return square

    @torch.no_grad()
    def total(self, factors: Tensor | None) -> list[Tensor]:
        sums = []
        for p in self.params:
            delta, a = self._outer[p]
            if factors is not None:
                delta = delta * factors[:, None]
            total = delta.sum(0) if a is None else delta.T @ a
            sums.append(total * self._masks[p] if p in self._masks else total)
        return sums

    def close(self) -> None:
        self._outer = {}
