"""Bodies in which samples meet, or that remember them, each with its verdict."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical.networks.bodies import Body

SHAPE = (1, 4, 4)
WIDTH = 6
TOKENS = 8


class Case(NamedTuple):
    """A body, and what becomes of it: a part of the refusal, or the engine that "auto" ends with.

    ``leaks``: by ghost clipping, which its types would choose, one image moves the clipped sum by more than
    the clip.
    """

    name: str
    make: Callable[[], nn.Module]
    refused: str = ""
    kind: str = ""
    leaks: bool = False


def layer(name: str, forward: Callable[[Any, Tensor], Any], **attributes: Any) -> nn.Module:
    """A module of a new type, with what it keeps."""
    made = type(name, (nn.Module,), {"forward": forward})()
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def around(*inner: nn.Module) -> Body:
    """Linear layers before and after: ``inner`` is the third module, "2"."""
    return Body(nn.Flatten(), nn.Linear(16, WIDTH), *inner, nn.Linear(WIDTH, WIDTH), features=WIDTH)


def whole(name: str, forward: Callable[[Any, Tensor], Any], **attributes: Any) -> nn.Module:
    return layer(name, forward, features=WIDTH, **attributes)


def images_of(*layers: nn.Module) -> Body:
    """Layers on images, and then the mean over pixels of six channels."""
    return Body(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), features=WIDTH)


# ---- samples meet


class Tokens(nn.Module):
    """Each pixel names a token; their embeddings are pooled with weights."""

    features = WIDTH

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH, **options)
        self.last = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        found = self.embed(ids(x))
        weights = 0.9 ** torch.arange(found.shape[1]).to(found)
        return self.last((found * weights[:, None]).sum(1))


def ids(x: Tensor) -> Tensor:
    """Tokens of images that lie in [-1, 1]."""
    return ((x.flatten(1) + 1) / 2 * TOKENS).long().clamp(0, TOKENS - 1)


def quantised(_: nn.Module, h: Tensor) -> Tensor:
    step = h.detach().abs().max() / 3
    return h + ((h / step).round() * step - h).detach()


def no_grad_statistics(_: nn.Module, h: Tensor) -> Tensor:
    with torch.no_grad():
        mean, spread = h.mean(0), h.std(0, correction=0) + 1e-5
    return (h - mean) / spread


def ranked(_: nn.Module, h: Tensor) -> Tensor:
    return h * h.detach().argsort(0).argsort(0)


class _Averaged(torch.autograd.Function):
    """The same values, and gradients less their mean over the batch."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> Tensor:
        return slopes[0] - slopes[0].mean(0)


class SharedActivation(nn.Module):
    """One activation, before and after samples meet."""

    features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act = nn.Linear(16, WIDTH), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x.flatten(1)))
        return self.act(h - h.mean(0))


