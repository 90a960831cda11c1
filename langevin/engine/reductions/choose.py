"""Exact reductions: the same law in fewer dimensions (new; theory, section 7).

Each holds for the Euler-Maruyama *chain*, and so for the diffusion:

- ``"span"`` (7a): inputs in the span of the data, any net;
- ``"kernel"`` (7b): linear probing of any net in as many dimensions as there are samples;
- ``"gram"`` (7c): a linear net through its Gram matrix, whatever its width;
- ``"collapsed"`` (7e): full fine-tuning of a linear net whose samples all have the same ``y_i x_i``;
- ``"blocks"`` (7d): the zeroth-order flow of a ReLU net whose neurons stay in the cones of their classes,
  in `langevin.zeroth_order` alone.
"""

from __future__ import annotations

from langevin.engine.reductions.blocks import Blocks
from langevin.engine.reductions.collapsed import Collapsed
from langevin.engine.reductions.full import Full
from langevin.engine.reductions.gram import Gram
from langevin.engine.reductions.kernel import Kernel
from langevin.engine.reductions.request import Reduction, Request, Route
from langevin.support import validate

REDUCTIONS = ("auto", "none", "span", "kernel", "gram", "collapsed", "blocks")


def reduction(name: str, request: Request) -> Reduction:
    """Return the reduction with this name, or, for ``"auto"``, the cheapest one that serves the request.

    Raises
    ------
    ValueError
        If the reduction does not apply; the message says why.
    """
    validate.choice("reduce", name, REDUCTIONS)
    if name == "auto":
        costs = {name: route.cost(request) for name, route in _ROUTES.items() if not route.refusal(request)}
        if not costs:
            why = _ROUTES["gram"].refusal(request)
            raise ValueError(
                f"weights must hold single neurons for this run, got GramWeights: 'gram' {why}; take Weights"
            )
        name = min(costs, key=costs.__getitem__)
    elif why := _ROUTES[name].refusal(request):
        raise ValueError(f"reduce must apply to the run, but {name!r} {why}: take 'auto'")
    return _ROUTES[name].build(request)


_ROUTES: dict[str, Route] = {
    "none": Full("none"),
    "span": Full("span"),
    "kernel": Kernel(),
    "gram": Gram(),
    "collapsed": Collapsed(),
    "blocks": Blocks(),
}
