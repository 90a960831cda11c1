"""Check by values that a network does not mix or remember samples, as DP-SGD requires."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from empirical.networks import passes

# images whose features are compared, and passes where random numbers are drawn
_PROBES = 3
_DRAWS = 16


class NotPrivateError(ValueError):
    """A network that DP-SGD cannot train; the message names the module and the remedy."""


def check_private(body: nn.Module, images: Tensor) -> None:
    """Refuse a network that mixes or remembers samples, as shown by passes over images.

    `empirical.make_private` knows the common kinds of module; this finds the others, by values: the features
    of an image must not depend on the other images in its batch, on their order or number, or on an earlier
    pass over other images; their gradients must depend on no other image. It tests copies, in double
    precision if possible, in training mode and in evaluation mode; ``body`` does not change.

    Parameters
    ----------
    body : nn.Module
    images : Tensor, shape (n, channels, height, width)
        At least two, public or random.

    Raises
    ------
    NotPrivateError
        If a buffer or an attribute changes with the images, two passes over the same images differ, the
        features or gradients of an image depend on another image, a trainable layer is never called, or the
        number of features is not what the body says. The message names the module.
    ValueError
        If there are too few images, or the body cannot be copied or does not accept them.

    Notes
    -----
    It cannot see a branch that only other images or other weights would take.

    Examples
    --------
    >>> check_private(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4)), torch.rand(3, 1, 2, 2))
    Traceback (most recent call last):
        ...
    empirical.networks.check.NotPrivateError: body must not remember samples, but training changed the \
buffer '1.running_mean': call make_private, or freeze what changes it
    """
    for training in (True, False):
        check_passes(body, images, training=training)


def check_passes(body: nn.Module, images: Tensor, *, training: bool) -> None:
    """Do the checks of `check_private` in one mode: a frozen body is not checked for training."""
    if len(images) < 2:
        raise ValueError(f"need at least two images to test for cross-sample dependence, got {len(images)}")
    with passes.unnoticed(), torch.set_grad_enabled(training):
        made, images, seen = passes.precise(body, images.detach(), training=training)
        images = passes.fewer(made, images, seen)
        _refuse_memory(made, images, seen)
        if training:
            _refuse_slopes(passes.copied(made), images)
        _refuse_companions(made, images, seen)


def _refuse_memory(made: nn.Module, images: Tensor, seen: passes.Seen) -> None:
    """Refuse what remembers images, and what gives other features for the same images the next time."""
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
                f"body must call each trainable layer, but never calls {_named(made, name)}: freeze its "
                "parameters, or call the layer where its weights are used"
            )
    images_after = passes.others(images)
    other(images_after)
    seen_first, seen_other = passes.state(first), passes.state(other)
    changed = [
        key for key in seen_first.keys() | seen_other.keys() if seen_first.get(key) != seen_other.get(key)
    ]
    if changed:
        name, key = min(changed)
        raise NotPrivateError(
            f"body must not remember samples, but a pass left them in the attribute {key!r} of "
            f"{_named(made, name)}: keep nothing that depends on images between passes"
        )
    # where random numbers are drawn, they may seldom matter
    for _ in range(_DRAWS if seen.drew else 1):
        first(images_after)
        if passes.differ(first(images).detach(), features, seen.eps):
            raise NotPrivateError(
                "body must give the same features for the same images each time, but two passes differ, from "
                f"{_named(made, _unsteady(made, images))} on: switch off what draws random numbers or keeps "
                "a state, such as stochastic depth or running statistics"
            )


def _refuse_shape(made: nn.Module, features: Any, images: int) -> None:
    if not isinstance(features, Tensor):
        raise NotPrivateError(f"body must give a tensor of features, got {type(features).__name__}")
    expected = getattr(made, "features", None)
    if isinstance(expected, int) and tuple(features.shape) != (images, expected):
        raise NotPrivateError(
            f"body must give {expected} features per image, as its attribute 'features' says, got the shape "
            f"{tuple(features.shape)} for {images} images: correct the attribute"
        )
    if features.shape[:1] != (images,):
        raise NotPrivateError(
            f"body must give a row of features for each image, got the shape {tuple(features.shape)} for "
            f"{images} images: keep the first axis for images"
        )


def _unsteady(made: nn.Module, images: Tensor) -> str:
    """Name of the first module whose output for the same images changes after a pass over others."""
    made, places = passes.copied(made), range(len(images))
    first = passes.rows(made, images, places)
    for _ in range(_DRAWS):
        made(passes.others(images))
        name = passes.first_difference(first, passes.rows(made, images, places), passes.DOUBLE)
        if name:
            return name
    return ""


def _refuse_slopes(made: nn.Module, images: Tensor) -> None:
    """Refuse gradients of an image's features that depend on another image; they must be exactly zero."""
    images = images.clone().requires_grad_()
    with passes.calls(made) as found:
        features = made(images)
    if _mix(features, images):
        culprits = [name for name, output in found if any(_mix(t, images) for t in passes.tensors(output))]
        raise _meeting(made, culprits[0] if culprits else "")


def _mix(output: Tensor, images: Tensor) -> bool:
    """Tell whether the gradient of the first or last row of ``output`` reaches other images."""
    if not output.requires_grad or not output.ndim or not len(output):
        return False
    for place in (0, -1):
        total = output[place].sum()
        (slope,) = torch.autograd.grad(total, images, retain_graph=True, allow_unused=True)
        if slope is not None and bool((slope[1:] if place == 0 else slope[:-1]).any()):
            return True
    return False


def _refuse_companions(made: nn.Module, images: Tensor, seen: passes.Seen) -> None:
    """Refuse features that change with the other images in the batch, their order or their number."""
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


def _companies(made: nn.Module, images: Tensor, seen: passes.Seen) -> Iterator[tuple[Tensor, list[int]]]:
    """Batches that contain the first images, and their places."""
    count = min(_PROBES, len(images))
    places = list(range(count))
    yield images, places
    yield images.flip(0), [len(images) - 1 - i for i in places]
    extremes = [extreme for extreme in passes.extremes(images)[:, None] if _takes(made, extreme)]
    if extremes:
        yield torch.cat([*extremes, images[:count]]), [i + len(extremes) for i in places]
    for size in passes.sizes(seen, len(images)):
        batch = passes.others(images, size)
        # not where they were before
        own = [(i + size // 2) % size for i in range(min(count, size))]
        batch[own] = images[: len(own)]
        yield batch, own


def _takes(made: nn.Module, images: Tensor) -> bool:
    """Whether a network accepts images; one whose pixels are tokens refuses some."""
    try:
        made(images)
    except Exception:  # whatever it does not like
        return False
    return True


def _meeting(made: nn.Module, name: str, images: int | None = None) -> NotPrivateError:
    where = "" if images is None else f" of {images}"
    return NotPrivateError(
        "body must treat images one by one, but the features of an image depend on others in its batch"
        f"{where}, from {_named(made, name)} on: use layers that normalise or attend within an image"
    )


def _kept(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_buffers(), *((name, p.detach()) for name, p in network.named_parameters())]


def _named(body: nn.Module, name: str) -> str:
    kind = type(body.get_submodule(name)).__name__
    return f"{kind} at {name!r}" if name else kind
