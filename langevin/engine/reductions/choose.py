"""The choice of a reduction."""

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
