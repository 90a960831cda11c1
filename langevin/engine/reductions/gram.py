"""Linear networks through their Gram matrix."""

from __future__ import annotations

import numpy as np

from langevin.engine.reductions.request import (
    Hidden,
    Reduction,
    Request,
    has_no_path,
    head_of,
    local,
    needs_neurons,
)


class Gram:
    """A linear network of few neurons with the same Gram matrix, including noise.

    In coordinates of the span of ``[W_0, V_0]``'s ``q = k + K`` columns and across it (with softmax
    ``k + K - 1``, in gauge coordinates): the first ``q`` neurons, whose noise is Gaussian, tell distances
    from the start and from the zeroth-order path; of all others the Gram matrix counts, which ``q`` neurons
    carry, and in linear probing as many more as the head has columns, with a head alone.
    """

    def _rows(self, request: Request) -> tuple[int, int, int]:
        """Neurons along and across, and neurons folded."""
        columns, width = request.span.dim + request.head_columns, request.weights.width
        along = min(columns, width)
        across = min(columns + request.head_columns, width - along) if request.noisy else 0
        return along, across, (width - along - across) if request.noisy else 0

    def refusal(self, request: Request) -> str:
        if request.problem.activation != "linear":
            return "needs a linear net: with noise the Gram matrix no longer tells which neurons are active"
        return needs_neurons(request) or has_no_path(request)

    def cost(self, request: Request) -> float:
        along, across, folded = self._rows(request)
        inputs = request.span.dim
        return request.cost(along + across, inputs, folded) + request.triangle_cost(
            inputs + request.head_columns
        )

    def build(self, request: Request) -> Reduction:
        span, width, outputs = request.span, request.weights.width, request.head_columns
        along, across, folded = self._rows(request)
        rows = request.triangle(
            span.dim + outputs, lambda W, v: np.column_stack([span.coordinates(W), request.head(v)])
        )
        start = np.zeros((along + across, span.dim + outputs))
        start[: len(rows)] = rows
        hidden = (
            Hidden(width * span.complement_dim),
            Hidden(width * request.gauge, ("lp", "fft")),
        )
        return Reduction(
            "gram",
            local(request.problem, span),
            start[:, : span.dim],
            head_of(start, outputs),
            span,
            f"the Gram matrix, as a net of width {len(start)} in {span.dim} dimensions",
            loop=request.loop,
            folds=True,
            neurons=False,
            folded=folded,
            gauge=request.gauge,
            hidden=tuple(part for part in hidden if part.dims),
        )
