"""Enclosures of the losses of decoupled problems, of one output or K classes (sections 4b and 4b')."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from bounds.features.blocks import CLASS_MARGINS, COVERS, MARGINS, Block, decouple, fft_obstacle
from bounds.features.classes import COVERS as CLASS_BLOCKS
from bounds.features.classes import ClassBlock, classes_obstacle, decouple_classes
from bounds.loss.enclosures.any_heads import AnyHeads
from bounds.loss.enclosures.clocked import Enclosed
from bounds.loss.enclosures.collapsed import Collapsed
from bounds.loss.enclosures.one_output import OneOutput
from bounds.support.covers import PROBING
from bounds.support.ranges import require_moderate
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.steps import record_times
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

CLASSES = replace(CLASS_BLOCKS, losses=tuple(CLASS_MARGINS), lp=(*CLASS_BLOCKS.lp, *PROBING))
ALIKE: dict[str, Callable[[ClassBlock], Block | None]] = {
    "softmax": lambda block: block.scalar() if block.symmetric else None,
    "ovr": lambda block: block.one_vs_rest() if block.opposed else None,
}
"""Scalar net that a class trains as, if its heads are alike (4b'(a))."""
SCALES: dict[str, Callable[[int], float]] = {
    "softmax": lambda K: math.sqrt(K / (K - 1)),
    "ovr": lambda K: 1.0,
}
"""Factor of its inputs, and of ``||r_i||`` over its slope."""
ANY_HEADS = {"softmax": AnyHeads}
"""The form for any heads (4b'(b))."""
UNLIKE = (
    "one-vs-rest is covered where each neuron's heads of other classes are minus that of its own, as a zero "
    "head's are, or the samples of the class are equal: neither holds for class {own}"
)


class Form(Protocol):
    """One form of the statement, on one block."""

    source: str

    def enclose(self, schedule: Schedule, t: FloatArray) -> Enclosed: ...


def enclose(
    problem: Problem, weights: Weights, schedule: Schedule, times: ArrayLike | None
) -> Enclosed | str:
    """Enclose the losses of all samples at ``times``, or return the reason why that fails."""
    require_moderate(problem, weights, schedule, pairs=True)
    t = record_times(schedule, times)
    several = problem.outputs_dim > 1 and problem.loss in CLASSES.losses
    reason = (CLASSES if several else COVERS).refuses_phases(schedule)
    if reason:
        return reason
    forms, reason = (_of_classes if several else _of_signs)(problem, weights, schedule)
    if reason:
        return reason
    lower, upper, residual = np.zeros((3, len(t), problem.samples))
    valid = np.ones(len(t), dtype=bool)
    reasons = set()
    for samples, form in forms:
        found = form.enclose(_flat(schedule, problem) if isinstance(form, OneOutput) else schedule, t)
        lower[:, samples], upper[:, samples] = found.lower, found.upper
        residual[:, samples] = found.residual
        valid &= found.valid
        if found.reason:
            reasons.add(found.reason)
    # a cone left in one block couples the others
    valid = np.logical_and.accumulate(valid)
    source = ", ".join(sorted({form.source for _, form in forms}))
    return Enclosed(lower, upper, residual, valid, "; ".join(sorted(reasons)), source)


def _trains_features(schedule: Schedule) -> bool:
    return any(phase.method == "fft" for phase in schedule)


def _of_signs(
    problem: Problem, weights: Weights, schedule: Schedule
) -> tuple[Sequence[tuple[np.ndarray, Form]], str]:
    """Return the samples of each block of a scalar head, with its form, or the reason why there are none."""
    blocks, reason = decouple(problem, weights)
    if not reason and _trains_features(schedule):
        reason = fft_obstacle(problem, blocks)
    loss, norms = MARGINS.get(problem.loss), problem.squared_norms
    if reason or loss is None:
        return [], reason
    return [(block.samples, OneOutput(block, loss, norms[block.samples], "4b")) for block in blocks], ""


def _of_classes(
    problem: Problem, weights: Weights, schedule: Schedule
) -> tuple[Sequence[tuple[np.ndarray, Form]], str]:
    """The same of the blocks of K classes."""
    blocks, reason = decouple_classes(problem, weights)
    if not reason and _trains_features(schedule):
        reason = classes_obstacle(blocks)
    if reason:
        return [], reason
    forms = [(block.samples, _form(problem, block)) for block in blocks]
    unlike = [block.own for block, (_, form) in zip(blocks, forms, strict=True) if form is None]
    if unlike:
        return [], UNLIKE.format(own=unlike[0])
    return [(samples, form) for samples, form in forms if form is not None], ""


def _form(problem: Problem, block: ClassBlock) -> Form | None:
    """The tightest form of 4b' for a class; None if there is none."""
    loss, norms = problem.loss, problem.squared_norms[block.samples]
    scalar = ALIKE[loss](block)
    if scalar is not None:
        scale = SCALES[loss](block.classes)
        return OneOutput(scalar, CLASS_MARGINS[loss](block.classes), scale**2 * norms, "4b'(a)", scale)
    if block.is_collapsed:
        return Collapsed(problem, block)
    return ANY_HEADS[loss](block, norms) if loss in ANY_HEADS else None


def _flat(schedule: Schedule, problem: Problem) -> Schedule:
    """The schedule of a scalar net that a class trains as: with flat clipping (4b'(a)).

    The margin clip of softmax bounds ``sqrt(2) g ||A||``, while the scalar net's gradient has norm
    ``sqrt(K / (K - 1)) g ||A||``. With opposed heads the gradients of all columns have the same norm.
    """
    phases = []
    for phase in schedule:
        if phase.clip is not None and phase.clipping in PROBING:
            scale = SCALES[problem.loss](problem.outputs_dim)
            clip = phase.clip * (scale / math.sqrt(2) if phase.clipping == "margin" else 1.0)
            phase = replace(phase, clip=clip, clipping="flat")
        phases.append(phase)
    return Schedule(phases)
