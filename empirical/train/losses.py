"""Per-sample losses and their slopes in the network's output."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from langevin.model.losses import LOSSES
from langevin.support import validate


class Loss(Protocol):
    """A loss of outputs ``(n, outputs)`` and targets ``(n,)``."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses, shape (n,)."""
        ...

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Derivatives in the outputs, shape (n, outputs)."""
        ...

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Tell whether each prediction is correct, shape (n,)."""
        ...


class CrossEntropy:
    """Cross-entropy of classes numbered from 0, one output each."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, targets, reduction="none")

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        slopes = torch.softmax(outputs, 1)
        slopes[torch.arange(len(targets), device=targets.device), targets] -= 1
        return slopes

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.argmax(1) == targets


class Scalar:
    """A loss of `langevin.model.losses` of one output.

    Raises
    ------
    ValueError
        If the loss has no form for tensors, or compares K outputs with classes.
    """

    def __init__(self, name: str) -> None:
        one_output = [n for n, loss in LOSSES.items() if loss.tensor_value is not None and not loss.classes]
        validate.choice("loss", name, one_output)
        self._loss = LOSSES[name]

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self._loss.tensor_value is not None
        return self._loss.tensor_value(outputs[:, 0], targets)

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        assert self._loss.tensor_residual is not None
        return self._loss.tensor_residual(outputs[:, 0], targets)[:, None]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets * outputs[:, 0] > 0
