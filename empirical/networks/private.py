"""Convert a network for DP-SGD, so that it does not mix or remember samples."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize

from empirical._opacus import DPRNNBase, GradSampleModule, register_grad_sampler
from empirical.networks.check import NotPrivateError


class Scale(nn.Module):
    """A gain and an offset for each channel, ``x * weight + bias``."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)

    def forward(self, x: Tensor) -> Tensor:
        return x * _along(self.weight, x) + _along(self.bias, x)


@register_grad_sampler(Scale)
def _scale_grad_sample(
    layer: Scale, activations: list[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    found = {}
    if layer.weight.requires_grad:
        found[layer.weight] = _over_pixels(backprops * activations[0])
    if layer.bias.requires_grad:
        found[layer.bias] = _over_pixels(backprops)
    return found


def _over_pixels(x: Tensor) -> Tensor:
    return x.flatten(2).sum(2) if x.ndim > 2 else x


def _along(channels: Tensor, x: Tensor) -> Tensor:
    return channels.view(1, -1, *[1] * (x.ndim - 2))


class FixedNorm(nn.Module):
    """Batch normalisation by fixed statistics: an affine map of each channel.

    Parameters
    ----------
    mean, variance : Tensor, shape (channels,)
        Running statistics from pre-training.
    eps : float
    weight, bias : Tensor or None, shape (channels,)
        Gain and offset, which train if they did before.
    """

    mean: Tensor
    inverse: Tensor

    def __init__(
        self, mean: Tensor, variance: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean.detach().clone())
        self.register_buffer("inverse", (variance.detach() + eps).rsqrt())
        self.scale: nn.Module = nn.Identity()
        if weight is not None or bias is not None:
            weight = torch.ones_like(self.mean) if weight is None else weight
            bias = torch.zeros_like(self.mean) if bias is None else bias
            self.scale = Scale(weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and not torch.is_grad_enabled():
            weight, bias = (getattr(self.scale, name, None) for name in ("weight", "bias"))
            # in one pass over memory, where no engine needs the parts
            # `inverse` holds the body's own eps; this one must be positive and changes nothing
            eps = torch.finfo(torch.float32).tiny
            return functional.batch_norm(x, self.mean, self.inverse**-2, weight, bias, eps=eps)
        x = self.scale((x - _along(self.mean, x)) * _along(self.inverse, x))
        # what follows may add to it in place, which hooks on `scale` do not allow
        return x.clone() if self.training else x


def make_private(body: nn.Module) -> nn.Module:
    """Change a network, in place, so that samples meet only in clipped gradients.

    Batch normalisation becomes a fixed affine map by its running statistics. Activations no longer work in
    place, and convolutions get contiguous images: for others, such as "channels last", Opacus silently
    computes wrong gradients. Dropout and stochastic depth are off, so that frozen features can be kept. Raw
    parameters of a module whose submodules also have parameters, such as a class token, are frozen, since
    Opacus would handle the whole module by functorch for them.

    Parameters
    ----------
    body : nn.Module

    Returns
    -------
    nn.Module
        ``body`` itself, or what replaces it. Raw parameters that were frozen are those of its
        ``named_parameters()`` that do not require gradients.

    Raises
    ------
    NotPrivateError
        For normalisation over the batch without statistics, or over samples with statistics that keep
        changing; recurrent layers and `nn.MultiheadAttention`; trainable layers with buffers; convolutions
        without zero padding; tied parameters. The message names the module.

    See Also
    --------
    empirical.check_private : Finds by passes over images what this cannot know.

    Examples
    --------
    >>> body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True))
    >>> make_private(body)[1]
    FixedNorm(
      (scale): Scale()
    )
    """
    if _is_batch_norm(body):
        return _fixed("", body)
    for name, module in list(body.named_modules()):
        for child_name, child in list(module.named_children()):
            if _is_batch_norm(child):
                setattr(module, child_name, _fixed(f"{name}.{child_name}".lstrip("."), child))
    _refuse_ties(body)
    for name, module in body.named_modules():
        _refuse(name or type(module).__name__, module)
        if getattr(module, "inplace", None) is True:
            module.inplace = False  # type: ignore[assignment]
        _keep_all(module)
        if isinstance(module, nn.modules.conv._ConvNd):
            module.register_forward_pre_hook(_contiguous)
        below = any(True for child in module.children() for _ in child.parameters())
        if type(module) not in GradSampleModule.GRAD_SAMPLERS and below:
            for p in module.parameters(recurse=False):
                p.requires_grad_(False)
    return body


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # opacus's unfold2d takes rows to lie one after the other, and torch's contiguous() leaves axes of length
    # 1 with whatever strides they have
    return tuple(
        x if x.stride() == _strides(x) else x.clone(memory_format=torch.contiguous_format) for x in inputs
    )


def _strides(x: Tensor) -> tuple[int, ...]:
    return tuple(math.prod(x.shape[place + 1 :]) for place in range(x.ndim))


# what leaves out a random part in training, by the ends of the classes' names in timm and transformers
_RANDOM = ("DropPath", "StochasticDepth", "DropBlock2d", "PatchDropout")


def _keep_all(module: nn.Module) -> None:
    """Switch dropout and stochastic depth off."""
    random = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__.endswith(_RANDOM)
    for chance in ("p", "drop_prob", "prob", "drop_rate"):
        # `drop_rate` is of networks of timm that call the function
        if (random or chance == "drop_rate") and isinstance(getattr(module, chance, None), float | int):
            setattr(module, chance, 0.0)


def _refuse_ties(body: nn.Module) -> None:
    """Refuse a parameter in two places, whose norm ghost clipping would get wrong."""
    places: dict[nn.Parameter, str] = {}
    # Opacus's recurrent layers have two names for each
    recurrent = {p for m in body.modules() if isinstance(m, DPRNNBase) for p in m.parameters()}
    for name, p in body.named_parameters(remove_duplicate=False):
        if p.requires_grad and p in places and p not in recurrent:
            raise NotPrivateError(
                f"body must have each parameter in one place, got {places[p]!r} and {name!r} tied: copy it, "
                "or freeze it"
            )
        places[p] = name


def _is_batch_norm(module: nn.Module) -> bool:
    # frozen variants of other libraries have the statistics, but not the base class
    statistics = hasattr(module, "running_mean") and hasattr(module, "running_var")
    return isinstance(module, nn.modules.batchnorm._BatchNorm) or (
        statistics and not isinstance(module, nn.modules.instancenorm._InstanceNorm)
    )


def _fixed(name: str, norm: Any) -> nn.Module:
    """The map that replaces batch normalisation, with the activation that some variants include."""
    if norm.running_mean is None:
        raise NotPrivateError(
            f"body must not normalise over the batch, got {type(norm).__name__} at {name!r} without running "
            "statistics: pre-train it with track_running_stats, or use group normalisation"
        )
    if not hasattr(norm, "eps"):
        raise NotPrivateError(
            f"body must have norms with an attribute 'eps', but {type(norm).__name__} at {name!r} has none: "
            "set it to what its forward adds to the variance"
        )
    fixed = FixedNorm(
        norm.running_mean,
        norm.running_var,
        norm.eps,
        getattr(norm, "weight", None),
        getattr(norm, "bias", None),
    )
    fixed.train(norm.training)
    own = [getattr(norm, part, None) for part in ("drop", "act")]
    rest = [part for part in own if isinstance(part, nn.Module) and not isinstance(part, nn.Identity)]
    return nn.Sequential(fixed, *rest) if rest else fixed


def _refuse(name: str, module: nn.Module) -> None:
    """Refuse a module in which samples would meet, or whose gradients Opacus would get wrong."""
    kind = type(module).__name__
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    inside = any(p.requires_grad for p in module.parameters())
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        raise NotPrivateError(
            f"body must not keep statistics of private samples, got {kind} at {name!r} with "
            "track_running_stats: switch them off, or use group normalisation"
        )
    if inside and isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        raise NotPrivateError(
            f"body must have layers with per-sample gradients, got {kind} at {name!r}: use "
            f"opacus.layers.DP{kind}"
        )
    if isinstance(module, nn.modules.conv._ConvNd) and trains and module.padding_mode != "zeros":
        raise NotPrivateError(
            f"body must pad with zeros, got {kind} at {name!r} with padding_mode={module.padding_mode!r}, "
            "whose gradients Opacus gets wrong: pad in a layer before it"
        )
    if inside and parametrize.is_parametrized(module):
        raise NotPrivateError(
            f"body must have plain weights, got {kind} at {name!r} with a parametrization, such as weight or "
            "spectral normalisation: call torch.nn.utils.parametrize.remove_parametrizations"
        )
    if trains and isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.scale_grad_by_freq:
        raise NotPrivateError(
            f"body must not scale gradients by counts over the batch, got {kind} at {name!r} with "
            "scale_grad_by_freq: switch it off"
        )
    buffers = [key for key, _ in module.named_buffers(recurse=False)]
    leaf = next(module.children(), None) is None
    if trains and leaf and buffers:
        raise NotPrivateError(
            f"body must not have trainable layers with buffers, which could keep private samples, got {kind} "
            f"at {name!r} with {buffers}: freeze its parameters, or move the buffers to a module of their own"
        )
