"""What is simulated, in the compiled code's form: the part that Euler-Maruyama chains and flows share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from langevin.engine.kernels import types
from langevin.engine.kernels.types import Data, Rule
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
    data: Data
    origin: np.ndarray

    @classmethod
    def build(cls, request: Request, reduction: Reduction, dtype: type) -> System:
        """Lay out a reduction of what was requested."""
        rows, inputs = reduction.W.shape
        layout = Layout(inputs, rows, dtype)
        X = reduction.problem.X
        data = layout.data(
            X,
            reduction.problem.y,
            activation=reduction.problem.activation,
            loss=request.problem.loss,
            features=X if reduction.frozen else None,
        )
        origin = aligned_zeros((layout.size,), dtype)
        layout.pack(reduction.W, reduction.v, origin)
        return cls(request.problem, request.weights, request.schedule, reduction, layout, data, origin)

    def rule(self, phase: Phase) -> Rule:
        """A phase in the compiled code's form: its drift, without steps or noise."""
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
            dt=number(0),
            noise=number(0),
            draws=1,
            folded=0,
        )

    def start(self, first_path: int, paths: int) -> Chunk:
        """Paths at time 0."""
        thetas = aligned_zeros((paths, self.layout.size), self.layout.dtype)
        thetas[:] = self.origin
        return Chunk(first_path, 0, thetas, np.zeros((paths, 2, self.reduction.processes)))

    def scratch(self) -> types.Scratch:
        """Return the work space of one thread."""
        return self.layout.scratch(self.data, folds=self.reduction.folds)

    def scratch_bytes(self) -> int:
        """Size of the work space of a thread."""
        return sum(a.nbytes for a in self.scratch() if a is not None)
