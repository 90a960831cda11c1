"""Which parameters of a classifier train: head, all, low-rank adapters, biases, a sparse subset."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from empirical.recipe import Selection, Subset

Mask = dict[nn.Parameter, Tensor]


class Adapter(nn.Module):
    """A layer plus a trainable low-rank part: ``base(x) + up(down(x))`` [1]_.

    ``up`` starts at 0, so that the network starts unchanged. Both parts are layers, not raw parameters, so
    that every gradient engine supports them. Other attributes, such as ``weight``, are those of the base.

    Parameters
    ----------
    base : nn.Linear or nn.Conv2d
        Frozen by `train_only`. A convolution must have one group and zero padding.
    rank : int
    seed : int
        Seed of the initial values of ``down``.

    References
    ----------
    .. [1] Hu et al., "LoRA: low-rank adaptation of large language models", arXiv:2106.09685.
    """

    def __init__(self, base: nn.Linear | nn.Conv2d, rank: int, seed: int) -> None:
        super().__init__()
        self.base = base
        like: dict[str, Any] = dict(device=base.weight.device, dtype=base.weight.dtype)
        if isinstance(base, nn.Linear):
            rank = min(rank, base.in_features, base.out_features)
            self.down: nn.Module = skip_init(nn.Linear, base.in_features, rank, bias=False, **like)
            self.up: nn.Module = skip_init(nn.Linear, rank, base.out_features, bias=False, **like)
        else:
            rank = min(rank, base.in_channels * base.weight[0, 0].numel(), base.out_channels)
            how: dict[str, Any] = dict(stride=base.stride, padding=base.padding, dilation=base.dilation)
            size: Any = base.kernel_size
            self.down = skip_init(nn.Conv2d, base.in_channels, rank, size, bias=False, **how, **like)
            self.up = skip_init(nn.Conv2d, rank, base.out_channels, 1, bias=False, **like)
        random = torch.Generator().manual_seed(seed)
        down, up = _weight(self.down), _weight(self.up)
        with torch.no_grad():
            scale = down[0].numel() ** -0.5
            down.copy_(scale * torch.randn(down.shape, generator=random))
            up.zero_()

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            # what bodies read of a layer, such as `weight.dtype`; its parameters stay those of `base` alone
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("_"):
                raise
            return getattr(base, name)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def _weight(layer: nn.Module) -> nn.Parameter:
    weight = layer.weight
    assert isinstance(weight, nn.Parameter)
    return weight


def adapt(body: nn.Module, rank: int, seed: int) -> nn.Module:
    """Replace each linear layer and plain convolution of ``body`` by an `Adapter`.

    Returns
    -------
    nn.Module
        ``body``, changed, or the adapter of a body that is a single layer.

    Raises
    ------
    ValueError
        If there is no such layer.
    """
    places = [
        (parent, name, child)
        for parent in body.modules()
        # attention reads the weights of its output layer itself
        if not isinstance(parent, nn.MultiheadAttention)
        for name, child in parent.named_children()
        if _adaptable(child)
    ]
    for number, (parent, name, child) in enumerate(places):
        setattr(parent, name, Adapter(child, rank, seed + number))
    if not places:
        raise ValueError(
            f"method 'lora' cannot adapt a body of {type(body).__name__}, which has no linear layer or plain "
            "convolution: use 'bitfit' or 'sparse'"
        )
    return body


def _adaptable(layer: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    return type(layer) is nn.Linear or (
        type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    )


def train_only(model: nn.Module, head: nn.Module, subset: Subset, trainable: Iterable[nn.Parameter]) -> None:
    """Select the trained parameters of ``model``.

    Parameters
    ----------
    model : nn.Module
        All of it, with its adapters where ``subset`` is "lora".
    head : nn.Module
        Trains always.
    subset : {"head", "all", "lora", "bias", "sparse"}
    trainable : iterable of nn.Parameter
        Parameters that may train at all; others, such as raw parameters, stay frozen.

    Raises
    ------
    ValueError
        If nothing of the body would train, and ``subset`` is not "head".
    """
    may = set(trainable)
    own = set(head.parameters())
    adapters = {
        p
        for module in model.modules()
        if isinstance(module, Adapter)
        for part in (module.down, module.up)
        for p in part.parameters()
    }
    found = False
    for name, p in model.named_parameters():
        chosen = {
            "head": False,
            "all": p in may,
            "sparse": p in may,
            "lora": p in adapters,
            "bias": p in may and name.rpartition(".")[2] == "bias",
        }[subset]
        found |= chosen and p not in own
        p.requires_grad_(chosen or p in own)
    if subset != "head" and not found:
        remedy = "give the body biases, or use 'lora'" if subset == "bias" else "use 'lp'"
        raise ValueError(f"the body has no parameter that the subset {subset!r} could train: {remedy}")


def scores(selection: Selection, body: list[nn.Parameter], gradient: list[Tensor] | None) -> list[Tensor]:
    """Return the score of each entry of the body for training, in the order of ``body``.

    Parameters
    ----------
    selection : {"gradient", "magnitude", "last"}
    body : list of nn.Parameter
    gradient : list of Tensor or None
        Noisy, clipped and summed over a batch: what has been released, for "gradient" alone.
    """
    if selection == "gradient":
        assert gradient is not None
        return [g.abs() for g in gradient]
    if selection == "magnitude":
        return [p.detach().abs() for p in body]
    return [torch.full_like(p, place) for place, p in enumerate(body)]


def largest(scored: list[Tensor], density: float) -> list[Tensor]:
    """Masks of the largest scores: ``ceil(density * all)`` ones, zeros otherwise; the last ones of equals.

    Examples
    --------
    >>> [m.tolist() for m in largest([torch.tensor([1.0, 5.0]), torch.tensor([3.0, 2.0])], 0.5)]
    [[0.0, 1.0], [1.0, 0.0]]
    """
    flat = torch.cat([s.reshape(-1) for s in scored])
    kept = min(len(flat), -int(-density * len(flat) // 1))
    order = torch.argsort(flat, stable=True)
    mask = torch.zeros_like(flat)
    mask[order[len(flat) - kept :]] = 1
    return [m.view_as(s) for m, s in zip(mask.split([s.numel() for s in scored]), scored, strict=True)]
