"""The zeroth-order flow of a ReLU network, class by class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from langevin.engine.reductions.full import Full
from langevin.engine.reductions.request import Reduction, Request

# samples of which all products are held
_MOST_PAIRED = 4096
# losses of one output that `Blocks` covers, each with the margin y f below which -y r is positive
MARGINS = {"logistic": np.inf, "square": 1.0, "huber": 1.0}
# and of K outputs: an output's residual has one sign for all samples of a class
CLASS_LOSSES = ("softmax", "ovr")


class Blocks(Full):
    """Each class of a ReLU net like a linear net, see `langevin.solvers.cones`; not a chain."""

    def __init__(self) -> None:
        super().__init__("span")

    def refusal(self, request: Request) -> str:
        problem, weights = request.problem, request.weights
        if problem.activation != "relu":
            return "is for ReLU nets: take 'gram' for a linear net"
        if not request.flow:
            return (
                "is for the zeroth-order flow: with noise, or in whole steps, a class's Gram matrix does not "
                "tell when a neuron leaves its cone"
            )
        if problem.loss not in (*MARGINS, *CLASS_LOSSES):
            return f"is for the losses {', '.join((*MARGINS, *CLASS_LOSSES))}, not {problem.loss!r}"
        if not problem.classification:
            return "needs labels -1 and +1, or classes"
        if problem.samples > _MOST_PAIRED:
            return f"is for at most {_MOST_PAIRED} samples, of which it looks at all pairs"
        lengths, within = np.sqrt(problem.squared_norms), problem.y[:, None] == problem.y
        products, rounding = problem.X @ problem.X.T, 1e-12 * lengths[:, None] * lengths
        if (products > rounding)[~within].any() or (products <= rounding)[within].any():
            return "needs orthogonally separable data (Assumption 3.1)"
        sides = np.sign(problem.X @ weights.W.T)
        of_classes = [sides[problem.y == label] for label in set(problem.y)]
        agree = all((side == side[0]).all() for side in of_classes)
        active = np.sum([side[0] > 0 for side in of_classes], axis=0)
        if not agree or (sides == 0).any() or (active > 1).any():
            return "needs every neuron in the cone of a class (Assumption 3.2)"
        return ""

    def cost(self, request: Request) -> float:
        # all neurons are looked at now and then
        rows = 2 * (request.span.dim + request.head_columns)
        return request.cost(rows, request.span.dim) + 0.2 * super().cost(request)

    def build(self, request: Request) -> Reduction:
        return replace(
            super().build(request), name="blocks", simulated="the Gram matrix of each class", by_class=True
        )
