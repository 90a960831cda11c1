"""Make a network fit for DP-SGD: nothing in it mixes samples, or remembers them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from empirical import passes
from empirical._opacus import DPRNNBase, GradSampleModule, register_grad_sampler

# images whose features are compared, and passes where random numbers are drawn
_PROBES = 3
_DRAWS = 16


class NotPrivateError(ValueError):
    """A network that DP-SGD cannot train; the message names the module and the remedy."""


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
    """Batch normalisation by statistics that stay what they were: a fixed affine map of each channel.

    Parameters
    ----------
    mean, variance : Tensor, shape (channels,)
        Running statistics of the pre-training.
    eps : float
    weight, bias : Tensor or None, shape (channels,)
        Gain and offset, which train if they did: not those of a norm that was frozen before.
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
        x = self.scale((x - _along(self.mean, x)) * _along(self.inverse, x))
        # what follows may add to it in place, which hooks on `scale` do not allow
        return x.clone() if self.training else x


def make_private(body: nn.Module) -> nn.Module:
    """Change a network, in place, so that samples meet in clipped gradients alone.

    Batch normalisation becomes a fixed affine map by its running statistics. Activations no longer work in
    place, and convolutions get contiguous images: of others, such as "channels last", Opacus gets the
    gradients wrong without a word. Dropout and stochastic depth are off, so that frozen features can be kept.
    Raw parameters of a module whose submodules have parameters too, such as a class token, are frozen, since
    Opacus would take the whole module to functorch for them.

    Parameters
    ----------
    body : nn.Module

    Returns
    -------
    nn.Module
        ``body`` itself, or what takes its place. Raw parameters that were frozen are those of its
        ``named_parameters()`` that do not require gradients.

    Raises
    ------
    NotPrivateError
        For normalisation over the batch without statistics, or over samples with statistics that go on
        changing; recurrent layers and `nn.MultiheadAttention`; trainable layers with buffers; convolutions
        that are not padded with zeros; parameters in two places. The message names the module.

    See Also
    --------
    check_private : What only a forward pass shows.

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


def check_private(body: nn.Module, images: Tensor) -> None:
    """Refuse a network in which samples meet, or that remembers them, as passes over images show.

    `make_private` knows the common kinds of module; this finds the others, by values: the features of an
    image must be the same whatever images are beside it, in whatever order and number, and again after a
    pass over other images; their gradients must depend on no other image. Copies are tried, in double
    precision where they work in it, in training mode and in evaluation mode; ``body`` stays as it is.

    Parameters
    ----------
    body : nn.Module
    images : Tensor, shape (n, channels, height, width)
        Public or random ones, two at least.

    Raises
    ------
    NotPrivateError
        If a buffer or an attribute changes with the images, two passes over the same images differ, the
        features or gradients of an image depend on another image, a layer that trains is never called, or
        features are not as many as the body says. The message names the module.
    ValueError
        If there are too few images, or the body cannot be copied or does not take them.

    Notes
    -----
    What no pass does is not seen: a branch that only other images or other weights lead into.

    Examples
    --------
    >>> check_private(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), torch.rand(3, 1, 2, 2))
    Traceback (most recent call last):
        ...
    empirical.privatise.NotPrivateError: body must not remember samples, but training changed the buffer \
