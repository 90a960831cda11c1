"""What an engine of gradients does, and the simplest ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn

from empirical.networks.subsets import Mask
from empirical.train.losses import Loss
from langevin.model.schedule import Clipping
from langevin.support import validate


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


def factors(norms: Tensor, clip: float, clipping: Clipping, stabiliser: float) -> Tensor:
    """Return clipping factors, shape (n,): each scaled gradient has norm at most ``clip``.

    Examples
    --------
    >>> factors(torch.tensor([0.0, 0.5, 4.0]), 1.0, "flat", 0.01).tolist()
    [1.0, 1.0, 0.25]
    """
    validate.choice("clipping", clipping, ("flat", "normalised"))
    if clipping == "flat":
        return (clip / norms).clamp(max=1)
    return clip / (norms + stabiliser)


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


# entries whose squares are summed in single precision; the sums of blocks are added in double
_BLOCK = 1024


def row_norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each ``rows[i]``, summed in blocks so that long rows lose no accuracy.

    Examples
    --------
    >>> row_norms(torch.ones(2, 3, 2048)).tolist()
    [78.38367176906169, 78.38367176906169]
    """
    flat = rows.flatten(1)
    whole = flat.shape[1] // _BLOCK * _BLOCK
    blocks = flat[:, :whole].unflatten(1, (whole // _BLOCK, _BLOCK)).norm(dim=2)
    rest = flat[:, whole:].norm(dim=1, keepdim=True)
    return torch.cat([blocks, rest], 1).double().norm(dim=1)


def joined(norms: Iterable[Tensor], dtype: torch.dtype) -> Tensor:
    """Norms over all parameters, from those over each."""
    return torch.stack(list(norms)).norm(dim=0).to(dtype)
