"""Bodies in which samples meet, that remember them, or that engines get wrong; and harmless ones like them."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import MethodType
from typing import Any, NamedTuple

import torch
from opacus.layers import DPLSTM, DPMultiheadAttention
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from empirical.backbones import Body

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
            m("Centre"), leaks=True),
        Case("statistics under no_grad", lambda: around(layer("Norm", no_grad_statistics)), m("Norm"), leaks=True),
        Case("fake quantisation", lambda: around(layer("Quantised", quantised)), m("Quantised"), leaks=True),
        Case("ranks", lambda: around(layer("Ranked", ranked)), m("Ranked")),
        Case("mean", lambda: around(layer("Centre", lambda _, h: h - h.mean(0))), m("Centre"), leaks=True),
        Case(
            "median", lambda: around(layer("Median", lambda _, h: h - h.detach().median(0)[0])), m("Median")
        ),
        Case("softmax over the batch", lambda: around(nn.Softmax(0)), m("Softmax")),
        Case("roll", lambda: around(layer("Mixed", lambda _, h: h + 0.1 * h.detach().roll(1, 0))), m("Mixed"), leaks=True),
        Case("sum of those before", lambda: around(layer("Sums", lambda _, h: h.cumsum(0))), m("Sums"), leaks=True),
        Case(
            "largest of all",
            lambda: around(layer("Scaled", lambda _, h: h / h.detach().abs().max())),
            m("Scaled"), leaks=True),
        Case(
            "attention over the batch",
            lambda: around(
                layer("Attend", lambda _, h: functional.scaled_dot_product_attention(h[None], h[None], h[None])[0])
            ),
            m("Attend"), leaks=True),
        Case(
            "functional batch norm",
            lambda: around(layer("Norm", lambda _, h: functional.batch_norm(h, None, None, training=True))),
            "Norm at '2'|any number|batch of", leaks=True),
        Case(
            "gradients alone",
            lambda: around(layer("Through", lambda _, h: h + (h.mean(0) - h.mean(0).detach()))),
            m("Through"),
        ),
        Case(
            "an own backward pass",
            lambda: around(layer("Averaged", lambda _, h: _Averaged.apply(h))),
            m("Averaged"), leaks=True),
        Case(
            "in evaluation alone",
            lambda: around(layer("Late", lambda self, h: h if self.training else h - h.mean(0))),
            m("Late"),
        ),
        Case(
            "among many alone",
            lambda: around(layer("Many", lambda _, h: h - h.detach().mean(0) if len(h) > 4 else h)),
            m("Many"), leaks=True),
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
        Case("frequencies", lambda: Tokens(scale_grad_by_freq=True), "Embedding at 'embed' with scale_grad_by_"),
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
            "largest in an attribute", lambda: around(layer("Most", largest, most=0.0)), "'most' of Most at '2'"
        ),
        Case(
            "images in a list", lambda: around(layer("List", listed, seen=[])), "'seen' of List at '2'"
        ),
        Case("sum in a buffer", lambda: around(buffered()), "buffer '2.total'"),
        Case(
            "a parameter that passes move",
            lambda: around(layer("Move", moved, weight=nn.Parameter(torch.ones(())))),
            "buffer '2.weight'",
        ),
        Case(
            "a list outside",
            lambda: around(layer("Outside", lambda self, h, seen=[]: remembering(self, h, seen))),  # noqa: B006
            "two passes differ, from Outside at '2' on", leaks=True),
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


# ---- engines are wrong


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


class Positions(nn.Module):
    """Embeddings of positions, which are the same for every image."""

    features = WIDTH

    def __init__(self, batched: bool) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Linear(4, WIDTH), nn.Embedding(4, WIDTH)
        self.ids = torch.arange(4)[None] if batched else torch.arange(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.tokens(x[:, 0]) + self.positions(self.ids)).mean(1)


class Across(nn.Module):
    """A layer whose first axis is that of tokens."""

    features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.layer(x[:, 0].transpose(0, 1)).transpose(0, 1)).sum(1)


class Transposed(nn.Module):
    """One weight in a layer and, transposed, in a function."""

    features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.enc, self.last = nn.Linear(16, WIDTH), nn.Linear(16, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enc(x.flatten(1)))
        return self.last(functional.linear(h, self.enc.weight.T))


class Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        return input + super().forward(input)


class TanhBody(Body):
    def forward(self, input: Tensor) -> Tensor:
        return torch.tanh(super().forward(input))


class Skipping(nn.Module):
    """Named as a classifier is, and more than one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.head(functional.relu(self.body(h)))


