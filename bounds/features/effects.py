"""What full fine-tuning does to the neurons of one block (sections 3.3 and 3.3')."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bounds.features.blocks import Block, Margin
from bounds.features.classes import ClassBlock, class_margin
from langevin.model.alignment import CONES, Cone
from langevin.model.losses import LOSSES
from langevin.support.validate import FloatArray


class Effect(NamedTuple):
    """Per neuron of a block, shapes (neurons,); the fields are those of `Distortion`."""

    misaligned: NDArray[np.bool_]
    wholly: NDArray[np.bool_]
    pushed: NDArray[np.bool_]
    distance: FloatArray
    duration: FloatArray
    survives: NDArray[np.bool_]
    largest_drop: FloatArray
    largest_rise: FloatArray
    keeps_direction: bool
    """Whether heads move along one line, as scalar and symmetric ones do."""


def scalar_effect(block: Block, margin: Margin, clip: float | None) -> Effect:
    """Effect on the neurons of a scalar head."""
    bad = block.alpha < 0
    distance = np.where(bad, -block.alpha, 0.0)
    # margins do not decrease, nor does a misaligned neuron's pre-activation increase
    pull = _clipped(block.Z * margin.slope(block.margins), clip).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        duration = np.where(bad, distance / pull, 0.0)
    return Effect(bad, bad, bad, distance, duration, *_survival(block, distance), True)


def class_effect(block: ClassBlock, loss: str, clip: float | None) -> Effect:
    """Effect on the neurons of one of K classes, with the loss "softmax" or "ovr"."""
    if loss == "softmax" and block.symmetric:
        found = scalar_effect(block.scalar(), class_margin(block.classes), clip)
        # the scalar net's inputs are longer
        return Effect(*found[:5], *_survival(block, found.distance), True)
    label = np.eye(block.classes)[np.full(len(block.samples), block.own)]
    residuals, steepest = LOSSES[loss].residual(block.outputs, label), LOSSES[loss].steepest(block.classes)
    assert steepest is not None
    root = math.sqrt(2) if loss == "softmax" else 1.0
    return _outside(block, CONES[loss], residuals, steepest, clip, root)


def square_effect(block: ClassBlock, targets: FloatArray, clip: float | None) -> Effect | str:
    """Effect with the square loss until a residual changes its sign, or why there is no statement.

    A head is aligned where no output has the sign of the residuals, which must be the same for all samples.
    """
    R = block.outputs - targets
    still = (R == 0).all(0) & (block.V == 0).all(0)
    signs = np.where((R < 0).all(0), 1.0, np.where((R > 0).all(0), -1.0, 0.0))
    mixed = np.flatnonzero((signs == 0) & ~still)
    if len(mixed):
        return f"residuals of output {mixed[0]} in class {block.own} have both signs, or one is 0"
    cone = Cone(lambda V, own: -signs * V, CONES["ovr"].distance)
    # without a clip the loss of the class does not rise, nor does the norm of its residuals
    steepest = float(np.linalg.norm(R)) if clip is None else math.inf
    return _outside(block, cone, R, steepest, clip, 1.0)


def _outside(
    block: ClassBlock, cone: Cone, residuals: FloatArray, steepest: float, clip: float | None, root: float
) -> Effect:
    """Effect on heads outside a cone; ``steepest`` bounds the norms of the residuals."""
    excess = cone.excess(block.V, np.full(len(block.V), block.own))
    bad, distance = np.any(excess > 0, axis=1), cone.distance(excess)
    return Effect(
        bad,
        np.all(excess > 0, axis=1),
        bad & (residuals @ block.V.T > 0).any(0),
        distance,
        _duration(block, cone, distance, steepest, clip, root),
        *_survival(block, distance),
        False,
    )


def gather(parts: list[tuple[np.ndarray, Effect]], h: int) -> dict[str, np.ndarray]:
    """Effects on all ``h`` neurons by field, from those of some; others never move."""
    none = np.zeros(h, dtype=bool)
    found = dict.fromkeys(("misaligned", "wholly", "pushed"), none)
    found |= dict.fromkeys(("distance", "duration", "largest_drop", "largest_rise"), np.zeros(h))
    found = {name: values.copy() for name, values in (found | {"survives": ~none}).items()}
    for neurons, effect in parts:
        for name, values in found.items():
            values[neurons] = getattr(effect, name)
    return found


def _clipped(sizes: FloatArray, clip: float | None) -> FloatArray:
    return sizes if clip is None else np.minimum(sizes, clip)


def _duration(
    block: ClassBlock, cone: Cone, distance: FloatArray, steepest: float, clip: float | None, root: float
) -> FloatArray:
    """Least time until a head is in the aligned cone: wholly misaligned first, then not."""
    own = np.full(len(block.V), block.own)
    # wholly misaligned heads are those whose opposite is aligned
    depth = np.maximum(cone.excess(block.V, own).min(1), 0.0) / root
    beyond = cone.distance(cone.excess(-block.V, own))
    first = depth / _clipped(steepest * block.Z, clip).sum(1)
    # then pre-activations may rise: z' = most P and P' = z, P the distance to the wholly misaligned heads
    left = np.maximum(distance - depth, 0.0)
    most, highest, count = float(block.G.max()), block.Z.max(1), len(block.samples)
    ratio = highest / math.sqrt(most)
    end = beyond + left
    clock = np.log((end + np.sqrt((end - beyond) * (end + beyond) + ratio**2)) / (beyond + ratio))
    second = np.maximum(clock, 0.0) / (math.sqrt(most) * steepest * count)
    if clip is not None:
        second = np.maximum(second, left / (count * clip))
    return np.where(distance > 0, first + second, 0.0)


def _survival(
    block: Block | ClassBlock, distance: FloatArray
) -> tuple[NDArray[np.bool_], FloatArray, FloatArray]:
    """Whether each neuron stays in its cone, and the largest drop and rise of its pre-activations."""
    zeta, most = block.Z.min(1), float(block.G.max())
    left = zeta**2 - most * distance**2
    drop = np.where(left > 0, zeta - np.sqrt(np.maximum(left, 0.0)), np.nan)
    drop = np.where(distance > 0, drop, 0.0)
    up = drop[:, None] * block.G_opposite.max(0, initial=0.0) / most
    survives = (distance == 0) | ((left > 0) & (up < block.opposite).all(1))
    return survives, drop, np.where(np.isnan(drop), np.nan, up.max(1, initial=0.0))
