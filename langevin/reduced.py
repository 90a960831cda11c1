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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np

from langevin import _validate
from langevin._kernels import HOUSEHOLDER, TILE, advance, advance_collapsed
from langevin._span import Span
from langevin._validate import FloatArray
from langevin.model.losses import LOSSES
from langevin.observables import OBSERVABLES
from langevin.problem import BLOCK_ENTRIES, GramWeights, Problem, Weights, blocks_of_rows, triangle
from langevin.schedule import Grid, Schedule

# samples of which all products are held
_MOST_PAIRED = 4096
# losses that `_Blocks` covers, each with the margin y f below which -y r is positive
MARGINS = {"logistic": np.inf, "square": 1.0, "huber": 1.0}
REDUCTIONS = ("auto", "none", "span", "kernel", "gram", "collapsed", "blocks")
# measured nanoseconds of a multiply-add in a product and in a loop, of a normal and of a chi-square draw, and
# of a step that does nothing; in the cube of a triangle's columns, by reflections of ours and of LAPACK's
_PRODUCT, _LOOP, _NORMAL, _CHI_SQUARE, _STEP = 0.02, 0.1, 0.9, 100.0, 300.0
_REFLECTIONS, _LAPACK = 0.2, 0.07


@dataclass(frozen=True)
class Request:
    """What a solver is asked for, as far as it decides between reductions.

    Attributes
    ----------
    grid : Grid or None
        Steps of the chain; None: the flow, by an adaptive method.
    observables : tuple of str
        Those asked for beside the defaults.
    noisy : bool
        Whether any noise is drawn.
    coupled : bool
        Whether runs of several steps are to share their Brownian paths.
    device : str
        Where the chain runs: anywhere but on the processor it is the full one.
    """

    problem: Problem
    weights: Weights
    schedule: Schedule
    grid: Grid | None
    observables: Sequence[str] = ()
    noisy: bool = True
    coupled: bool = False
    device: str = "cpu"

    @property
    def flow(self) -> bool:
        """Whether the flow is solved by an adaptive method, and not a chain."""
        return self.grid is None

    @property
    def phase_steps(self) -> Sequence[float]:
        """Steps of each phase; an adaptive method takes about as many whatever it follows."""
        return [phase.time for phase in self.schedule] if self.grid is None else self.grid.phase_steps

    @property
    def held_out(self) -> bool:
        """Whether an observable needs held-out points."""
        return any(OBSERVABLES[name].held_out for name in self.observables)

    @cached_property
    def span(self) -> Span:
        """The span of the data where that is smaller than the input space, else the latter."""
        found = Span.of(self.problem.X, self.problem.X_test if self.held_out else None)
        return found if found.dim < self.problem.dim else Span.whole(self.problem)

    def triangle(self, columns: int, of: Callable[[FloatArray, FloatArray], FloatArray]) -> FloatArray:
        """Triangular factor of the matrix whose rows ``of(W, v)`` gives, one a neuron."""
        _validate.memory(
            4.0 * 8 * columns * max(columns, min(len(self.weights.v), BLOCK_ENTRIES // columns)),
            f"a reduction to {columns} dimensions",
            "take reduce='none', or fewer samples",
        )
        rows = blocks_of_rows(len(self.weights.v), columns)
        return triangle(of(self.weights.W[part], self.weights.v[part]) for part in rows)

    def triangle_cost(self, columns: int) -> float:
        """Rough time in nanoseconds of `triangle`."""
        return len(self.weights.v) * columns * (self.problem.dim * _PRODUCT + columns * _LOOP)

    def cost(self, rows: int, inputs: int, folded: int = 0) -> float:
        """Rough time in nanoseconds of a path that simulates a net of ``rows`` neurons."""
        samples, linear, q, total = self.problem.samples, self.problem.activation == "linear", inputs + 1, 0.0
        for phase, steps in zip(self.schedule, self.phase_steps, strict=True):
            step, normals = _STEP, max(rows, TILE)
            if phase.method == "lp":
                step += 2 * samples * rows * _LOOP
            else:
                step += 2 * samples * inputs * rows * _PRODUCT / (2 if linear else 1)
                step += 3 * inputs * rows * _LOOP
                normals += max(inputs * rows, TILE)
            if folded and phase.method == "lp":
                step += _CHI_SQUARE
            elif folded:
                step += q * _CHI_SQUARE + q**3 * (_REFLECTIONS if q <= HOUSEHOLDER else _LAPACK)
                normals += max(q * q // 2, TILE)
            total += steps * (step + normals * _NORMAL * self.noisy)
        return total


@dataclass(frozen=True, eq=False)
class Reduction:
    """The chain that is simulated in place of the problem's own.

    Attributes
    ----------
    name : str
        In `REDUCTIONS`.
    problem : Problem
        In the coordinates that are simulated, samples in an order in which inputs are triangular if they can
        be. ``"kernel"``: a linear net whose inputs are the features of the net in question.
    W, v : ndarray, shapes (r, k) and (r,)
        Where the chain starts; its neurons are the net's own only if ``neurons``.
    span : Span
        Coordinates of ``problem`` in the input space.
    simulated : str
        What this is, in a few words.
    loop : callable
        The compiled step loop, `langevin._kernels.advance` or one with its arguments.
    folds : bool
        Whether the loop's work space has room to fold neurons; with or without noise, so that each kind of
        chain has one compiled loop.
    by_class : bool
        Whether the flow is followed class by class, as long as neurons stay in their cones.
    frozen : bool
        Whether the head alone is simulated, in front of features that are all the same.
    folded : int
        Neurons that are folded into the last ones, see `langevin._kernels`.
    hidden : int
        Dimensions that are not simulated, per process: Brownian motion that shows in distances alone.
    processes : int
        How many there are: one for each neuron, or one for all.
    hidden_method : {"lp", "fft"}
        The phases in which they move.
    """

    name: str
    problem: Problem
    W: FloatArray
    v: FloatArray
    span: Span
    simulated: str
    loop: Callable[..., None] = advance
    folds: bool = False
    by_class: bool = False
    neurons: bool = True
    frozen: bool = False
    folded: int = 0
    hidden: int = 0
    processes: int = 0
    hidden_method: str = "fft"

    def net(self, W: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """A net with the same outputs on ``problem``, at a state of the chain."""
        return (np.eye(len(v)), v) if self.frozen else (W, v)


def reduction(name: str, request: Request) -> Reduction:
    """The reduction of that name, or, for ``"auto"``, the cheapest one that serves the request.

    Raises
    ------
    ValueError
        If the reduction does not apply; the message says why.
    """
    _validate.choice("reduce", name, REDUCTIONS)
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


# --- each reduction: whether it applies, what it costs, what is simulated ---------------------


class _Route(Protocol):
    def refusal(self, request: Request) -> str:
        """Say why it does not apply, or nothing."""
        ...

    def cost(self, request: Request) -> float: ...

    def build(self, request: Request) -> Reduction: ...


class _Full:
    """The net's own neurons; ``span``: on inputs in the span of the data."""

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
            _local(request.problem, span),
            span.coordinates(weights.W),
            weights.v,
            span,
            f"inputs in the {span.dim} dimensions of their span" if self.name == "span" else "the full chain",
            hidden=span.complement_dim,
            processes=weights.width if span.complement_dim else 0,
        )


class _Kernel:
    """Linear probing in the range of the features: ``f = L a``, ``A = L Q^T``, ``a = Q^T v``."""

    def refusal(self, request: Request) -> str:
        if any(phase.method != "lp" for phase in request.schedule):
            return "needs a schedule of linear probing alone"
        return _needs_neurons(request)

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


class _Gram:
    """A linear net of few neurons with the same Gram matrix, noise included.

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
        if request.problem.activation != "linear":
            return "needs a linear net: with noise the Gram matrix no longer tells which neurons are active"
        return _needs_neurons(request) or _has_no_path(request)

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
            _local(request.problem, span),
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


class _Collapsed:
    """Two vectors that grow and shrink alone, see `langevin._kernels.advance_collapsed`."""

    def refusal(self, request: Request) -> str:
        problem = request.problem
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
        if request.held_out:
            return "knows nothing of held-out points"
        directed = problem.y[:, None] * problem.X
        size = np.abs(directed).max()
        if size == 0 or np.abs(directed - directed[0]).max() > 1e-12 * size:
            return "needs samples that all have the same y_i x_i, other than 0"
        if not 1e-18 < size < 1e18:
            return "needs inputs whose squared norms even single precision can hold"
        return _needs_neurons(request) or _has_no_path(request)

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
            hidden=weights.width * span.complement_dim,
            processes=int(span.complement_dim > 0),
        )


class _Blocks(_Full):
    """Each class of a ReLU net like a linear net, see `langevin._cones`: an integrator, not a chain."""

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
        if problem.loss not in MARGINS:
            return f"is for the losses {', '.join(MARGINS)}, not {problem.loss!r}"
        if not problem.classification:
            return "needs labels -1 and +1"
        if problem.samples > _MOST_PAIRED:
            return f"is for at most {_MOST_PAIRED} samples, of which it looks at all pairs"
        y, lengths = problem.y, np.sqrt(problem.squared_norms)
        products = y[:, None] * (problem.X @ problem.X.T) * y
        rounding = 1e-12 * lengths[:, None] * lengths
        within = y[:, None] == y
        if (products < -rounding).any() or (products <= rounding)[within].any():
            return "needs orthogonally separable data (Assumption 3.1)"
        sides = y[:, None] * np.sign(problem.X @ weights.W.T)
        if (sides != sides[0]).any() or (sides == 0).any():
            return "needs every neuron in the cone of a class (Assumption 3.2)"
        return ""

    def cost(self, request: Request) -> float:
        # all neurons are looked at now and then
        return request.cost(2 * (request.span.dim + 1), request.span.dim) + 0.2 * super().cost(request)

    def build(self, request: Request) -> Reduction:
        return replace(
            super().build(request), name="blocks", simulated="the Gram matrix of each class", by_class=True
        )


def _local(problem: Problem, span: Span) -> Problem:
    """The problem in coordinates, its samples in the order in which they are triangular."""
    X = span.coordinates(problem.X)[span.order]
    # zeros but for rounding, which would keep whole blocks of products alive
    X = X if span.trivial else np.tril(X)
    X_test = None if problem.X_test is None else span.coordinates(problem.X_test)
    return Problem(X, problem.y[span.order], problem.activation, problem.loss, X_test, problem.y_test)


def _needs_neurons(request: Request) -> str:
    if request.device != "cpu":
        return f"runs on the processor alone, not on device {request.device!r}"
    asked = [name for name in request.observables if OBSERVABLES[name].neurons]
    return f"simulates no single neurons, which {', '.join(asked)} needs" if asked else ""


def _has_no_path(request: Request) -> str:
    if request.coupled and request.noisy:
        return "draws noise that runs with other steps cannot share, and noise_dt asks for it"
    return ""


_ROUTES: dict[str, _Route] = {
    "none": _Full("none"),
    "span": _Full("span"),
    "kernel": _Kernel(),
    "gram": _Gram(),
    "collapsed": _Collapsed(),
    "blocks": _Blocks(),
}
