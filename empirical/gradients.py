"""Sums of clipped per-sample gradients: by a closed form, by Opacus, in a loop; and plain gradients."""

from __future__ import annotations

import itertools
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from empirical.backbones import ACTIVATIONS, Body, Classifier
from empirical.hooks import Ghost, PerSample, joined, row_norms
from empirical.losses import Loss
from empirical.recipe import Engine
from empirical.subsets import Adapter, Mask
from langevin.model import activations
from langevin.schedule import Clipping

# derivatives of the activations in a chain
_SLOPES: dict[type[nn.Module], Any] = {
    module: activations.ACTIVATIONS[name].tensor_slope for name, module in ACTIVATIONS.items()
}


class Gradients(Protocol):
    """Per-sample gradients of one batch at a time: first their norms, then their weighted sum."""

    params: list[nn.Parameter]

    def norms(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Norms over all trained parameters, shape (n,); None if there are no per-sample gradients."""
        ...

    def total(self, factors: Tensor | None) -> list[Tensor]:
        """``sum_i factors_i g_i`` for the batch that `norms` saw, in the order of ``params``."""
        ...

    def close(self) -> None:
        """Restore the network."""
        ...


def engine(model: nn.Module, loss: Loss, kind: Engine, *, masks: Mask | None = None, clip: bool) -> Gradients:
    """Make an engine that sums the gradients of the trainable parameters of ``model``.

    Parameters
    ----------
    model : nn.Module
        The parameters that require gradients train.
    loss : Loss
    kind : {"auto", "closed", "ghost", "hooks", "functorch", "loop"}
        "auto": the first of `candidates`.
    masks : dict, optional
        Ones and zeros for parameters of which a part trains.
    clip : bool
        Whether per-sample gradients are clipped; if not, the plain gradient suffices.

    Raises
    ------
    ValueError
        If the kind does not apply to the network, or nothing trains.

    See Also
    --------
    empirical.trial.choose : Tests whether the sums are right.
    """
    masks = masks or {}
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have a parameter that requires gradients, got none")
    layers = chain(model)
    if kind == "closed" and layers is None:
        raise ValueError(
            f"engine must not be 'closed' for {type(model).__name__}, which is not a chain of linear layers "
            "and known activations: use 'ghost'"
        )
    if kind == "ghost" and masks:
        raise ValueError(
            "engine must not be 'ghost' for a sparse subset, which it does not support: use 'hooks'"
        )
    kind = candidates(model, kind, masks)[0]
    if layers is not None and kind == "closed":
        return ClosedForm(layers, loss, masks)
    if not clip:
        return Plain(model, loss, masks)
    if kind == "ghost":
        return Ghost(model, loss)
    if kind == "loop":
        return Loop(model, loss, masks)
    return PerSample(model, loss, masks, functorch=kind == "functorch")


def candidates(model: nn.Module, kind: Engine, masks: Mask | None = None) -> list[Engine]:
    """Engines that may apply to a network, the fastest first; only the requested one if there is one.

    Examples
    --------
    >>> candidates(nn.Sequential(nn.Flatten(), nn.Tanh()), "auto")
    ['ghost', 'hooks', 'functorch', 'loop']
    """
    if kind != "auto":
        return [kind]
    found: list[Engine] = ["hooks", "functorch", "loop"]
    if not masks:
        found.insert(0, "ghost")
    return found if chain(model) is None else ["closed", *found]


def factors(norms: Tensor, clip: float, clipping: Clipping, stabiliser: float) -> Tensor:
    """What each per-sample gradient is multiplied by, shape (n,): the product's norm is at most ``clip``.

    Examples
    --------
    >>> factors(torch.tensor([0.0, 0.5, 4.0]), 1.0, "flat", 0.01).tolist()
    [1.0, 1.0, 0.25]
    """
    if clipping == "flat":
        return (clip / norms).clamp(max=1)
    return clip / (norms + stabiliser)


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


class Plain:
    """The gradient of the summed loss, without per-sample gradients: for training without clipping."""

    def __init__(self, model: nn.Module, loss: Loss, masks: Mask) -> None:
        self._model, self._loss, self._masks = model, loss, masks
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._losses: Tensor | None = None

    def norms(self, x: Tensor, y: Tensor) -> None:
        self._losses = self._loss.value(self._model(x), y)

    def total(self, factors: Tensor | None) -> list[Tensor]:
        assert self._losses is not None
        assert factors is None
        sums = torch.autograd.grad(self._losses.sum(), self.params)
        self._losses = None
        return [s * self._masks[p] if p in self._masks else s for p, s in zip(self.params, sums, strict=True)]

    def close(self) -> None:
        self._losses = None


class Loop:
    """One backward pass per sample: slow, but right for every network, since samples never meet."""

    def __init__(self, model: nn.Module, loss: Loss, masks: Mask) -> None:
        self._model, self._loss, self._masks = model, loss, masks
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._samples: list[list[Tensor]] = []

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        self._samples = [self._sample(x[i : i + 1], y[i : i + 1]) for i in range(len(x))]
        found = [joined((row_norms(g[None]) for g in sample), sample[0].dtype) for sample in self._samples]
        return torch.cat(found)

    def parts(self) -> list[Tensor]:
        """Norm of each parameter's gradient, for the one sample that `norms` saw."""
        (sample,) = self._samples
        return [g.double().norm() for g in sample]

    def _sample(self, x: Tensor, y: Tensor) -> list[Tensor]:
        losses = self._loss.value(self._model(x), y)
        found = torch.autograd.grad(losses.sum(), self.params, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(self.params, found, strict=True)]
        return [
            g * self._masks[p] if p in self._masks else g for p, g in zip(self.params, whole, strict=True)
        ]

    def total(self, factors: Tensor | None) -> list[Tensor]:
        sums = [torch.zeros_like(p) for p in self.params]
        for i, sample in enumerate(self._samples):
            for own, g in zip(sums, sample, strict=True):
                own += g if factors is None else factors[i] * g
        self._samples = []
        return sums

    def close(self) -> None:
        self._samples = []
