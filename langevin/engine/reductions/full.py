"""The full chain, in all coordinates or in those of the span of the data."""

from __future__ import annotations

from langevin.engine.reductions.request import Hidden, Reduction, Request, local
from langevin.engine.reductions.span import Span
from langevin.model.weights import GramWeights


class Full:
    """The full network; with ``span``, on inputs in the span of the data."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _span(self, request: Request) -> Span:
        return request.span if self.name == "span" else Span.whole(request.problem)

    def refusal(self, request: Request) -> str:
        if isinstance(request.weights, GramWeights):
            return "needs single neurons, and these weights are known by their Gram matrix alone"
        return ""

    def cost(self, request: Request) -> float:
        # triangular data halve the products
        span = self._span(request)
        return request.cost(request.weights.width, span.dim) * (1.0 if span.trivial else 0.6)

    def build(self, request: Request) -> Reduction:
        span, weights = self._span(request), request.weights
        return Reduction(
            self.name,
            local(request.problem, span),
            span.coordinates(weights.W),
            weights.v,
            span,
            f"inputs in the {span.dim} dimensions of their span" if self.name == "span" else "the full chain",
            loop=request.loop,
            hidden=(Hidden(span.complement_dim, processes=weights.width),) if span.complement_dim else (),
        )
