"""Passes of a step with K outputs, and Poisson batches, in PyTorch; `fused_outputs` has kernels for both."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from langevin.engine.gpu.passes import CLIP, STABILISER, STEP, mark, philox
from langevin.engine.kernels.normals import BATCH_STREAM
from langevin.engine.kernels.outputs.types import COLUMN, MARGIN
from langevin.engine.kernels.types import FLAT, LP, NORMALISED, UNCLIPPED

if TYPE_CHECKING:
    from langevin.engine.gpu.outputs import Block, OutputsEnsemble

# words of batches that are drawn at once
_WORDS = 2**22


# --- products with the head --------------------------------------------------------------------------


def outputs(V: torch.Tensor, A: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """``A V^T``, shape (paths, b, K), of heads ``V (paths, K, h)`` and features ``A ([paths,] b, h)``.

    Where paths share the features, a product covers all paths, and there is one for each output.
    """
    if A.dim() == 2:
        each = None if out is None else out.permute(2, 0, 1)
        return torch.bmm(V.transpose(0, 1), A.mT.expand(V.shape[1], -1, -1), out=each).permute(1, 2, 0)
    return torch.bmm(A, V.mT, out=out)


def add_head_gradient(V: torch.Tensor, R: torch.Tensor, A: torch.Tensor, alpha: float) -> None:
    """``V += alpha R^T A``, features as in `outputs`."""
    if A.dim() == 2:
        V.transpose(0, 1).baddbmm_(R.permute(2, 0, 1), A.expand(V.shape[1], -1, -1), alpha=alpha)
    else:
        V.baddbmm_(R.mT, A, alpha=alpha)


# --- passes ------------------------------------------------------------------------------------------


def rows(e: OutputsEnsemble, block: Block) -> None:
    """Compute residuals times clip factors from ``Z``; report outputs of the batch that are not finite."""
    rule, index, n = e.rule, block.index, e.samples
    everything: Any = slice(n) if index is None else index
    there = block.members if index is None else index < n
    pulled = norms = None
    if rule.method == LP:
        block.A, feature = _frozen_rows(e, index)
    else:
        block.A, norms = e.activation.tensor_value(block.Z), e.squared_norms[everything]
        feature = block.A.square().sum(2)
    F, Y = outputs(e.V, block.A), e.Y[everything]
    R = _clipped_alone(e, e.loss.tensor_residual(F, Y), Y, feature)
    if rule.method != LP:
        block.D = torch.bmm(R, e.V) * e.activation.tensor_slope(block.Z)
        pulled = block.D.square().sum(2)
    factor = _factors(e, R, feature, pulled, norms)
    if there is not None:
        # not a product: what is not there may be infinite
        R, factor = R.masked_fill(~there.unsqueeze(2), 0), factor.masked_fill(~there, 0)
    block.R.copy_(R * factor.unsqueeze(2))
    if block.D is not None:
        block.D *= factor.unsqueeze(2)
    check = F.double().square().sum(2)
    if rule.clipping != UNCLIPPED:
        check = check + feature if pulled is None else check + feature + pulled
    mark(e, torch.isfinite(check if there is None else check.masked_fill(~there, 0)).all(1))


def columns(e: OutputsEnsemble, block: Block, store: bool) -> None:
    """Take and count the step of the head; with ``store``, leave ``(R V) phi'`` in ``D``."""
    assert block.A is not None
    add_head_gradient(e.V, block.R, block.A, -e.length())
    e.clock[STEP] += 1


def _frozen_rows(e: OutputsEnsemble, index: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of a block and their squared norms; they have a dimension of paths unless these share them."""
    features, norms = e.features, e.feature_norms
    assert features is not None
    assert norms is not None
    if index is None:
        return features[..., : e.samples, :], norms[..., : e.samples]
    if features.dim() == 2:
        return features[index], norms[index]
    path = torch.arange(len(index), device=index.device).unsqueeze(1)
    return features[path, index], norms[path, index]


def _clipped_alone(
    e: OutputsEnsemble, R: torch.Tensor, Y: torch.Tensor, feature: torch.Tensor
) -> torch.Tensor:
    """Residuals after the clips that linear probing alone has."""
    clip = e.numbers[CLIP]
    if e.rule.clipping == MARGIN:
        g = -(R * Y).sum(2) * (2 * feature).sqrt()
        return R * torch.where(g > clip, clip / g, 1.0).unsqueeze(2)
    if e.rule.clipping == COLUMN:
        g, limit = R.abs() * feature.sqrt().unsqueeze(-1), clip / math.sqrt(R.shape[2])
        return R * torch.where(g > limit, limit / g, 1.0)
    return R


def _factors(
    e: OutputsEnsemble,
    R: torch.Tensor,
    feature: torch.Tensor,
    pulled: torch.Tensor | None,
    norms: torch.Tensor | None,
) -> torch.Tensor:
    """Clip factors from the squared norms of gradients, shape (paths, b)."""
    squared = R.square().sum(2) * feature
    if pulled is not None:
        squared = squared + norms * pulled
    clip, g = e.numbers[CLIP], squared.sqrt()
    if e.rule.clipping == FLAT:
        return torch.where(g > clip, clip / g, 1.0)
    if e.rule.clipping == NORMALISED:
        return clip / (g + e.numbers[STABILISER])
    return torch.ones_like(g)


# --- batches -----------------------------------------------------------------------------------------


def _members(e: OutputsEnsemble, first: int, steps: int) -> torch.Tensor:
    """Whether rows are in the batches of ``steps`` steps, ``first`` from now on; shape (steps, paths, n).

    As `langevin.engine.kernels.outputs.batches.draw_batch` decides.
    """
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
