"""Synthetic data: separable classes, classes on a ring, and regression on a linear teacher."""

from __future__ import annotations

import math

import numpy as np

from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.support import validate
from langevin.support.rng import RNG, generator
from langevin.support.validate import FloatArray


def _fits(samples: int, dim: int) -> None:
    validate.memory(4.0 * 8 * samples * dim, f"{samples} samples in {dim} dimensions", "take fewer of either")


def orthogonally_separable(
    samples: int = 64,
    dim: int = 16,
    *,
    classes: int = 2,
    spread: float | None = None,
    angle: float | None = None,
    activation: str = "relu",
    loss: str = "logistic",
    test_samples: int = 0,
    rng: RNG = None,
) -> Problem:
    """Classes that satisfy Assumption 3.1 of [1]_: two, or K in its extension (new; K outputs, section 3.1').

    A sample is its class's unit mean plus a vector across it, uniform in direction, of length at most
    ``spread``: so within a class all products are positive, between classes none is.

    Parameters
    ----------
    samples, dim : int
        ``n``, of which each class has an equal share up to one, and ``d``; at least 2 each. K classes take at
        least K samples, and K dimensions, or K - 1 with the default angle.
    classes : int
        ``K``, at least 2; more than 2 need loss ``"softmax"`` or ``"ovr"``.
    spread : float, optional
        Tangent of the largest angle between a sample and its class's mean; 0 collapses the classes. Must
        be less than ``tan((angle - 90) / 2)``; by default 0.2, or half of that limit if this is less.
    angle : float, optional
        Between any two class means, in degrees, above 90 and at most ``arccos(-1 / (K - 1))``: 180 for two
        classes. By default 135 for two classes and the largest for more, whose means are a centred simplex.
    activation, loss
        As in `Problem`.
    test_samples : int
        Number of held-out samples of the same law.
    rng : int, Generator or None
        Source of randomness (SPEC 7).

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = orthogonally_separable(samples=10, dim=4, rng=0)
    >>> G = problem.X @ problem.X.T
    >>> same = np.equal.outer(problem.y, problem.y)
    >>> bool((G[same] > 0).all() and (G[~same] <= 0).all())
    True
    """
    samples, dim = validate.integer("samples", samples, 2), validate.integer("dim", dim, 2)
    classes = _class_count(classes, samples, loss)
    test_samples = validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, dim)
    angle = _angle(classes, angle)
    limit = math.tan(math.radians(angle - 90) / 2)
    spread = min(0.2, limit / 2) if spread is None else validate.number("spread", spread)
    if not 0 <= spread < limit:
        raise ValueError(
            f"spread must lie in [0, {limit:.4g}) at angle={angle:g}: samples of different classes may "
            f"have a positive product; got {spread!r}"
        )
    random = generator(rng, "separable data")
    means = _means(random, classes, dim, math.radians(angle))

    def draw(count: int) -> tuple[FloatArray, np.ndarray]:
        order = np.arange(count) % classes
        centres = means[order]
        across = random.standard_normal((count, dim))
        across -= np.einsum("ij,ij->i", across, centres)[:, None] * centres
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        lengths = random.uniform(size=(count, 1)) ** (1 / (dim - 1))
        return centres + spread * lengths * across, _labels(order, classes, loss)

    X, y = draw(samples)
    test = draw(test_samples) if test_samples else (None, None)
    return Problem(X, y, activation, loss, *test)


def class_ring(
    samples: int = 64,
    classes: int = 5,
    *,
    spread: float | None = None,
    activation: str = "relu",
    loss: str = "softmax",
    test_samples: int = 0,
    rng: RNG = None,
) -> Problem:
    """Classes in the plane whose means are equally spaced on the unit circle (new).

    A sample is its class's mean plus a vector across it, uniform in ``[-spread, spread]``. Three classes with
    a spread below ``tan(15 degrees)`` satisfy the extension of Assumption 3.1 of [1]_ (K outputs, section
    3.1'); more than three never do, because some means are less than 90 degrees apart.

    Parameters
    ----------
    samples : int
        ``n``, of which each class has an equal share up to one.
    classes : int
        ``K``, at least 2; more than 2 need loss ``"softmax"`` or ``"ovr"``.
    spread : float, optional
        Tangent of the largest angle between a sample and its class's mean, at least 0 and less than
        ``tan(pi / K)`` for more than two classes, where classes would meet; by default 0.2, or half of that
        limit if this is less.
    activation, loss, test_samples, rng
        As in `orthogonally_separable`.

    References
    ----------
    .. [1] Ke, Hou, Oh, Fanti, arXiv:2402.18905.

    Examples
    --------
    >>> problem = class_ring(samples=8, classes=4, spread=0.0, rng=0)
    >>> (problem.X @ problem.X.T)[0].round(6) + 0.0
    array([ 1.,  0., -1.,  0.,  1.,  0., -1.,  0.])
    """
    samples = validate.integer("samples", samples, 2)
    classes = _class_count(classes, samples, loss)
    test_samples = validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, 2)
    limit = math.tan(math.pi / classes) if classes > 2 else math.inf
    spread = min(0.2, limit / 2) if spread is None else validate.number("spread", spread)
    if not 0 <= spread < limit:
        raise ValueError(
            f"spread must lie in [0, {limit:.4g}) for {classes} classes, which would meet; got {spread!r}"
        )
    random = generator(rng, "ring data")
    start = random.uniform(0, 2 * math.pi)

    def draw(count: int) -> tuple[FloatArray, np.ndarray]:
        order = np.arange(count) % classes
        turns = start + 2 * math.pi * order / classes
        offsets = spread * random.uniform(-1, 1, size=count)
        X = np.stack([np.cos(turns), np.sin(turns)], 1)
        X += offsets[:, None] * np.stack([-np.sin(turns), np.cos(turns)], 1)
        return X, _labels(order, classes, loss)

    X, y = draw(samples)
    test = draw(test_samples) if test_samples else (None, None)
    return Problem(X, y, activation, loss, *test)


