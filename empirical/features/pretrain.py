"""Pre-train a body on the public part only, without noise: with labels, or with SimCLR."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from empirical.data.images import Images, normalised
from empirical.data.splits import Labels
from empirical.devices import ambient, memory
from empirical.devices.parallel import place
from empirical.features.augment import Augment, nt_xent
from empirical.networks.bodies import features_of, scale_of
from langevin.support import validate
from langevin.support.rng import RNG, generator

Kind = Literal["supervised", "simclr"]
Progress = Callable[[int, float], None]
Forward = Callable[[torch.Tensor], torch.Tensor]
Loss = Callable[[Forward, torch.Tensor, torch.Tensor], torch.Tensor]

# by default; a small public part needs more
EPOCHS: dict[Kind, int] = {"supervised": 30, "simclr": 40}
KINDS = tuple(EPOCHS)
# share of the steps in which the learning rate rises
_WARM_UP = 0.05
# width of SimCLR's embedding
_PROJECTION = 64


def supervised(
    body: nn.Module,
    images: NDArray[np.float32],
    labels: Labels,
    *,
    epochs: int = EPOCHS["supervised"],
    lr: float = 3e-3,
    batch: int = 128,
    weight_decay: float = 0.05,
    rng: RNG = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train a body, with a head that is discarded, by cross-entropy, AdamW and a cosine schedule.

    Parameters
    ----------
    body : nn.Module
        From images to ``body.features`` features; changed in place, left on ``device``.
    images : ndarray of float32, shape (n, channels, height, width)
        Public ones, normalised.
    labels : ndarray of int, shape (n,)
        From 0.
    epochs : int
    lr : float
        The highest learning rate.
    batch : int
        Images at once, or all if there are fewer; images that do not fill a batch are left out of the epoch.
    weight_decay : float
    rng : int, Generator or None
        Draws the head, the order, and what the body draws (SPEC 7). On the CPU the same seed gives the same
        weights; torch's own generator is left as it was.
    device : str, optional
        "cpu" or "cuda"; by default the body's. On a GPU, products are computed in bfloat16.
    progress : callable, optional
        Called with the number of epochs done and the last one's mean loss.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    FloatingPointError
        If the loss is not finite any more.
    """
    target = torch.tensor(labels, device="cpu")

    def parts() -> nn.Module:
        return nn.Linear(features_of(body), int(target.max()) + 1)

    def loss(forward: Forward, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(forward(x), y)

    how = _Training(epochs, lr, batch, weight_decay, rng, device, progress)
    return _train(body, parts, loss, images, target, 1, how)


def simclr(
    body: nn.Module,
    images: NDArray[np.float32],
    *,
    augment: Augment | None = None,
    temperature: float = 0.5,
    epochs: int = EPOCHS["simclr"],
    lr: float = 2e-3,
    batch: int = 256,
    weight_decay: float = 1e-4,
    rng: RNG = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train a body so that two views of an image are similar, and unlike those of other images [1]_.

    Parameters
    ----------
    body, images, epochs, lr, batch, weight_decay, rng, device, progress
        As for `supervised`. Larger batches contrast an image with more others.
    augment : Augment, optional
        Makes a view. The features become insensitive to what it changes.
    temperature : float
        Of `nt_xent`.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    FloatingPointError
        If the loss is not finite any more.

    Notes
    -----
    On glyphs of 24 pixels (a net of three convolutions, four seeds) nearest neighbours are right on .89 to
    .92 of the private test images after 20 epochs, against .96 to .98 after 10 of `supervised`, .39 to .45
    with random weights, and .87 to .90 in raw pixels. At 16 pixels and few epochs, training on noise in
    place of images gains about as much over random weights: that gain alone does not tell of what was learnt.

    References
    ----------
    .. [1] Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual
       representations", ICML 2020; here with AdamW, and a projection without batch normalisation.
    """
    view = Augment() if augment is None else augment
    temperature = validate.positive("temperature", temperature)

    def parts() -> nn.Module:
        width = features_of(body)
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, _PROJECTION))

    def loss(forward: Forward, x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        # one pass, so that batch normalisation sees both views
        a, b = forward(torch.cat([view(x), view(x)])).chunk(2)
        return nt_xent(a, b, temperature)

    none = torch.zeros(len(images), dtype=torch.int64, device="cpu")
    how = _Training(epochs, lr, batch, weight_decay, rng, device, progress)
    return _train(body, parts, loss, images, none, 2, how)


def pretrain(
    body: nn.Module,
    task: Images,
    *,
    kind: Kind = "supervised",
    epochs: int | None = None,
    rng: RNG = 0,
    device: str | None = None,
    progress: Progress | None = None,
) -> list[float]:
    """Train a body on the public part of a task, at no privacy cost.

    Parameters
    ----------
    body : nn.Module
        From images to ``body.features`` features; changed in place, left on ``device``.
    task : Images
        With a public part. Nothing else of it is read.
    kind : {"supervised", "simclr"}
        By the labels of the public part, or without.
    epochs : int, optional
        By default that of `supervised` or `simclr`.
    rng, device, progress
        As there.

    Returns
    -------
    list of float
        Mean loss of each epoch.

    Raises
    ------
    ValueError
        If there is no public part.

    Examples
    --------
    >>> from empirical import digits
    >>> body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
    >>> body.features = 16
    >>> losses = pretrain(body, digits(), epochs=5)
    >>> losses[-1] < losses[0]
    True
    """
    validate.choice("kind", kind, KINDS)
    if task.public is None:
        raise ValueError("task must have a public part to train on, got None: attach one with with_public")
    images = normalised(task.public.images, *scale_of(body, task))
    epochs = EPOCHS[kind] if epochs is None else epochs
    if kind == "simclr":
        return simclr(body, images, epochs=epochs, rng=rng, device=device, progress=progress)
    return supervised(
        body, images, task.public.labels, epochs=epochs, rng=rng, device=device, progress=progress
    )


@dataclass(frozen=True)
class _Training:
    """How a body is trained; see `supervised`."""

    epochs: int
    lr: float
    batch: int
    weight_decay: float
    rng: RNG
    device: str | None
    progress: Progress | None

    def __post_init__(self) -> None:
        validate.integer("epochs", self.epochs, 1)
        validate.integer("batch", self.batch, 2)
        validate.positive("lr", self.lr)
        validate.non_negative("weight_decay", self.weight_decay)


def _train(
    body: nn.Module,
    parts: Callable[[], nn.Module],
    loss: Loss,
    images: NDArray[np.float32],
    labels: torch.Tensor,
    views: int,
    how: _Training,
) -> list[float]:
    """Minimise ``loss`` over the body and the modules that ``parts`` makes."""
    where = next(body.parameters()).device if how.device is None else place(how.device)
    gpu = where.type == "cuda"
    layout = torch.channels_last if gpu else torch.contiguous_format
    batch = min(how.batch, len(images))
    seed = int(generator(how.rng, "pre-training").integers(2**63))
    steps = how.epochs * (len(images) // batch)
    modes = {module: module.training for module in body.modules()}
    losses = []
    with ambient.ordinary(where):
        memory.require(body, images.shape[1:], len(images), where, at_once=views * batch)
        ambient.seed(seed, where)
        rest = parts().to(where)
        body.to(where).train()
        _lay_out(body, layout)
        pixels = torch.tensor(images).to(where, memory_format=layout)
        labels = labels.to(where)
        optimizer = torch.optim.AdamW(
            [*body.parameters(), *rest.parameters()], how.lr, weight_decay=how.weight_decay, fused=gpu
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))

        def forward(x: torch.Tensor) -> torch.Tensor:
            # views and losses stay in single precision
            with torch.autocast(where.type, torch.bfloat16, enabled=gpu):
                return rest(body(x)).float()

        def epoch() -> float:
            total = torch.zeros((), device=where)
            order = torch.randperm(len(pixels), device=where)[: len(pixels) // batch * batch]
            for chosen in order.split(batch):
                value = loss(forward, pixels[chosen], labels[chosen])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
                total += value.detach()
            return float(total) * batch / len(order)

        try:
            for number in range(1, how.epochs + 1):
                losses.append(epoch())
                if not math.isfinite(losses[-1]):
                    raise FloatingPointError(
                        f"the loss is {losses[-1]} in epoch {number}: use an lr below {how.lr:g}"
                    )
                if how.progress is not None:
                    how.progress(number, losses[-1])
        finally:
            body.zero_grad(set_to_none=True)
            _lay_out(body, torch.contiguous_format)
            for module, mode in modes.items():
                module.training = mode
    return losses


def _lay_out(body: nn.Module, layout: torch.memory_format) -> None:
    """Order the memory of all weights of convolutions."""
    for parameter in body.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=layout)


def _rate(step: int, steps: int) -> float:
    """Return the learning rate's factor: linear warm-up, then cosine decay to 0."""
    warm_up = max(1, round(_WARM_UP * steps))
    return min((step + 1) / warm_up, 0.5 * (1 + math.cos(math.pi * step / steps)))
