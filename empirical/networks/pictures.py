"""Images on a device, in as few bytes as they came in."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from empirical.data.images import normalised


class Pictures:
    """Images that a body sees as ``(x - mean) / std``: bytes stay bytes until they are taken.

    Parameters
    ----------
    images : ndarray, shape (n, channels, height, width)
        Floats or bytes, see `empirical.data.images.Part`.
    mean, std : ndarray, shape (channels,)
    device : torch.device

    Examples
    --------
    >>> pictures = Pictures(np.full((4, 1, 2, 2), 51, np.uint8), np.zeros(1), np.ones(1), torch.device("cpu"))
    >>> pictures[torch.tensor([0, 2])].shape, round(pictures[torch.tensor([1])].max().item(), 6)
    (torch.Size([2, 1, 2, 2]), 0.2)
    """

    def __init__(
        self,
        images: NDArray[Any],
        mean: NDArray[np.float64],
        std: NDArray[np.float64],
        device: torch.device,
    ) -> None:
        self._bytes = images.dtype == np.uint8
        kept = torch.tensor(images) if self._bytes else torch.from_numpy(normalised(images, mean, std))
        self._kept = kept.to(device)
        self._mean, self._std = (
            torch.tensor(x, dtype=torch.float32, device=device).view(-1, 1, 1) for x in (mean, std)
        )

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def shape(self) -> torch.Size:
        """Number of images, channels, height and width."""
        return self._kept.shape

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._kept.device

    def __getitem__(self, places: Tensor) -> Tensor:
        """The normalised images at some places."""
        return self._seen(self._kept[places])

    def split(self, at_once: int) -> Iterator[Tensor]:
        """All normalised images, ``at_once`` at a time."""
        return map(self._seen, self._kept.split(at_once))

    def _seen(self, images: Tensor) -> Tensor:
        if not self._bytes:
            return images
        # the operations of `normalised`, so that the numbers are the same
        return images.float().div_(255).sub_(self._mean).div_(self._std)
