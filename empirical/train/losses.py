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
