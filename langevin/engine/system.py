"""What is simulated, in the compiled code's form: the part that Euler-Maruyama chains and flows share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from langevin.engine import outputs
from langevin.engine.kernels import descend, types
from langevin.engine.kernels.outputs.drift import drift_outputs, freeze_outputs
from langevin.engine.kernels.outputs.types import OutputsData, OutputsRule, OutputsScratch
from langevin.engine.kernels.types import Data, Rule, Scratch
from langevin.engine.layout import Layout, aligned_zeros
from langevin.engine.reductions.request import Reduction, Request
from langevin.engine.results import Chunk
from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule
from langevin.model.weights import Weights

_CLIPPING = {"flat": types.FLAT, "normalised": types.NORMALISED}


@dataclass(frozen=True, eq=False)
class System:
    """A problem, weights and a schedule as the compiled code reads them.

    ``problem`` and ``weights`` are the user's, ``reduction`` is what is simulated instead, and ``origin``
    its state at time 0.
    """

    problem: Problem
    weights: Weights
    schedule: Schedule
    reduction: Reduction
    layout: Layout
    data: Data | OutputsData
    origin: np.ndarray

    @classmethod
    def build(cls, request: Request, reduction: Reduction, dtype: type) -> System:
        """Lay out a reduction of what was requested."""
        rows, inputs = reduction.W.shape
        layout = Layout(inputs, rows, dtype, 1 if reduction.v.ndim == 1 else reduction.v.shape[1])
        data = _data(layout, reduction)
        origin = aligned_zeros((layout.size,), dtype)
        layout.pack(reduction.W, reduction.v, origin)
        return cls(request.problem, request.weights, request.schedule, reduction, layout, data, origin)

    def rule(self, phase: Phase) -> Rule | OutputsRule:
        """A phase in the compiled code's form: its drift on all samples, without noise."""
        return self._rule(phase)

    def _rule(
        self,
        phase: Phase,
        *,
        dt: float = 1.0,
        sigma: float = 0.0,
        draws: int = 1,
        sample_rate: float = 1.0,
        folded: int = 0,
    ) -> Rule | OutputsRule:
        """A phase in the compiled code's form, its steps in units of diffusion time."""
        if not self.reduction.scalar:
            return outputs.phase_rule(
                self.layout, replace(phase, sigma=sigma, sample_rate=sample_rate), dt, draws, folded
            )
        number = self.layout.dtype
        if phase.clip is not None and number(phase.clip) == 0:
            raise ValueError(
                f"clip must be larger for this precision, got {phase.clip:g}: take precision='double'"
            )
        return Rule(
            types.LP if phase.method == "lp" else types.FFT,
            types.UNCLIPPED if phase.clip is None else _CLIPPING[phase.clipping],
            1.0 if phase.clip is None else phase.clip,
            phase.stabiliser,
            dt=number(dt),
            noise=number(sigma * math.sqrt(2 * dt / draws)),
            draws=draws,
            folded=folded,
        )

    def start(self, first_path: int, paths: int) -> Chunk:
        """Paths at time 0."""
        thetas = aligned_zeros((paths, self.layout.size), self.layout.dtype)
        thetas[:] = self.origin
        return Chunk(first_path, 0, thetas, np.zeros((paths, 2, self.reduction.processes)))

    def scratch(self) -> Scratch | OutputsScratch:
        """Return the work space of one thread."""
        if isinstance(self.data, OutputsData):
            probing = any(phase.method == "lp" for phase in self.schedule)
            return outputs.build_scratch(self.layout, self.data, probing=probing, folds=self.reduction.folds)
        return self.layout.scratch(self.data, folds=self.reduction.folds)

    def scratch_bytes(self) -> int:
        """Size of the work space of a thread."""
        return sum(a.nbytes for a in self.scratch() if a is not None)

    def freeze(self, theta: np.ndarray, scratch: Scratch | OutputsScratch) -> None:
        """Leave the features at a state in the work space, for `drift` in linear probing."""
        (descend.freeze_features if self.reduction.scalar else freeze_outputs)(theta, self.data, scratch)

    def drift(self, theta: np.ndarray, out: np.ndarray, rule: Any, scratch: Any) -> None:
        """Write the clipped drift of `rule` to ``out``; in linear probing the head's slot alone will do."""
        (descend.drift if self.reduction.scalar else drift_outputs)(theta, out, self.data, rule, scratch)


def _data(layout: Layout, reduction: Reduction) -> Data | OutputsData:
    """The reduction's problem in the form that its loop reads."""
    problem = reduction.problem
    given: Any = dict(
        activation=problem.activation, loss=problem.loss, features=problem.X if reduction.frozen else None
    )
    if reduction.scalar:
        return layout.data(problem.X, problem.y, **given)
    order, classes = reduction.span.order, problem.classification
    return outputs.build_data(layout, problem.X, problem.targets, classes=classes, order=order, **given)
