"""Elementwise passes of a step, in PyTorch; `langevin.engine.gpu.fused` has fused ones."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from langevin.engine.kernels.normals import LANES, STATE_STREAM, TILE
from langevin.engine.kernels.types import FLAT, LP, NORMALISED, Rule

if TYPE_CHECKING:
    from langevin.engine.gpu.ensemble import Ensemble
    from langevin.engine.gpu.scalar import ScalarEnsemble

CLIP, STABILISER, DT, NOISE = range(4)
STEP, FIRST_PATH, KEY = range(3)


def philox(
    counter: torch.Tensor, step: torch.Tensor, path: torch.Tensor, stream: int, k0: int, k1: int
) -> tuple[torch.Tensor, ...]:
    """`langevin.engine.kernels.normals.philox` on 32-bit words in signed 64-bit lanes."""
    low = 0xFFFFFFFF
    a, b, c = torch.broadcast_tensors(counter, step, path)
    d = torch.full_like(a, stream)
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (q >> 32) & low ^ b ^ k0, q & low, (p >> 32) & low ^ d ^ k1, p & low
        k0, k1 = (k0 + 0x9E3779B9) & low, (k1 + 0xBB67AE85) & low
    return a, b, c, d


def _box_muller(w0: torch.Tensor, w1: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    if dtype == torch.float64:
        u = (w0.to(dtype) + 0.5) * 2.0**-32
    else:
        u = (w0 >> 1).to(dtype) * 2.0**-31 + 2.0**-33
    radius, angle = torch.sqrt(-2.0 * torch.log(u)), w1.to(torch.float64) * (2 * math.pi * 2.0**-32)
    return radius * torch.cos(angle).to(dtype), radius * torch.sin(angle).to(dtype)


def add_normals(e: Ensemble, trained: int, rule: Rule, draw: int) -> None:
    """Add draw ``draw`` of the step that `columns` has just counted to ``theta[:, :trained]``."""
    step, first_path, k0, k1 = e.clock.tolist()
    counter = torch.arange(trained // 4).view(1, -1, LANES)
    path = first_path + torch.arange(len(e.theta)).view(-1, 1, 1)
    number = torch.tensor(((step - 1) * rule.draws + draw) & 0xFFFFFFFF)
    words = philox(counter, number, path, STATE_STREAM, k0, k1)
    tiles = e.theta[:, :trained].view(len(e.theta), -1, TILE // LANES, LANES)
    for first in (0, 2):
        x, y = _box_muller(words[first], words[first + 1], e.theta.dtype)
        tiles[:, :, first] += e.numbers[NOISE] * x
        tiles[:, :, first + 1] += e.numbers[NOISE] * y


def mark(e: Ensemble, finite: torch.Tensor) -> None:
    """Let paths diverge at the present step that are not ``finite``, shape (paths,)."""
    # no index by a mask, which a CUDA graph cannot record
    e.diverged.copy_(torch.where(~finite & (e.diverged < 0), e.clock[STEP], e.diverged))


def rows(e: ScalarEnsemble, rule: Rule) -> None:
    """Compute outputs, squared norms and clipped residuals from ``Z``; report which are not finite."""
    a = e.activation.tensor_value(e.Z)
    e.f[:] = torch.bmm(a, e.v.unsqueeze(2)).squeeze(2)
    norm = a.square().sum(2)
    if rule.method != LP:
        slopes = e.activation.tensor_slope(e.Z).square()
        norm += e.squared_norms * torch.bmm(slopes, e.v.square().unsqueeze(2)).squeeze(2)
    s = e.loss.tensor_residual(e.f, e.y)
    clip, stabiliser = e.numbers[CLIP], e.numbers[STABILISER]
    if rule.clipping == FLAT:
        g = s.abs() * norm.sqrt()
        s = torch.where(g > clip, s * (clip / g), s)
    elif rule.clipping == NORMALISED:
        s = s * (clip / (s.abs() * norm.sqrt() + stabiliser))
    e.s[:] = s
    mark(e, torch.isfinite(e.f.double().square() + norm.double()).all(1))


def columns(e: ScalarEnsemble, store: bool) -> None:
    """Take and count the step of the head; with ``store``, leave ``s_i v_j phi'(z_ij)`` in ``Z``."""
    gradient = torch.bmm(e.s.unsqueeze(1), e.activation.tensor_value(e.Z)).squeeze(1)
    if store:
        e.Z[:] = e.activation.tensor_slope(e.Z) * (e.s.unsqueeze(2) * e.v.unsqueeze(1))
    e.v.sub_(e.numbers[DT] * gradient)
    e.clock[STEP] += 1
