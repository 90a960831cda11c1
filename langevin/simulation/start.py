"""Problem and weights with which a simulation begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from langevin.data import files
from langevin.model.observables import OBSERVABLES
from langevin.model.problem import Problem
from langevin.model.weights import GramWeights, Weights
from langevin.support import validate
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    from langevin.simulation.config import Simulation

# entries of W from which a linear net's is known by its Gram matrix alone, unless neurons are asked for
_LARGE = 2**18


class Start(NamedTuple):
    """Problem and weights at the start of a simulation.

    Attributes
    ----------
    problem : Problem
    weights : Weights
    own_head : bool
        Whether the head is the user's.
    file : FileProblem or None
        Of data from a file.
    """

    problem: Problem
    weights: Weights
    own_head: bool
    file: files.FileProblem | None = None


def begin(simulation: Simulation, observables: tuple[str, ...]) -> Start:
    """Return problem and weights; see `langevin.simulation.config.Simulation.start`."""
    collapsed = simulation.features == "collapsed" or (
        simulation.features is None and simulation.data == "separable" and simulation.activation == "relu"
    )
    neurons = simulation.reduce in ("none", "span") or any(
        name in OBSERVABLES and OBSERVABLES[name].neurons for name in observables
    )
    large = simulation.width * simulation.dim > _LARGE and not neurons
    by_gram = simulation.synthetic and not collapsed and simulation.activation == "linear" and large
    if not by_gram and not simulation.is_file:
        # refuse weights of single neurons that do not fit into memory
        validate.memory(
            4.0 * 8 * simulation.width * simulation.dim,
            f"width={simulation.width} with single neurons",
            "take fewer, or a linear activation with Gaussian features, which knows no single ones",
        )
    problem, W, v, file = _problem(simulation)
    if by_gram:
        return Start(problem, _gram_weights(simulation, problem), False)
    return Start(problem, _weights(simulation, problem, W, v, collapsed), v is not None, file)


def _problem(
    simulation: Simulation,
) -> tuple[Problem, FloatArray | None, FloatArray | None, files.FileProblem | None]:
    """Problem, the first layer and head that come with it, and what a file says of them."""
    from langevin.data import characters, scikit, synthetic

    about: dict[str, Any] = dict(activation=simulation.activation, rng=simulation.seed)
    if simulation.data == "teacher":
        problem = synthetic.linear_teacher(
            simulation.samples,
            simulation.dim,
            loss=simulation.loss or "square",
            test_samples=simulation.samples,
            **about,
        )
        return problem, None, None, None
    loss = simulation.loss or "logistic"
    if simulation.data == "separable":
        tested: dict[str, Any] = dict(
            spread=simulation.spread, test_samples=simulation.samples, classes=simulation.class_count
        )
        problem = synthetic.orthogonally_separable(
            simulation.samples, simulation.dim, loss=loss, **tested, **about
        )
        return problem, None, None, None
    if simulation.data == "ring":
        about |= dict(spread=simulation.spread, test_samples=simulation.samples, loss=loss)
        return synthetic.class_ring(simulation.samples, simulation.class_count, **about), None, None, None
    if simulation.data == "glyphs":
        about |= dict(samples=simulation.samples, loss=loss)
        problem, start = characters.glyphs(simulation.class_count, simulation.width, **about)
        return problem, start.W, None, None
    if simulation.data == "digits":
        problem, start = scikit.digits(simulation.classes, simulation.width, loss=loss, **about)
        return problem, start.W, None, None
    file = files.from_file(
        simulation.data, label=simulation.label, activation=simulation.activation, loss=loss
    )
    return file.problem, file.W, file.v, file


def _weights(
    simulation: Simulation, problem: Problem, W: FloatArray | None, v: FloatArray | None, collapsed: bool
) -> Weights:
    """Weights at the start: those that come with the problem, and the others drawn."""
    from langevin.data import initial

    if W is None and collapsed:
        W = initial.collapsed_features(problem, simulation.width, rng=simulation.seed).W
    elif W is None:
        width = simulation.width if v is None else len(v)
        W = initial.gaussian_features(width, problem.dim, rng=simulation.seed)
    if v is not None:
        return Weights(W, v)
    outputs = problem.outputs_dim
    if simulation.head == "gaussian":
        return Weights(
            W, initial.gaussian_head(len(W), simulation.head_scale, outputs=outputs, rng=simulation.seed)
        )
    if simulation.head == "zero":
        return Weights(W, initial.zero_head(len(W), outputs=outputs))
    return Weights(W, initial.prototype_head(problem, W, simulation.head_scale))


def _gram_weights(simulation: Simulation, problem: Problem) -> GramWeights:
    from langevin.data import initial

    weights = initial.gaussian_gram(
        problem, simulation.width, head_scale=simulation.head_scale, rng=simulation.seed
    )
    if simulation.head == "zero":
        return GramWeights(
            weights.W, initial.zero_head(len(weights.W), outputs=problem.outputs_dim), simulation.width
        )
    if simulation.head == "prototype":
        scale = simulation.width**-0.5 if simulation.head_scale is None else simulation.head_scale
        # a root mean square over fewer neurons of the same norm
        v = initial.prototype_head(problem, weights.W, scale * (simulation.width / len(weights.W)) ** 0.5)
        return GramWeights(weights.W, v, simulation.width)
    return weights
