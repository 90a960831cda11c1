"""What a reduction is asked for, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

from langevin.engine.kernels.loop import advance
from langevin.engine.kernels.normals import TILE
from langevin.engine.kernels.outputs.loop import advance_outputs
from langevin.engine.kernels.types import HOUSEHOLDER
from langevin.engine.reductions.span import Span
from langevin.model.gauge import gauge_basis
from langevin.model.losses import LOSSES
from langevin.model.observables import OBSERVABLES
from langevin.model.problem import Problem, beyond_scalar
from langevin.model.schedule import Schedule
from langevin.model.steps import Grid
from langevin.model.weights import BLOCK_ENTRIES, Method, Weights, blocks_of_rows, triangle
from langevin.support import validate
from langevin.support.validate import FloatArray

# measured nanoseconds of a multiply-add in a product and in a loop, of a normal and of a chi-square draw, and
# of a step that does nothing; in the cube of a triangle's columns, by reflections of ours and of LAPACK's
_PRODUCT, _LOOP, _NORMAL, _CHI_SQUARE, _STEP = 0.02, 0.1, 0.9, 100.0, 300.0
_REFLECTIONS, _LAPACK = 0.2, 0.07


@dataclass(frozen=True)
class Request:
    """The properties of a request that determine the reduction.

    Attributes
    ----------
    grid : Grid or None
        Steps of the chain; None: the flow, by an adaptive method.
    observables : tuple of str
        Those requested in addition to the defaults.
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
    def beyond(self) -> str:
        """What needs the step loop of K outputs and batches, or nothing."""
        return beyond_scalar(self.problem, self.schedule)

    @property
    def loop(self) -> Callable[..., None]:
        """The compiled step loop of the request's network."""
        return advance_outputs if self.beyond else advance

    @property
    def gauge(self) -> bool:
        """Whether the loss has a gauge, see `langevin.model.gauge`."""
        return LOSSES[self.problem.loss].gauge

    @property
    def head_columns(self) -> int:
        """Columns of the head that any drift depends on: K, or K - 1 in gauge coordinates."""
        return self.problem.outputs_dim - self.gauge

    @property
    def phase_steps(self) -> Sequence[float]:
        """Steps of each phase; an adaptive method takes about as many whatever it follows."""
        return [phase.time for phase in self.schedule] if self.grid is None else self.grid.phase_steps

    @property
    def held_out(self) -> bool:
        """Tell whether an observable needs held-out points."""
        return any(OBSERVABLES[name].held_out for name in self.observables)

    @cached_property
    def span(self) -> Span:
        """Return the span of the data if it is smaller than the input space, otherwise the latter."""
        found = Span.of(self.problem.X, self.problem.X_test if self.held_out else None)
        return found if found.dim < self.problem.dim else Span.whole(self.problem)

    def head(self, v: FloatArray) -> FloatArray:
        """Rows of a head in `head_columns` numbers each."""
        return v @ gauge_basis(self.problem.outputs_dim) if self.gauge else v

    def triangle(self, columns: int, of: Callable[[FloatArray, FloatArray], FloatArray]) -> FloatArray:
        """Triangular factor of the matrix whose rows ``of(W, v)`` gives, one per neuron."""
        validate.memory(
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
        linear, total, outputs = self.problem.activation == "linear", 0.0, self.head_columns
        q = inputs + outputs
        for phase, steps in zip(self.schedule, self.phase_steps, strict=True):
            samples = phase.sample_rate * self.problem.samples
            step, normals = _STEP, max(rows * outputs, TILE)
            # a head of one output costs nothing next to the loops
            step += 2 * samples * (outputs - 1) * rows * _PRODUCT
            if phase.method == "lp":
                step += 2 * samples * rows * _LOOP
            else:
                step += 2 * samples * inputs * rows * _PRODUCT / (2 if linear else 1)
                step += 3 * inputs * rows * _LOOP
                normals += max(inputs * rows, TILE)
            if folded and phase.method == "lp":
                step += outputs * _CHI_SQUARE
            elif folded:
                step += q * _CHI_SQUARE + q**3 * (_REFLECTIONS if q <= HOUSEHOLDER else _LAPACK)
                normals += max(q * q // 2, TILE)
            total += steps * (step + normals * _NORMAL * self.noisy)
        return total


class Hidden(NamedTuple):
    """What is not simulated: Brownian motion that shows in distances alone.

    Attributes
    ----------
    dims : int
        Dimensions of a process.
    methods : tuple of {"lp", "fft"}
        The phases in which it moves.
    processes : int
        How many there are: one for each neuron, or one for all.
    """

    dims: int
    methods: tuple[Method, ...] = ("fft",)
    processes: int = 1


@dataclass(frozen=True, eq=False)
class Reduction:
    """The chain that is simulated instead of the full one.

    Attributes
    ----------
    name : str
        In `REDUCTIONS`.
    problem : Problem
        In the coordinates that are simulated, samples in an order in which inputs are triangular if they can
        be. ``"kernel"``: a linear net whose inputs are the features of the net in question.
    W, v : ndarray, shapes (r, k) and (r,) or (r, K)
        Where the chain starts; with ``gauge`` the head in gauge coordinates, shape (r, K - 1), (r,) if K = 2.
    span : Span
        Coordinates of ``problem`` in the input space.
    simulated : str
        What this is, in a few words.
    loop : callable
        The compiled step loop, `langevin.engine.kernels.loop.advance` or one with its arguments.
    folds : bool
        Whether the loop's work space has room to fold neurons; with or without noise, so that each kind of
        chain has one compiled loop.
    neurons : bool
        Whether its neurons are the net's own, and the loop observes them.
    by_class : bool
        Whether the flow is followed class by class, as long as neurons stay in their cones.
    frozen : bool
        Whether the head alone is simulated, in front of features that are all the same.
    folded : int
        Neurons that are folded into the last ones, see `langevin.engine.kernels.loop`.
    gauge : bool
        Whether the head is in the coordinates of `langevin.model.gauge`.
    hidden : tuple of Hidden
        What is not simulated; only the last may have other than one process.
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
    gauge: bool = False
    hidden: tuple[Hidden, ...] = ()

    @property
    def processes(self) -> int:
        """Number of hidden processes."""
        return sum(hidden.processes for hidden in self.hidden)

    @property
    def scalar(self) -> bool:
        """Whether the loop is one of scalar heads and full batches."""
        return self.loop is not advance_outputs

    def net(self, W: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return a network with the same outputs on ``problem``, at a state of the chain."""
        if self.gauge:
            v = v.reshape(len(v), -1) @ gauge_basis(self.problem.outputs_dim).T
        return (np.eye(len(v)), v) if self.frozen else (W, v)


class Route(Protocol):
    """How one reduction refuses, costs and builds itself."""

    def refusal(self, request: Request) -> str:
        """Return the reason why it does not apply, or nothing."""
        ...

    def cost(self, request: Request) -> float: ...

    def build(self, request: Request) -> Reduction: ...


def local(problem: Problem, span: Span) -> Problem:
    """The problem in coordinates, its samples in the order in which they are triangular."""
    X = span.coordinates(problem.X)[span.order]
    # zeros except for rounding, which would keep whole blocks of products alive
    X = X if span.trivial else np.tril(X)
    X_test = None if problem.X_test is None else span.coordinates(problem.X_test)
    return moved(problem, X, X_test, order=span.order)


def moved(
    problem: Problem,
    X: FloatArray,
    X_test: FloatArray | None,
    *,
    activation: str | None = None,
    order: np.ndarray | slice = slice(None),
) -> Problem:
    """The problem with other inputs, whose rows are the samples in some order."""
    return Problem(
        X,
        problem.y[order],
        activation or problem.activation,
        problem.loss,
        X_test,
        None if X_test is None else problem.y_test,
        classes=problem.class_names or None,
    )


def head_of(rows: FloatArray, columns: int) -> FloatArray:
    """The last ``columns`` of some rows: a head, of shape (r,) if that is one."""
    return rows[:, -1] if columns == 1 else rows[:, -columns:]


def needs_neurons(request: Request) -> str:
    """Say what of a request needs single neurons or the full chain, or nothing."""
    if request.device != "cpu":
        return f"runs on the processor alone, not on device {request.device!r}"
    asked = [name for name in request.observables if OBSERVABLES[name].neurons]
    return f"simulates no single neurons, which {', '.join(asked)} needs" if asked else ""


def has_no_path(request: Request) -> str:
    """Say that a request needs a shared Brownian path, or nothing."""
    if request.coupled and request.noisy:
        return "draws noise that runs with other steps cannot share, and noise_dt asks for it"
    return ""