'1.running_mean': call make_private, or freeze what changes it
    """
    for training in (True, False):
        check_passes(body, images, training=training)


def check_passes(body: nn.Module, images: Tensor, *, training: bool) -> None:
    """Check what `check_private` does, in one mode: a frozen body need not be fit for training."""
    if len(images) < 2:
        raise ValueError(
            f"images must be two at least, got {len(images)}: features of one depend on no other"
        )
    with passes.unnoticed(), torch.set_grad_enabled(training):
        made, images, seen = passes.precise(body, images.detach(), training=training)
        _refuse_memory(made, images, seen)
        if training:
            _refuse_slopes(passes.copied(made), images)
        _refuse_companions(made, images, seen)


def _refuse_memory(made: nn.Module, images: Tensor, seen: passes.Seen) -> None:
    """Refuse what remembers images, and what gives other features of the same images the next time."""
    first, other = passes.copied(made), passes.copied(made)
    before = {name: value.clone() for name, value in _kept(first)}
    with passes.calls(first, lambda _: None) as called:
        features = first(images).detach()
    for name, value in _kept(first):
        if name not in before or passes.differ(value, before[name], 0.0):
            raise NotPrivateError(
                f"body must not remember samples, but training changed the buffer {name!r}: call "
                "make_private, or freeze what changes it"
            )
    _refuse_shape(made, features, len(images))
    names = {name for name, _ in called}
    for name, module in made.named_modules():
        trains = any(p.requires_grad for p in module.parameters(recurse=False))
        if made.training and name not in names and trains:
            raise NotPrivateError(
                f"body must call each layer that trains, got {_named(made, name)} passed over: freeze its "
                "parameters, or call the layer where its weights are used"
            )
    images_after = passes.others(images)
    other(images_after)
    seen_first, seen_other = passes.state(first), passes.state(other)
    changed = [key for key in seen_first.keys() | seen_other.keys() if seen_first.get(key) != seen_other.get(key)]
    if changed:
        name, key = min(changed)
        raise NotPrivateError(
            f"body must not remember samples, but a pass left them in the attribute {key!r} of "
            f"{_named(made, name)}: keep nothing between passes that depends on images"
        )
    # where random numbers are drawn, they may seldom matter
    for _ in range(_DRAWS if seen.drew else 1):
        first(images_after)
        if passes.differ(first(images).detach(), features, seen.eps):
            raise NotPrivateError(
                "body must give the same features of the same images each time, but two passes differ, from "
                f"{_named(made, _unsteady(made, images))} on: switch off what draws random numbers or keeps "
                "a state, such as stochastic depth or running statistics"
            )


def _refuse_shape(made: nn.Module, features: Any, images: int) -> None:
    if not isinstance(features, Tensor):
        raise NotPrivateError(f"body must give a tensor of features, got {type(features).__name__}")
    expected = getattr(made, "features", None)
    if isinstance(expected, int) and tuple(features.shape) != (images, expected):
        raise NotPrivateError(
            f"body must give {expected} features an image, as it says, got the shape "
            f"{tuple(features.shape)} for {images} images: mend its attribute 'features'"
        )
    if features.shape[:1] != (images,):
        raise NotPrivateError(
            f"body must give a row of features for each image, got the shape {tuple(features.shape)} for "
            f"{images} images: keep the first axis for them"
        )


def _unsteady(made: nn.Module, images: Tensor) -> str:
    """Name of the first module that gives something else of the same images, after a pass over others."""
    made, places = passes.copied(made), range(len(images))
    first = passes.rows(made, images, places)
    for _ in range(_DRAWS):
        made(passes.others(images))
        name = passes.first_difference(first, passes.rows(made, images, places), passes.DOUBLE)
        if name:
            return name
    return ""


def _refuse_slopes(made: nn.Module, images: Tensor) -> None:
    """Refuse gradients of an image's features that depend on another image: exact zeros else."""
    images = images.clone().requires_grad_()
    with passes.calls(made) as found:
        features = made(images)
    if _mix(features, images):
        culprits = [name for name, output in found if any(_mix(t, images) for t in passes.tensors(output))]
        raise _meeting(made, culprits[0] if culprits else "")


def _mix(output: Tensor, images: Tensor) -> bool:
    """Whether the gradient of the first or last row of ``output`` reaches other images."""
    if not output.requires_grad or not output.ndim or not len(output):
        return False
    for place in (0, -1):
        total = output[place].sum()
        (slope,) = torch.autograd.grad(total, images, retain_graph=True, allow_unused=True)
        if slope is not None and bool((slope[1:] if place == 0 else slope[:-1]).any()):
            return True
    return False


