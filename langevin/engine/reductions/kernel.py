"""Linear probing in the range of the frozen features."""

from __future__ import annotations

import numpy as np

from langevin.engine.reductions.request import Reduction, Request, needs_neurons
from langevin.engine.reductions.span import Span
from langevin.model.problem import Problem


class Kernel:
    """Linear probing in the range of the features: ``f = L a``, ``A = L Q^T``, ``a = Q^T v``."""

    def refusal(self, request: Request) -> str:
        if any(phase.method != "lp" for phase in request.schedule):
            return "needs a schedule of linear probing alone"
        return needs_neurons(request)

    def cost(self, request: Request) -> float:
        samples = request.problem.samples
        return request.cost(min(samples, request.weights.width), 0) + request.triangle_cost(samples + 1)

    def build(self, request: Request) -> Reduction:
        problem = request.problem
        X_test, y_test = (problem.X_test, problem.y_test) if request.held_out else (None, None)
        X = problem.X if X_test is None else np.vstack([problem.X, X_test])
        rows = request.triangle(len(X) + 1, lambda W, v: np.column_stack([problem.activate(W @ X.T), v]))
        if not np.isfinite(rows).all():
            raise ValueError("weights.W must give finite features, got some beyond the range of doubles")
        # neurons beyond those that any sample sees
        rows = rows[: len(X)]
        train, test = rows[:, : problem.samples].T, rows[:, problem.samples : -1].T
        frozen = Problem(
            train,
            problem.y,
            "linear",
            problem.loss,
            None if X_test is None else test,
            y_test,
        )
        hidden = request.weights.width - len(rows)
        return Reduction(
            "kernel",
            frozen,
            np.zeros((len(rows), 0)),
            rows[:, -1],
            Span.whole(problem),
            f"the head in {len(rows)} dimensions",
            neurons=False,
            frozen=True,
            hidden=hidden,
            processes=int(hidden > 0),
            hidden_method="lp",
        )
