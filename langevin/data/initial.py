"""Initial weights: features (collapsed or Gaussian) and heads (Gaussian, zero, prototypes).

`gaussian_gram` gives features and head of a linear net of any width.
"""

from __future__ import annotations

import numpy as np

from langevin.engine.reductions.span import Span
from langevin.model.problem import Problem
from langevin.model.weights import GramWeights, Weights, countable
from langevin.support import validate
from langevin.support.rng import RNG, generator
from langevin.support.validate import FloatArray


def _width(width: int, columns: int) -> int:
    """Return ``width`` if so many neurons of so many ``columns`` fit into memory."""
    width = validate.integer("width", width, 1)
    validate.memory(
        3.0 * 8 * width * columns,
        f"width={width} with {columns} number(s) a neuron",
        "take fewer, or gaussian_gram, which draws none of a linear net",
    )
    return width


def collapsed_features(
    problem: Problem,
    width: int,
    *,
    spread: float = 0.5,
    scale: float | None = None,
    head_scale: float | None = None,
    rng: RNG = None,
) -> Weights:
    """Features that satisfy Assumption 3.2 of [1]_, with a Gaussian head.

    Every ``w_j`` lies strictly in the cone of one class, ``w_j . x_i > 0`` iff ``y_i = s_j``; the classes
    alternate from neuron to neuron. The cone's axis is ``s_j X^T y``, which lies in it under Assumption 3.1.

    With K classes (new; theory for K outputs, section 3.2') neuron ``j`` has class ``j`` modulo K. The axis
    is the mean of the class less the means of all others, which need not lie in the cone.

    Parameters
    ----------
    problem : Problem
        With labels -1 and +1, or K classes, and separable as Assumption 3.1 has it.
    width : int
        ``h``.
    spread : float
        Deviation of the features from the axis, in [0, 1): 0 collapses all features of a class onto one
        direction, 1 would reach the cone's boundary.
    scale : float, optional
        Norm of each ``w_j``; ``1 / sqrt(width)`` by default.
    head_scale : float, optional
        Standard deviation ``beta`` of the head's entries; ``1 / sqrt(width)`` by default.
    rng : int, Generator or None
        Source of randomness (SPEC 7).

    Raises
    ------
    ValueError
        If an axis does not lie in its cone: with two classes the data are not orthogonally separable then.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> from langevin import orthogonally_separable
    >>> problem = orthogonally_separable(samples=8, dim=3, rng=0)
    >>> z = problem.X @ collapsed_features(problem, width=4, rng=0).W.T
    >>> bool(((z > 0) == np.equal.outer(problem.y, [1, -1, 1, -1])).all())
    True
    """
    validate.instance("problem", problem, Problem)
    width = _width(width, problem.dim)
    if not 0 <= validate.number("spread", spread) < 1:
        raise ValueError(f"spread must lie in [0, 1), got {spread!r}")
    scale = width**-0.5 if scale is None else validate.positive("scale", scale)
    random = generator(rng, "collapsed features")
    axes, margins = _axes(problem)
    if margins.min() <= 1e-12:
        raise ValueError(
            "problem must be orthogonally separable (Assumption 3.1) for collapsed features: the cone of a "
            f"class does not hold its axis, whose smallest cosine is {margins.min():.3g}; take "
            "gaussian_features"
        )
    own = np.arange(width) % len(axes)
    deviations = random.standard_normal((width, problem.dim))
    deviations /= np.linalg.norm(deviations, axis=1, keepdims=True)
    # a deviation shorter than the margin cannot change a sign
    longest = spread * margins[own, None]
    rows = axes[own] + longest * random.uniform(size=(width, 1)) ** (1 / problem.dim) * deviations
    rows *= scale / np.linalg.norm(rows, axis=1, keepdims=True)
    head = gaussian_head(width, head_scale, outputs=problem.outputs_dim, rng=random)
    if not problem.class_names:
        # both axes are that of class +1
        rows *= np.where(own == 0, 1.0, -1.0)[:, None]
    return Weights(rows, head)


def _axes(problem: Problem) -> tuple[FloatArray, FloatArray]:
    """Unit axis of each class's cone, and its smallest cosine to the cone's sides, negative outside.

    With labels -1 and +1 the axis of class +1, twice.
    """
    if problem.class_names:
        means = np.array([problem.X[problem.y == k].mean(axis=0) for k in range(problem.outputs_dim)])
        pairs = list(zip(2 * means - means.sum(axis=0), 2 * problem.targets.T - 1, strict=True))
    else:
        validate.labels("problem.y", problem.y)
        pairs = [(problem.X.T @ problem.y, problem.y)] * 2
    lengths = np.sqrt(problem.squared_norms)
    axes, margins = [], []
    for axis, signs in pairs:
        axes.append(axis / max(float(np.linalg.norm(axis)), np.finfo(float).tiny))
        margins.append((signs * (problem.X @ axes[-1]) / np.where(lengths > 0, lengths, np.inf)).min())
    return np.array(axes), np.array(margins)


def gaussian_features(width: int, dim: int, *, scale: float | None = None, rng: RNG = None) -> FloatArray:
    """Rows of independent normals of norm about ``scale``, by default ``1 / sqrt(width)``; shape (h, d)."""
    dim = validate.integer("dim", dim, 1)
    width = _width(width, dim)
    length = width**-0.5 if scale is None else validate.positive("scale", scale)
    normals = generator(rng, "features").standard_normal((width, dim))
    return _scaled("scale", length, normals, length / dim**0.5)