class HiddenNorm(nn.Module):
    """Batch normalisation in a list, where `modules` does not find it."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.BatchNorm1d(WIDTH)]

    def forward(self, h: Tensor) -> Tensor:
        # of no registered dtype
        return self.hidden[0](h.float()).to(h.dtype)


def meeting() -> list[Case]:
    m = "from {} at '2' on".format
    return [
        Case(
            "detached mean",
            lambda: around(layer("Centre", lambda _, h: h - h.detach().mean(0))),
            m("Centre"),
            leaks=True,
        ),
        Case(
            "statistics under no_grad",
            lambda: around(layer("Norm", no_grad_statistics)),
            m("Norm"),
            leaks=True,
        ),
        Case("fake quantisation", lambda: around(layer("Quantised", quantised)), m("Quantised"), leaks=True),
        Case("ranks", lambda: around(layer("Ranked", ranked)), m("Ranked")),
        Case("mean", lambda: around(layer("Centre", lambda _, h: h - h.mean(0))), m("Centre"), leaks=True),
        Case(
            "median", lambda: around(layer("Median", lambda _, h: h - h.detach().median(0)[0])), m("Median")
        ),
        Case("softmax over the batch", lambda: around(nn.Softmax(0)), m("Softmax")),
        Case(
            "roll",
            lambda: around(layer("Mixed", lambda _, h: h + 0.1 * h.detach().roll(1, 0))),
            m("Mixed"),
            leaks=True,
        ),
        Case(
            "sum of those before",
            lambda: around(layer("Sums", lambda _, h: h.cumsum(0))),
            m("Sums"),
            leaks=True,
        ),
        Case(
            "largest of all",
            lambda: around(layer("Scaled", lambda _, h: h / h.detach().abs().max())),
            m("Scaled"),
            leaks=True,
        ),
        Case(
            "attention over the batch",
            lambda: around(
                layer(
                    "Attend",
                    lambda _, h: functional.scaled_dot_product_attention(h[None], h[None], h[None])[0],
                )
            ),
            m("Attend"),
            leaks=True,
        ),
        Case(
            "functional batch norm",
            lambda: around(layer("Norm", lambda _, h: functional.batch_norm(h, None, None, training=True))),
            "Norm at '2'|any number|batch of",
            leaks=True,
        ),
        Case(
            "gradients alone",
            lambda: around(layer("Through", lambda _, h: h + (h.mean(0) - h.mean(0).detach()))),
            m("Through"),
        ),
        Case(
            "an own backward pass",
            lambda: around(layer("Averaged", lambda _, h: _Averaged.apply(h))),
            m("Averaged"),
            leaks=True,
        ),
        Case(
            "in evaluation alone",
            lambda: around(layer("Late", lambda self, h: h if self.training else h - h.mean(0))),
            m("Late"),
        ),
        Case(
            "among many alone",
            lambda: around(layer("Many", lambda _, h: h - h.detach().mean(0) if len(h) > 4 else h)),
            m("Many"),
            leaks=True,
        ),
        Case(
            "as many images as features",
            lambda: around(
                layer("Square", lambda _, h: h - h.detach().mean(0) if len(h) == h.shape[1] else h)
            ),
            m("Square"),
        ),
        Case(
            "a gate that is shut",
            lambda: around(
                layer("Gate", lambda self, h: h + self.gate * h.mean(0), gate=nn.Parameter(torch.zeros(())))
            ),
            m("Gate"),
        ),
        Case("one activation used twice", SharedActivation, "from ReLU at 'act' on", leaks=True),
        Case("a hidden norm", lambda: around(HiddenNorm()), "HiddenNorm at '2'", leaks=True),
        Case(
            "squeezed",
            lambda: whole(
                "Squeezed", lambda self, x: self.layer(x.flatten(1)).squeeze(), layer=nn.Linear(16, WIDTH)
            ),
            r"got the shape \(6,\) for 1 images",
        ),
        Case(
            "frequencies", lambda: Tokens(scale_grad_by_freq=True), "Embedding at 'embed' with scale_grad_by_"
        ),
    ]


# ---- something is remembered


def averaged(self: Any, h: Tensor) -> Tensor:
    if self.training:
        self.mean = 0.9 * self.mean + 0.1 * h.detach().mean(0)
    return h - self.mean


def largest(self: Any, h: Tensor) -> Tensor:
    self.most = max(self.most, float(h.detach().abs().max()))
    return h


def listed(self: Any, h: Tensor) -> Tensor:
    self.seen.append(h.detach())
    return h


def summed(self: Any, h: Tensor) -> Tensor:
    self.total += h.detach().sum()
    return h


def moved(self: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        self.weight += h.mean()
    return h * self.weight


def remembering(_: nn.Module, h: Tensor, seen: list[Tensor]) -> Tensor:
    seen[:] = [h.detach().mean(0), *seen[:1]]
    return h + seen[-1]


def buffered() -> nn.Module:
    made = layer("Sum", summed)
    made.register_buffer("total", torch.zeros(()))
    return made


def coin(_: nn.Module, h: Tensor) -> Tensor:
    return h if random.random() < 0.8 else 0 * h


def kept() -> list[Case]:
    return [
        Case(
            "mean in an attribute",
            lambda: around(layer("Mean", averaged, mean=torch.zeros(()))),
            "attribute 'mean' of Mean at '2'",
        ),
        Case(
            "largest in an attribute",
            lambda: around(layer("Most", largest, most=0.0)),
            "'most' of Most at '2'",
        ),
        Case("images in a list", lambda: around(layer("List", listed, seen=[])), "'seen' of List at '2'"),
        Case("sum in a buffer", lambda: around(buffered()), "buffer '2.total'"),
        Case(
            "a parameter that passes move",
            lambda: around(layer("Move", moved, weight=nn.Parameter(torch.ones(())))),
            "buffer '2.weight'",
        ),
        Case(
            "a list outside",
            lambda: around(layer("Outside", lambda self, h, seen=[]: remembering(self, h, seen))),
            "two passes differ, from Outside at '2' on",
            leaks=True,
        ),
        Case(
            "functional dropout",
            lambda: around(layer("Drop", lambda self, h: functional.dropout(h, 0.2, self.training))),
            "two passes differ, from Drop at '2' on",
        ),
        Case(
            "functional stochastic depth",
            lambda: around(layer("Depth", lambda _, h: h * (torch.rand(len(h), 1) < 0.95))),
            "two passes differ, from Depth at '2' on",
        ),
        Case("a coin of Python's", lambda: around(layer("Coin", coin)), "from Coin at '2' on"),
        Case(
            "spectral normalisation by hooks",
            lambda: around(nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH))),
            "buffer|trainable layers with buffers",
        ),
    ]
