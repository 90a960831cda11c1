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

    Parameters
    ----------
    problem : Problem
        With labels -1 and +1, and separable as Assumption 3.1 has it.
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
        If the axis does not lie in its cone: the data are not orthogonally separable.

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
    validate.labels("problem.y", problem.y)
    random = generator(rng, "collapsed features")
    axis = problem.X.T @ problem.y
    axis = axis / max(float(np.linalg.norm(axis)), np.finfo(float).tiny)
    lengths = np.sqrt(problem.squared_norms)
    margin = float((problem.y * (problem.X @ axis) / np.where(lengths > 0, lengths, np.inf)).min())
    if margin <= 1e-12:
        raise ValueError(
            "problem must be orthogonally separable (Assumption 3.1) for collapsed features: the cone of a "
            f"class does not hold its axis, whose smallest cosine is {margin:.3g}; take gaussian_features"
        )
    deviations = random.standard_normal((width, problem.dim))
    deviations /= np.linalg.norm(deviations, axis=1, keepdims=True)
    # a deviation shorter than the margin cannot change a sign
    rows = axis + spread * margin * random.uniform(size=(width, 1)) ** (1 / problem.dim) * deviations
    rows *= scale / np.linalg.norm(rows, axis=1, keepdims=True)
    signs = np.where(np.arange(width) % 2 == 0, 1.0, -1.0)
    return Weights(signs[:, None] * rows, gaussian_head(width, head_scale, rng=random))


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
    columns = span.dim + 1
    rows = min(width, columns)
    random = generator(rng, "Gram matrix")
    factor = np.triu(random.standard_normal((rows, columns)), 1)
    factor[np.arange(rows), np.arange(rows)] = np.sqrt(random.chisquare(width - np.arange(rows)))
    W = _scaled("scale", length, span.embed(factor[:, :-1]), length / problem.dim**0.5)
    return GramWeights(W, _scaled("head_scale", deviation, factor[:, -1], deviation), width)


def gaussian_head(width: int, scale: float | None = None, *, rng: RNG = None) -> FloatArray:
    """A head of independent ``N(0, scale^2)``, by default ``scale = 1 / sqrt(width)``; shape (h,)."""
    width = _width(width, 1)
    deviation = width**-0.5 if scale is None else validate.non_negative("head_scale", scale)
    return _scaled("head_scale", deviation, generator(rng, "head").standard_normal(width), deviation)


def _scaled(name: str, scale: float, values: FloatArray, factor: float) -> FloatArray:
    """Return ``values`` times ``factor``, or refuse the scale by name."""
    with np.errstate(over="ignore"):
        scaled = values * factor
    if not np.isfinite(scaled).all():
        raise ValueError(f"{name} must be smaller, got {scale:g}: some weights exceed the range of numbers")
    return scaled


def zero_head(width: int) -> FloatArray:
    """A head of zeros; shape (h,)."""
    return np.zeros(_width(width, 1))


def prototype_head(problem: Problem, W: FloatArray, scale: float | None = None) -> FloatArray:
    """The difference of the classes' mean features, scaled to root mean square ``scale``; shape (h,).

    Not private: on private data the prototypes have to be released with noise first.

    Parameters
    ----------
    problem : Problem
        With labels -1 and +1, both present.
    W : ndarray, shape (h, d)
    scale : float, optional
        ``1 / sqrt(h)`` by default, as a Gaussian head's.
    """
    validate.labels("problem.y", validate.instance("problem", problem, Problem).y)
    W = validate.array("W", W, 2)
    if W.shape[1] != problem.dim:
        raise ValueError(f"W must have as many columns as problem.X, got {W.shape[1]} and {problem.dim}")
    size = len(W) ** -0.5 if scale is None else validate.positive("head_scale", scale)
    features = problem.features(W)
    positive = problem.y > 0
    if positive.all() or not positive.any():
        raise ValueError("problem.y must hold both classes for a prototype head, got one")
    difference = features[positive].mean(axis=0) - features[~positive].mean(axis=0)
    norm = float(np.linalg.norm(difference))
    if norm == 0:
        raise ValueError("W must tell the classes apart for a prototype head: their mean features coincide")
    return _scaled("head_scale", size, difference / norm * len(W) ** 0.5, size)
