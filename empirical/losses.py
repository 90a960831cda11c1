"""Per-sample losses and their slopes in the network's output."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional


class Loss(Protocol):
    """A loss of outputs ``(n, outputs)`` and targets ``(n,)``."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Losses, shape (n,)."""
        ...

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Derivatives in the outputs, shape (n, outputs)."""
        ...

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Whether the prediction is right, shape (n,)."""
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


class Logistic:
    """``log(1 + exp(-y f))`` of one output, for labels -1 and +1."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return functional.softplus(-targets * outputs[:, 0])

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (-targets * torch.sigmoid(-targets * outputs[:, 0]))[:, None]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets * outputs[:, 0] > 0


class Square:
    """``(f - y)^2 / 2`` of one output."""

    def value(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs[:, 0] - targets) ** 2 / 2

    def slope(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs - targets[:, None]

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return targets * outputs[:, 0] > 0
