"""Passes of a step with K outputs, in PyTorch; `langevin.engine.gpu.fused_outputs` has fused ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from langevin.engine.gpu.passes import CLIP, STABILISER, STEP, mark
from langevin.engine.kernels.outputs.types import COLUMN, MARGIN
from langevin.engine.kernels.types import FLAT, LP, NORMALISED, UNCLIPPED

if TYPE_CHECKING:
    from langevin.engine.gpu.outputs import Block, OutputsEnsemble

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
    if rule.method == LP:
        A, feature = _frozen_rows(e, index)
    else:
        if there is not None:
            # whatever a state that is not finite has made of the padding
            block.Z.masked_fill_(~there.unsqueeze(2), 0)
        A = e.activation.tensor_value(block.Z)
        feature = A.square().sum(2)
    F, Y = outputs(e.V, A), e.Y[everything]
    R = _clipped_alone(e, e.loss.tensor_residual(F, Y), Y, feature)
    squared, check = R.square().sum(2) * feature, F.double().square().sum(2)
    if rule.clipping != UNCLIPPED:
        check = check + feature
    if rule.method != LP:
        block.D = D = torch.bmm(R, e.V) * e.activation.tensor_slope(block.Z)
        pulled = D.square().sum(2)
        squared = squared + e.squared_norms[everything] * pulled
        if rule.clipping != UNCLIPPED:
            check = check + pulled
    factor = _factors(e, squared.sqrt())
    if there is not None:
        # not a product: what is not there may be infinite
        R, factor = R.masked_fill(~there.unsqueeze(2), 0), factor.masked_fill(~there, 0)
        check = check.masked_fill(~there, 0)
    block.A = A
    block.R.copy_(R * factor.unsqueeze(2))
    if block.D is not None:
        block.D *= factor.unsqueeze(2)
    mark(e, torch.isfinite(check).all(1))


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


def _factors(e: OutputsEnsemble, g: torch.Tensor) -> torch.Tensor:
    """Clip factors from the norms ``g`` of gradients."""
    clip = e.numbers[CLIP]
    if e.rule.clipping == FLAT:
        return torch.where(g > clip, clip / g, 1.0)
    if e.rule.clipping == NORMALISED:
        return clip / (g + e.numbers[STABILISER])
    return torch.ones_like(g)