def _refuse_companions(made: nn.Module, images: Tensor, seen: passes.Seen) -> None:
    """Refuse features that are others beside other images, in another order, or among more of them."""
    probes = images[:_PROBES]
    alone = [made(image[None]).detach() for image in probes]
    for own in alone:
        _refuse_shape(made, own, 1)
    reference = torch.cat(alone)
    for batch, places in _companies(made, images, seen):
        features = made(batch).detach()
        _refuse_shape(made, features, len(batch))
        own = reference[: len(places)]
        if not passes.differ(features[places], own, seen.eps):
            continue
        found = passes.rows(made, batch, places)
        single = [passes.rows(made, image[None], [0]) for image in probes[: len(places)]]
        rows = [
            (calls[0][0], [torch.cat(parts) for parts in zip(*(kept for _, kept in calls), strict=True)])
            for calls in zip(*single, strict=True)
        ]
        raise _meeting(made, passes.first_difference(rows, found, seen.eps), len(batch))


def _companies(
    made: nn.Module, images: Tensor, seen: passes.Seen
) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches that the first images are in, and their places."""
    count = min(_PROBES, len(images))
    places = list(range(count))
    yield images, places
    yield images.flip(0), [len(images) - 1 - i for i in places]
    for extreme in passes.extremes(images):
        try:
            made(extreme[None])
        except Exception:  # such as pixels that are no tokens
            continue
        yield torch.cat([extreme[None], images[:count]]), [i + 1 for i in places]
    for size in passes.sizes(seen, len(images)):
        batch = passes.others(images, size)
        # not where they were before
        own = [(i + size // 2) % size for i in range(min(count, size))]
        batch[own] = images[: len(own)]
        yield batch, own


def _meeting(made: nn.Module, name: str, images: int | None = None) -> NotPrivateError:
    where = "" if images is None else f" of {images}"
    return NotPrivateError(
        f"body must treat images one by one, but the features of an image depend on others in its batch{where}, "
        f"from {_named(made, name)} on: take layers that normalise or attend within an image"
    )


def _kept(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_buffers(), *((name, p.detach()) for name, p in network.named_parameters())]



def _named(body: nn.Module, name: str) -> str:
    kind = type(body.get_submodule(name)).__name__
    return f"{kind} at {name!r}" if name else kind


def _contiguous(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # opacus's unfold2d takes rows to lie one after the other, and torch's contiguous() leaves axes of length
    # 1 with whatever strides they have
    return tuple(x if x.stride() == _strides(x) else x.clone(memory_format=torch.contiguous_format) for x in inputs)


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
    """Refuse a parameter in two places, of which ghost clipping would get the norm wrong."""
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
    """The map that takes the place of batch normalisation, with the activation that some variants carry."""
    if norm.running_mean is None:
        raise NotPrivateError(
            f"body must not normalise over the batch, got {type(norm).__name__} at {name!r} without running "
            "statistics: pre-train it with track_running_stats, or take group normalisation"
        )
    if not hasattr(norm, "eps"):
        raise NotPrivateError(
            f"body must have norms with an 'eps', got {type(norm).__name__} at {name!r} without: set the "
            "attribute to what its forward adds to the variance"
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
    """Refuse a module that samples would meet in, or of which Opacus would get gradients wrong."""
    kind = type(module).__name__
    trains = any(p.requires_grad for p in module.parameters(recurse=False))
    inside = any(p.requires_grad for p in module.parameters())
    if isinstance(module, nn.modules.instancenorm._InstanceNorm) and module.track_running_stats:
        raise NotPrivateError(
            f"body must not keep statistics of private samples, got {kind} at {name!r} with "
            "track_running_stats: switch them off, or take group normalisation"
        )
    if inside and isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        raise NotPrivateError(
            f"body must have layers with per-sample gradients, got {kind} at {name!r}: take "
            f"opacus.layers.DP{kind}"
        )
    if isinstance(module, nn.modules.conv._ConvNd) and trains and module.padding_mode != "zeros":
        raise NotPrivateError(
            f"body must pad with zeros, got {kind} at {name!r} with padding_mode={module.padding_mode!r}, of "
            "which Opacus gets the gradients wrong: pad in a layer before it"
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


def frozen(body: nn.Module) -> list[str]:
    """Names of the parameters that do not train."""
    return [name for name, p in body.named_parameters() if not p.requires_grad]