def overridden() -> Body:
    """With another forward, which a copy takes along."""
    made = around(nn.ReLU())
    made.forward = MethodType(lambda self, input: 2 * type(self).forward(self, input), made)  # type: ignore[method-assign]
    return made


def captured() -> Body:
    """With another forward, which calls the layers that it was made of, not those of a copy."""
    made = around(nn.ReLU())
    forward = made.forward
    made.forward = lambda input: 2 * forward(input)  # type: ignore[method-assign]
    return made


def hooked() -> Body:
    made = around(nn.ReLU())
    made[1].register_forward_hook(lambda _, __, output: 3 * torch.tanh(output))
    return made


def prehooked() -> Body:
    made = around(nn.ReLU())
    made[3].register_forward_pre_hook(lambda _, inputs: (torch.tanh(3 * inputs[0]),))
    return made


def behind() -> Body:
    made = around(nn.ReLU())
    made[3].register_full_backward_hook(lambda _, slopes, __: (2 * slopes[0],))
    return made


def repeated() -> Body:
    inner = nn.Linear(WIDTH, WIDTH)
    return around(layer("Twice", lambda self, h: self.inner(torch.tanh(self.inner(h))), inner=inner))


def by_engine() -> list[Case]:
    tokens = nn.Unflatten(1, (2, 3))
    return [
        Case("one weight in two places", Transposed, kind="loop", leaks=True),
        Case("a hook that changes an output", hooked, kind="functorch", leaks=True),
        Case("a hook that changes an input", prehooked, kind="ghost"),
        Case("a hook that changes gradients", behind, kind="ghost"),
        Case(
            "a Sequential with a shortcut",
            lambda: around(Residual(nn.Linear(WIDTH, WIDTH), nn.ReLU())),
            kind="ghost",
        ),
        Case(
            "a Body with more", lambda: TanhBody(nn.Flatten(), nn.Linear(16, WIDTH), features=WIDTH), kind="ghost"
        ),
        Case("a body and a head with a shortcut", lambda: around(Skipping()), kind="ghost"),
        Case("a forward of the instance", overridden, kind="ghost"),
        Case("a forward of the layers before", captured, "Linear at '1' passed over"),
        Case("a layer called twice", repeated, kind="hooks"),
        Case("padding", lambda: Tokens(padding_idx=0), kind="functorch"),
        Case("tokens", Tokens, kind="ghost"),
        Case("ids of one row", lambda: Positions(batched=True), kind="loop"),
        Case("ids without rows", lambda: Positions(batched=False), kind="loop"),
        Case("tokens first", Across, kind="loop"),
        Case(
            "a linear layer on four axes",
            lambda: Body(
                nn.Conv2d(1, 3, 3),
                layer("Last", lambda _, h: h.permute(0, 2, 3, 1)),
                nn.Linear(3, WIDTH),
                layer("Pooled", lambda _, h: torch.tanh(h).mean((1, 2))),
                features=WIDTH,
            ),
            kind="ghost",
        ),
        Case("a norm without offset", lambda: around(nn.LayerNorm(WIDTH, bias=False)), kind="functorch"),
        Case(
            "arguments by name",
            lambda: whole(
                "Named", lambda self, x: self.layer(input=x.flatten(1)), layer=nn.Linear(16, WIDTH)
            ),
            kind="loop",
        ),
        Case(
            "two inputs",
            lambda: around(
                layer("Pair", lambda self, h: self.both(h, torch.tanh(h)), both=nn.Bilinear(WIDTH, WIDTH, WIDTH))
            ),
            kind="loop",
        ),
        Case(
            "padding to the same size",
            lambda: images_of(nn.Conv2d(1, WIDTH, 2, padding="same"), nn.Tanh()),
            kind="ghost",
        ),
        Case(
            "checkpointing",
            lambda: around(
                layer(
                    "Checkpointed",
                    lambda self, h: checkpoint(self.inner, h, use_reentrant=False),
                    inner=nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()),
                )
            ),
            kind="loop",
        ),
        Case(
            "tokens of one layer",
            lambda: around(tokens, nn.Linear(3, 3), nn.Tanh(), nn.Flatten()),
            kind="ghost",
        ),
        Case(
            "one row for all",
            lambda: around(layer("Wide", lambda self, h: h + self.inner(h.new_ones(1, 2)), inner=nn.Linear(2, WIDTH))),
            kind="loop",
        ),
    ]


