"""Linear networks on collapsed data: two vectors."""

from __future__ import annotations

import numpy as np

from langevin.engine.kernels.collapsed import advance_collapsed
from langevin.engine.reductions.request import (
    Hidden,
    Reduction,
    Request,
    has_no_path,
    needs_neurons,
)
from langevin.engine.reductions.span import Span
from langevin.engine.watchers import WATCHERS
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem


class Collapsed:
    """Two vectors that grow and shrink alone, see `langevin.engine.kernels.collapsed.advance_collapsed`."""

    def refusal(self, request: Request) -> str:
        problem = request.problem
        if request.beyond:
            return f"covers one output and full batches, not {request.beyond}, for which 'gram' is as small"
        if problem.activation != "linear":
            return "needs a linear net: with noise nothing tells when a neuron of a ReLU net leaves its cone"
        if any(phase.method != "fft" for phase in request.schedule):
            return "needs a schedule of full fine-tuning alone"
        if request.flow:
            return "is a chain of whole steps, and the adaptive method has none: give dt"
        if request.weights.width < 2:
            return "needs two neurons at least"
        if not problem.classification:
            return "needs labels -1 and +1"
        if not LOSSES[problem.loss].symmetric:
            return f"needs a loss with l(-f, -y) = l(f, y), which {problem.loss!r} is not"
        if watched := [name for name in request.observables if name in WATCHERS]:
            return f"simulates no whole network, which {', '.join(watched)} needs"
        directed = problem.y[:, None] * problem.X
        size = np.abs(directed).max()
        if size == 0 or np.abs(directed - directed[0]).max() > 1e-12 * size:
            return "needs samples that all have the same y_i x_i, other than 0"
        if not 1e-18 < size < 1e18:
            return "needs inputs whose squared norms even single precision can hold"
        return needs_neurons(request) or has_no_path(request)

    def cost(self, request: Request) -> float:
        return sum(request.phase_steps) * (50.0 + 300.0 * request.noisy)

    def build(self, request: Request) -> Reduction:
        problem, weights = request.problem, request.weights
        x = problem.y[0] * problem.X[0]
        length = float(np.linalg.norm(x))
        span = Span(problem.dim, (x / length)[:, None], np.arange(problem.samples))
        u = weights.W @ (x / length)
        sizes = [float(np.linalg.norm(weights.v + sign * u)) / 2**0.5 for sign in (1.0, -1.0)]
        return Reduction(
            "collapsed",
            Problem(length * problem.y[:, None], problem.y, "linear", problem.loss),
            np.zeros((4, 0)),
            np.array([sizes[0], 0.0, sizes[1], 0.0]),
            span,
            "four numbers",
            loop=advance_collapsed,
            neurons=False,
            folded=weights.width - 2,
            hidden=(Hidden(weights.width * span.complement_dim),) if span.complement_dim else (),
        )
