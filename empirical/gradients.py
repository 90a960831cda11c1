"""Sums of clipped per-sample gradients: by a closed form, by Opacus, or plainly."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from empirical._opacus import GradSampleModule, GradSampleModuleFastGradientClipping
from empirical.losses import Loss
from empirical.recipe import Engine
from empirical.subsets import Adapter, Mask
from langevin.schedule import Clipping


class Gradients(Protocol):
    """Per-sample gradients of one batch at a time: first their norms, then their weighted sum."""

    params: list[nn.Parameter]

    def norms(self, x: Tensor, y: Tensor) -> Tensor | None:
        """Norms over all trained parameters, shape (n,); None where single samples are not looked at."""
        ...

    def total(self, factors: Tensor | None) -> list[Tensor]:
        """``sum_i factors_i g_i`` for the batch that `norms` saw, in the order of ``params``."""
        ...

    def close(self) -> None:
        """Leave the network as it was found."""
        ...


def engine(model: nn.Module, loss: Loss, kind: Engine, *, masks: Mask | None = None, clip: bool) -> Gradients:
    """Choose how gradients over what trains in ``model`` are summed.

    Parameters
    ----------
    model : nn.Module
        Of which the parameters that require gradients train.
    loss : Loss
    kind : {"auto", "closed", "ghost", "hooks", "functorch"}
        "auto": the closed form for chains of linear layers; else ghost clipping, or hooks under masks.
    masks : dict, optional
        Ones and zeros for parameters of which a part trains.
    clip : bool
        Whether per-sample gradients are clipped; if not, the plain gradient will do.

    Raises
    ------
    ValueError
        If the kind does not fit the network, or nothing trains.
    """
    masks = masks or {}
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("model must have a parameter that requires gradients, got none")
    layers = chain(model)
    if kind == "closed" and layers is None:
        raise ValueError(
            f"engine must not be 'closed' for {type(model).__name__}, which is no chain of linear layers and "
            "ReLUs: take 'ghost'"
        )
    if kind == "ghost" and masks:
        raise ValueError(
            "engine must not be 'ghost' for a sparse subset, which it does not see: take 'hooks'"
        )
    if layers is not None and kind in ("auto", "closed"):
        return ClosedForm(layers, loss, masks)
    if not clip:
        return Plain(model, loss, masks)
    if kind == "ghost" or (kind == "auto" and not masks):
        return Ghost(model, loss)
    return PerSample(model, loss, masks, functorch=kind == "functorch")


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
    """Layers of a network that is a chain of linear layers and ReLUs on flat inputs; None for any other."""
    layers: list[nn.Module] = []
    # a classifier is its body and its head, too
    kind = type(model)
    if isinstance(model, nn.Sequential) or (hasattr(model, "body") and hasattr(model, "head")):
        for child in model.children():
            inner = chain(child)
            if inner is None:
                return None
            layers += inner
        return layers
    if kind is nn.Flatten and (model.start_dim, model.end_dim) == (1, -1):
        return [model]
    if kind in (nn.Linear, nn.ReLU, nn.Identity):
        return [model]
    if kind is Adapter and type(model.base) is nn.Linear:
        return [model]
    return None


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
            elif isinstance(layer, nn.ReLU) and deeper:
                delta = delta * (a > 0)
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
    """The gradient of the summed loss, without a look at single samples: for training without clipping."""

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


class Ghost:
    """Opacus's ghost clipping: norms in a first backward pass, the weighted sum in a second."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        self._loss, self._model = loss, model
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._module = GradSampleModuleFastGradientClipping(model, loss_reduction="sum")
        self._losses: Tensor | None = None

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            self._losses = self._loss.value(self._module(x), y)
            self._module.enable_hooks()
            with _quietly():
                torch.autograd.grad(self._losses.sum(), self.params, retain_graph=True)
        except NotImplementedError as error:
            raise ValueError(
                f"engine must not be 'ghost' for a network with a layer that is called twice ({error}): take "
                "'hooks'"
            ) from None
        return self._module.get_norm_sample().detach()

    def total(self, factors: Tensor | None) -> list[Tensor]:
        assert self._losses is not None
        self._module.disable_hooks()
        weighted = self._losses if factors is None else factors * self._losses
        with _quietly():
            sums = torch.autograd.grad(weighted.sum(), self.params)
        self._module.enable_hooks()
        self._losses = None
        return list(sums)

    def close(self) -> None:
        self._module.to_standard_module()
        _forget(self._model)


class PerSample:
    """Per-sample gradients, all in memory at once: by Opacus's hooks, or by functorch."""

    def __init__(self, model: nn.Module, loss: Loss, masks: Mask, *, functorch: bool = False) -> None:
        self._loss, self._model, self._masks = loss, model, masks
        self.params = [p for p in model.parameters() if p.requires_grad]
        self._module = GradSampleModule(model, loss_reduction="sum", force_functorch=functorch)

    def norms(self, x: Tensor, y: Tensor) -> Tensor:
        with _quietly():
            losses = self._loss.value(self._module(x), y)
            torch.autograd.grad(losses.sum(), self.params)
        return torch.stack([g.flatten(1).norm(dim=1) for g in self._samples()]).norm(dim=0)

    def _samples(self) -> Iterable[Tensor]:
        """Per-sample gradients of each parameter, masked, in single precision at least."""
        for p in self.params:
            sample: Tensor = p.grad_sample  # type: ignore[attr-defined]
            if sample.dtype not in (torch.float32, torch.float64):
                sample = sample.float()
            yield sample * self._masks[p] if p in self._masks else sample

    def total(self, factors: Tensor | None) -> list[Tensor]:
        sums = [g.sum(0) if factors is None else torch.tensordot(factors, g, 1) for g in self._samples()]
        for p in self.params:
            p.grad_sample = None  # type: ignore[attr-defined]
        return sums

    def close(self) -> None:
        self._module.to_standard_module()
        _forget(self._model)


def _forget(model: nn.Module) -> None:
    """Drop what Opacus left on parameters and, where a pass did not come to its end, on layers."""
    for p in model.parameters():
        for name in ("grad_sample", "_norm_sample", "_forward_counter"):
            if hasattr(p, name):
                delattr(p, name)
    for layer in model.modules():
        # a layer may have children or methods of the same name
        own = vars(layer)
        if type(own.get("activations")) is list:
            del own["activations"]
            own.pop("max_batch_len", None)


def _quietly() -> warnings.catch_warnings:
    """No word on hooks of a first layer, whose inputs need no gradients."""
    return warnings.catch_warnings(action="ignore", category=UserWarning)