def gaussian_gram(
    problem: Problem,
    width: int,
    *,
    scale: float | None = None,
    head_scale: float | None = None,
    rng: RNG = None,
) -> GramWeights:
    """Weights of a linear network of any width with `gaussian_features` and a `gaussian_head`.

    No neuron is drawn: the Gram matrix in the span of the inputs, held-out ones included, is a Wishart, and
    Bartlett's triangular factor of it stands for the net, exactly in law (new; theory, section 7c).

    Parameters
    ----------
    problem : Problem
        With a linear activation.
    width : int
        ``h``.
    scale : float, optional
        Root mean square norm of the rows of ``W``; ``1 / sqrt(width)`` by default.
    head_scale : float, optional
        Standard deviation of the head's entries; ``1 / sqrt(width)`` by default.
    rng : int, Generator or None
        Source of randomness (SPEC 7).

    Examples
    --------
    >>> from langevin import linear_teacher
    >>> problem = linear_teacher(samples=8, dim=3, activation="linear", rng=0)
    >>> weights = gaussian_gram(problem, width=10**9, rng=0)
    >>> weights.width, weights.W.shape
    (1000000000, (4, 3))
    >>> bool(abs(np.linalg.norm(weights.v) - 1) < 1e-3)
    True
    """
    validate.instance("problem", problem, Problem)
    width = countable("width", validate.integer("width", width, 1))
    length = width**-0.5 if scale is None else validate.positive("scale", scale)
    deviation = width**-0.5 if head_scale is None else validate.non_negative("head_scale", head_scale)
    if problem.activation != "linear":
        raise ValueError(
            f"problem must have a linear activation, got {problem.activation!r}: a ReLU net has no Gram "
            "matrix that tells its outputs; take gaussian_features"
        )
    span = Span.of(problem.X, problem.X_test)
    outputs = problem.outputs_dim
    columns = span.dim + outputs
    rows = min(width, columns)
    random = generator(rng, "Gram matrix")
    factor = np.triu(random.standard_normal((rows, columns)), 1)
    factor[np.arange(rows), np.arange(rows)] = np.sqrt(random.chisquare(width - np.arange(rows)))
    W = _scaled("scale", length, span.embed(factor[:, : span.dim]), length / problem.dim**0.5)
    head = factor[:, -1] if outputs == 1 else factor[:, span.dim :]
    return GramWeights(W, _scaled("head_scale", deviation, head, deviation), width)


def gaussian_head(width: int, scale: float | None = None, *, outputs: int = 1, rng: RNG = None) -> FloatArray:
    """A head of independent ``N(0, scale^2)``, by default ``scale = 1 / sqrt(width)``.

    Its shape is (h,) for one output, otherwise (h, K).
    """
    shape = _head_shape(width, outputs)
    deviation = shape[0] ** -0.5 if scale is None else validate.non_negative("head_scale", scale)
    return _scaled("head_scale", deviation, generator(rng, "head").standard_normal(shape), deviation)


def _head_shape(width: int, outputs: int) -> tuple[int, ...]:
    outputs = validate.integer("outputs", outputs, 1)
    width = _width(width, outputs)
    return (width,) if outputs == 1 else (width, outputs)


def _scaled(name: str, scale: float, values: FloatArray, factor: float) -> FloatArray:
    """Return ``values`` times ``factor``, or refuse the scale by name."""
    with np.errstate(over="ignore"):
        scaled = values * factor
    if not np.isfinite(scaled).all():
        raise ValueError(f"{name} must be smaller, got {scale:g}: some weights exceed the range of numbers")
    return scaled


def zero_head(width: int, *, outputs: int = 1) -> FloatArray:
    """A head of zeros; shape (h,) for one output, otherwise (h, K)."""
    return np.zeros(_head_shape(width, outputs))


def prototype_head(problem: Problem, W: FloatArray, scale: float | None = None) -> FloatArray:
    """The difference of the classes' mean features, scaled to root mean square ``scale``; shape (h,).

    With K classes, the mean features of each class less the mean of these over the classes; shape (h, K).

    Not private: on private data the prototypes have to be released with noise first.

    Parameters
    ----------
    problem : Problem
        With labels -1 and +1, both present, or K classes.
    W : ndarray, shape (h, d)
    scale : float, optional
        ``1 / sqrt(h)`` by default, as a Gaussian head's.
    """
    if not validate.instance("problem", problem, Problem).class_names:
        validate.labels("problem.y", problem.y)
    W = validate.array("W", W, 2)
    if W.shape[1] != problem.dim:
        raise ValueError(f"W must have as many columns as problem.X, got {W.shape[1]} and {problem.dim}")
    size = len(W) ** -0.5 if scale is None else validate.positive("head_scale", scale)
    difference = _prototypes(problem, problem.features(W))
    norm = float(np.linalg.norm(difference))
    if norm == 0:
        raise ValueError("W must tell the classes apart for a prototype head: their mean features coincide")
    return _scaled("head_scale", size, difference / norm * difference.size**0.5, size)


def _prototypes(problem: Problem, features: FloatArray) -> FloatArray:
    """Difference of two classes' mean features, or those of K classes less their mean."""
    if problem.class_names:
        means = np.array([features[problem.y == k].mean(axis=0) for k in range(problem.outputs_dim)])
        return (means - means.mean(axis=0)).T
    positive = problem.y > 0
    if positive.all() or not positive.any():
        raise ValueError("problem.y must hold both classes for a prototype head, got one")
    return features[positive].mean(axis=0) - features[~positive].mean(axis=0)