def _labels(order: np.ndarray, classes: int, loss: str) -> np.ndarray:
    """Labels of samples of classes 0 to K - 1, as the loss has them."""
    # of two classes the first is +1, and the later one in the order of labels
    y = order if classes > 2 else 1 - order
    return y if LOSSES[loss].classes else np.where(y == 1, 1.0, -1.0)


def _class_count(classes: int, samples: int, loss: str) -> int:
    """Return the number of classes if the loss and the number of samples allow it."""
    classes = validate.integer("classes", classes, 2)
    several = LOSSES[validate.choice("loss", loss, LOSSES)].classes
    if classes > 2 and not several:
        raise ValueError(f"classes must be 2 with loss {loss!r}, got {classes}: take loss='softmax' or 'ovr'")
    if classes > samples:
        raise ValueError(f"samples must be at least classes={classes}, got {samples}: each class needs one")
    return classes


def _angle(classes: int, angle: float | None) -> float:
    """Angle between two class means, in degrees."""
    most = math.degrees(math.acos(-1 / (classes - 1)))
    if angle is None:
        return 135.0 if classes == 2 else most
    if not 90 < validate.number("angle", angle) <= most:
        raise ValueError(f"angle must lie in (90, {most:.4g}] degrees, got {angle!r}")
    return angle


def _means(random: np.random.Generator, classes: int, dim: int, angle: float) -> FloatArray:
    """Unit means of the classes, shape (K, d), in a random position."""
    if classes == 2:
        plane = np.linalg.qr(random.standard_normal((dim, 2)))[0].T
        return np.array([plane[0], math.cos(angle) * plane[0] + math.sin(angle) * plane[1]])
    from scipy.linalg import helmert

    # squared length of the part that all means share: none in a centred simplex, except for rounding
    common = 1 + (classes - 1) * math.cos(angle)
    frame = math.sqrt(1 - math.cos(angle)) * helmert(classes).T
    if common > 1e-12:
        frame = np.column_stack([frame, np.full(classes, math.sqrt(common / classes))])
    if frame.shape[1] > dim:
        raise ValueError(f"dim must be at least {frame.shape[1]} for {classes} classes, got {dim}")
    return frame @ np.linalg.qr(random.standard_normal((dim, frame.shape[1])))[0].T


def linear_teacher(
    samples: int = 64,
    dim: int = 16,
    *,
    noise: float = 0.1,
    activation: str = "linear",
    loss: str = "square",
    test_samples: int = 0,
    outputs: int = 1,
    rng: RNG = None,
) -> Problem:
    """Regression on a random linear teacher: ``y = X beta + noise xi``.

    ``X`` has independent normal entries and rows of norm about 1; ``beta``, or each of its columns, has norm
    ``sqrt(dim)``, so that targets are about 1.

    Parameters
    ----------
    samples, dim, test_samples : int
    noise : float
        Standard deviation of the targets' noise.
    activation, rng
        As in `orthogonally_separable`.
    loss : str
        As in `Problem`, one that takes real targets.
    outputs : int
        ``K``: targets of a sample.

    Examples
    --------
    >>> linear_teacher(samples=5, dim=3, outputs=2, rng=0).y.shape
    (5, 2)
    """
    outputs = validate.integer("outputs", outputs, 1)
    validate.choice("loss", loss, [name for name, entry in LOSSES.items() if entry.real])
    samples, dim = validate.integer("samples", samples, 1), validate.integer("dim", dim, 1)
    test_samples = validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, dim)
    noise = validate.non_negative("noise", noise)
    random = generator(rng, "teacher data")
    shape = () if outputs == 1 else (outputs,)
    beta = random.standard_normal((dim, *shape))
    beta *= dim**0.5 / np.linalg.norm(beta, axis=0)

    def draw(count: int) -> tuple[FloatArray, FloatArray]:
        X = random.standard_normal((count, dim)) / dim**0.5
        return X, X @ beta + noise * random.standard_normal((count, *shape))

    X, y = draw(samples)
    test = draw(test_samples) if test_samples else (None, None)
    return Problem(X, y, activation, loss, *test)
