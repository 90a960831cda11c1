"""Poisson batches of a device, in PyTorch; `langevin.engine.gpu.fused_batches` has kernels for them.

They are those of `langevin.engine.kernels.outputs.batches`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from langevin.engine.gpu.passes import philox
from langevin.engine.kernels.normals import BATCH_STREAM

if TYPE_CHECKING:
    from langevin.engine.gpu.outputs import OutputsEnsemble

# words that are drawn at once
_WORDS = 2**22


def _members(e: OutputsEnsemble, first: int, steps: int) -> torch.Tensor:
    """Whether rows are in the batches of ``steps`` steps, ``first`` from now on; shape (steps, paths, n)."""
    step, first_path, k0, k1 = e.clock.tolist()
    counter = torch.arange((e.samples + 3) // 4)
    step = (step + first + torch.arange(steps).view(-1, 1, 1)) & 0xFFFFFFFF
    path = first_path + torch.arange(len(e.theta)).view(-1, 1)
    words = torch.stack(philox(counter, step, path, BATCH_STREAM, k0, k1), 3).flatten(2)
    return (words < e.threshold)[:, :, e.order]


def largest_batches(e: OutputsEnsemble, steps: int) -> torch.Tensor:
    """Most rows that any path's batch has, in each of the coming steps."""
    count = max(1, _WORDS // (len(e.theta) * e.samples))
    starts = range(0, steps, count)
    parts = [_members(e, first, min(count, steps - first)).sum(2).amax(1) for first in starts]
    return torch.cat(parts)


def draw_rows(e: OutputsEnsemble, index: torch.Tensor) -> None:
    """Write the rows of the present step's batches, padded by ``n``; there must be room for them."""
    found = torch.where(_members(e, 0, 1)[0], torch.arange(e.samples), e.samples)
    index.copy_(found.sort(1).values[:, : index.shape[1]])


def draw_members(e: OutputsEnsemble, members: torch.Tensor) -> None:
    """Write which rows are in the present step's batches."""
    members.copy_(_members(e, 0, 1)[0])
