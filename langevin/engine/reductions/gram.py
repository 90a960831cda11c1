"""Linear networks through their Gram matrix."""

from __future__ import annotations

import numpy as np

from langevin.engine.reductions.request import (
    Reduction,
    Request,
    has_no_path,
    local,
    needs_neurons,
    scalar_only,
)


class Gram:
    """A linear network of few neurons with the same Gram matrix, including noise.

    In coordinates of the span of ``[W_0, v_0]``'s columns and across it: the first ``q`` neurons, whose
    noise is Gaussian, tell distances from the start and from the zeroth-order path; of all others the Gram
    matrix counts, which ``q + 1`` neurons carry.
    """

    def _rows(self, request: Request) -> tuple[int, int, int]:
        """Neurons along and across, and neurons folded."""
        q, width = request.span.dim + 1, request.weights.width
        along = min(q, width)
        across = min(q + 1, width - along) if request.noisy else 0
        return along, across, (width - along - across) if request.noisy else 0

    def refusal(self, request: Request) -> str:
        if beyond := scalar_only(request):
            return beyond
        if request.problem.activation != "linear":
            return "needs a linear net: with noise the Gram matrix no longer tells which neurons are active"
        return needs_neurons(request) or has_no_path(request)

    def cost(self, request: Request) -> float:
        along, across, folded = self._rows(request)
        inputs = request.span.dim
        return request.cost(along + across, inputs, folded) + request.triangle_cost(inputs + 1)

    def build(self, request: Request) -> Reduction:
        span, width = request.span, request.weights.width
        along, across, folded = self._rows(request)
        rows = request.triangle(span.dim + 1, lambda W, v: np.column_stack([span.coordinates(W), v]))
        start = np.zeros((along + across, span.dim + 1))
        start[: len(rows)] = rows
        return Reduction(
            "gram",
            local(request.problem, span),
            start[:, :-1],
            start[:, -1],
            span,
            f"the Gram matrix, as a net of width {len(start)} in {span.dim} dimensions",
            folds=True,
            neurons=False,
            folded=folded,
            hidden=width * span.complement_dim,
            processes=int(span.complement_dim > 0),
        )
