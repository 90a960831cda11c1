"""Features of images."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from langevin.support import validate

Features = NDArray[np.float32]


def embed(
    body: nn.Module,
    images: NDArray[np.float32] | torch.Tensor,
    *,
    batch: int = 1024,
    device: str | torch.device | None = None,
) -> Features:
    """Features of images, in evaluation mode and without gradients.

    Parameters
    ----------
    body : nn.Module
        Its modules are left in the modes that they were in.
    images : ndarray or Tensor of float32, shape (n, channels, height, width)
        Normalised as in the body's training.
    batch : int
        Images at once.
    device : str or torch.device, optional
        Where the body is; by default where its first parameter is.

    Returns
    -------
    ndarray of float32, shape (n, features)

    Examples
    --------
    >>> embed(nn.Sequential(nn.Flatten(), nn.ReLU()), -np.ones((3, 1, 2, 2), np.float32)).max()
    np.float32(0.0)
    """
    batch = validate.integer("batch", batch, 1)
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"images must have the shape (n, channels, height, width) with n >= 1, got {tuple(images.shape)}"
        )
    if device is None:
        parameter = next(body.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        with torch.no_grad():
            blocks = []
            for first in range(0, len(images), batch):
                block = images[first : first + batch]
                # torch warns of read-only arrays, which `tensor` copies
                block = block if isinstance(block, torch.Tensor) else torch.tensor(block)
                blocks.append(body(block.to(device)).float().cpu())
            return torch.cat(blocks).numpy()
    finally:
        for module, mode in modes.items():
            module.training = mode
