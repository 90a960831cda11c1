"""Bodies that engines get wrong, and harmless ones like them, each with its verdict."""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from opacus.layers import DPLSTM, DPMultiheadAttention
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from empirical.networks.bodies import Body
from tests.empirical.train.hostile import WIDTH, Case, Tokens, around, images_of, layer, whole

# ---- engines are wrong


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
            "a Body with more",
            lambda: TanhBody(nn.Flatten(), nn.Linear(16, WIDTH), features=WIDTH),
            kind="ghost",
        ),
        Case("a body and a head with a shortcut", lambda: around(Skipping()), kind="ghost"),
        Case("a forward of the instance", overridden, kind="ghost"),
        Case("a forward of the layers before", captured, "never calls Linear at '1'"),
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
                layer(
                    "Pair", lambda self, h: self.both(h, torch.tanh(h)), both=nn.Bilinear(WIDTH, WIDTH, WIDTH)
                )
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
            lambda: around(
                layer("Wide", lambda self, h: h + self.inner(h.new_ones(1, 2)), inner=nn.Linear(2, WIDTH))
            ),
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
        Case(
            "a chain of chains",
            lambda: around(nn.Sequential(nn.ReLU(), nn.Linear(WIDTH, WIDTH))),
            kind="closed",
        ),
        Case("an activation used twice", Reused, kind="ghost"),
        Case("standardised weights", lambda: images_of(Standardised(1, WIDTH, 3), nn.Tanh()), kind="ghost"),
        Case(
            "what shapes alone decide",
            lambda: around(layer("Cached", cached, mask=None, passes=0)),
            kind="ghost",
        ),
        Case(
            "single precision inside", lambda: around(layer("Single", lambda _, h: h.float())), kind="ghost"
        ),
        Case(
            "groups and dilation",
            lambda: images_of(nn.Conv2d(1, 4, 1), nn.Conv2d(4, WIDTH, 2, groups=2, dilation=2), nn.Tanh()),
            kind="ghost",
        ),
        Case("a transposed convolution", lambda: images_of(nn.ConvTranspose2d(1, WIDTH, 2)), kind="ghost"),
        Case(
            "norms",
            lambda: images_of(
                nn.Conv2d(1, WIDTH, 2),
                nn.GroupNorm(2, WIDTH),
                nn.GroupNorm(3, WIDTH, affine=False),
                nn.Tanh(),
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