# ---- harmless


class Reused(nn.Module):
    """One activation used twice, as in torchvision's blocks."""

    features = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.act = nn.Linear(16, WIDTH), nn.Linear(WIDTH, WIDTH), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.first(x.flatten(1)))
        return self.act(h + self.second(h))


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, weight, self.bias)


def cached(self: Any, h: Tensor) -> Tensor:
    if self.mask is None:
        self.mask = torch.ones(h.shape[1]).to(h)
    self.passes += 1
    return h * self.mask


def harmless() -> list[Case]:
    return [
        Case("a chain", lambda: around(nn.ReLU(), nn.Identity()), kind="closed"),
        Case("a chain of chains", lambda: around(nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH))), kind="closed"),
        Case("an activation used twice", Reused, kind="ghost"),
        Case("standardised weights", lambda: images_of(Standardised(1, WIDTH, 3), nn.Tanh()), kind="ghost"),
        Case(
            "what shapes alone decide",
            lambda: around(layer("Cached", cached, mask=None, passes=0)),
            kind="ghost",
        ),
        Case("single precision inside", lambda: around(layer("Single", lambda _, h: h.float())), kind="ghost"),
        Case(
            "groups and dilation",
            lambda: images_of(nn.Conv2d(1, 4, 1), nn.Conv2d(4, WIDTH, 2, groups=2, dilation=2), nn.Tanh()),
            kind="ghost",
        ),
        Case("a transposed convolution", lambda: images_of(nn.ConvTranspose2d(1, WIDTH, 2)), kind="ghost"),
        Case(
            "norms",
            lambda: images_of(
                nn.Conv2d(1, WIDTH, 2), nn.GroupNorm(2, WIDTH), nn.GroupNorm(3, WIDTH, affine=False), nn.Tanh()
            ),
            kind="ghost",
        ),
        Case(
            "channels last",
            lambda: images_of(
                nn.Conv2d(1, 4, 2),
                layer("Last", lambda _, h: h.contiguous(memory_format=torch.channels_last)),
                nn.Conv2d(4, WIDTH, 2),
                nn.Tanh(),
            ),
            kind="ghost",
        ),
        Case(
            "a tensor without strides",
            lambda: around(
                layer("Wide", lambda _, h: h[:, None].expand(-1, 3, -1)),
                nn.Linear(WIDTH, WIDTH),
                nn.Tanh(),
                layer("Mean", lambda _, h: h.mean(1)),
            ),
            kind="ghost",
        ),
        Case(
            "attention within an image",
            lambda: around(
                layer(
                    "Attend",
                    lambda self, h: self.own(*[h.view(-1, 3, 2)] * 3)[0].flatten(1),
                    own=DPMultiheadAttention(2, 1, batch_first=True),
                )
            ),
            kind="ghost",
        ),
        Case(
            "a recurrent layer of Opacus",
            lambda: around(
                layer(
                    "Recurrent",
                    lambda self, h: self.own(h.view(-1, 3, 2))[0].flatten(1),
                    own=DPLSTM(2, 2, batch_first=True),
                )
            ),
            kind="ghost",
        ),
    ]


def all_cases() -> list[Case]:
    return [*meeting(), *kept(), *by_engine(), *harmless()]
