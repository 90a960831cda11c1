"""Linear probing in the range of the frozen features."""

from __future__ import annotations

import numpy as np

from langevin.engine.reductions.request import Hidden, Reduction, Request, head_of, moved, needs_neurons
from langevin.engine.reductions.span import Span


class Kernel:
    """Linear probing in the range of the features: ``f = L a``, ``A = L Q^T``, ``a = Q^T v``."""

    def refusal(self, request: Request) -> str:
        if any(phase.method != "lp" for phase in request.schedule):
            return "needs a schedule of linear probing alone"
        return needs_neurons(request)

    def cost(self, request: Request) -> float:
        samples = request.problem.samples
        rows = min(samples, request.weights.width)
        return request.cost(rows, 0) + request.triangle_cost(samples + request.head_columns)

    def build(self, request: Request) -> Reduction:
        problem, outputs = request.problem, request.head_columns
        X_test = problem.X_test if request.held_out else None
        X = problem.X if X_test is None else np.vstack([problem.X, X_test])
        rows = request.triangle(
            len(X) + outputs, lambda W, v: np.column_stack([problem.activate(W @ X.T), request.head(v)])
        )
        if not np.isfinite(rows).all():
            raise ValueError("weights.W must give finite features, got some beyond the range of doubles")
        # neurons beyond those that any sample sees
        rows = rows[: len(X)]
        train, test = rows[:, : problem.samples].T, rows[:, problem.samples : len(X)].T
        frozen = moved(problem, train, None if X_test is None else test, activation="linear")
        hidden = (request.weights.width - len(rows)) * outputs + request.weights.width * request.gauge
        return Reduction(
            "kernel",
            frozen,
            np.zeros((len(rows), 0)),
            head_of(rows, outputs),
            Span.whole(problem),
            f"the head in {len(rows)} dimensions",
            loop=request.loop,
            neurons=False,
            frozen=True,
            gauge=request.gauge,
            hidden=(Hidden(hidden, ("lp",)),) if hidden else (),
        )
