"""Synthetic data: orthogonally separable classes, and regression on a linear teacher."""

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
    spread: float = 0.2,
    angle: float = 135.0,
    activation: str = "relu",
    loss: str = "logistic",
    test_samples: int = 0,
    rng: RNG = None,
) -> Problem:
    """Two classes that satisfy Assumption 3.1 of [1]_.

    A sample is its class's unit mean plus a vector across it, uniform in direction, of length at most
    ``spread``: so within a class all products are positive, between classes none is.

    Parameters
    ----------
    samples, dim : int
        ``n`` (half of each class) and ``d``; at least 2 each.
    spread : float
        Tangent of the largest angle between a sample and its class's mean; 0 collapses the classes. Must
        be less than ``tan((angle - 90) / 2)``.
    angle : float
        Between the class means, in degrees, in (90, 180].
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
    test_samples = validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, dim)
    if not 90 < validate.number("angle", angle) <= 180:
        raise ValueError(f"angle must lie in (90, 180] degrees, got {angle!r}")
    limit = math.tan(math.radians(angle - 90) / 2)
    if not 0 <= validate.number("spread", spread) < limit:
        raise ValueError(
            f"spread must lie in [0, {limit:.4g}) at angle={angle:g}: samples of different classes may "
            f"have a positive product; got {spread!r}"
        )
    random = generator(rng, "separable data")
    plane = np.linalg.qr(random.standard_normal((dim, 2)))[0].T
    turn = math.radians(angle)
    means = {1.0: plane[0], -1.0: math.cos(turn) * plane[0] + math.sin(turn) * plane[1]}

    def draw(count: int) -> tuple[FloatArray, FloatArray]:
        y = np.where(np.arange(count) % 2 == 0, 1.0, -1.0)
        centres = np.array([means[label] for label in y])
        across = random.standard_normal((count, dim))
        across -= np.einsum("ij,ij->i", across, centres)[:, None] * centres
        across /= np.linalg.norm(across, axis=1, keepdims=True)
        lengths = random.uniform(size=(count, 1)) ** (1 / (dim - 1))
        return centres + spread * lengths * across, y

    X, y = draw(samples)
    test = draw(test_samples) if test_samples else (None, None)
    return Problem(X, y, activation, loss, *test)


def linear_teacher(
    samples: int = 64,
    dim: int = 16,
    *,
    noise: float = 0.1,
    activation: str = "linear",
    loss: str = "square",
    test_samples: int = 0,
    rng: RNG = None,
) -> Problem:
    """Regression on a random linear teacher: ``y = X beta + noise xi``.

    ``X`` has independent normal entries and rows of norm about 1; ``beta`` has norm ``sqrt(dim)``, so that
    targets are about 1.

    Parameters
    ----------
    samples, dim, test_samples : int
    noise : float
        Standard deviation of the targets' noise.
    activation, rng
        As in `orthogonally_separable`.
    loss : str
        As in `Problem`, one that takes real targets.
    """
    validate.choice("loss", loss, [name for name, entry in LOSSES.items() if not entry.signs])
    samples, dim = validate.integer("samples", samples, 1), validate.integer("dim", dim, 1)
    test_samples = validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, dim)
    noise = validate.non_negative("noise", noise)
    random = generator(rng, "teacher data")
    beta = random.standard_normal(dim)
    beta *= dim**0.5 / np.linalg.norm(beta)

    def draw(count: int) -> tuple[FloatArray, FloatArray]:
        X = random.standard_normal((count, dim)) / dim**0.5
        return X, X @ beta + noise * random.standard_normal(count)

    X, y = draw(samples)
    test = draw(test_samples) if test_samples else (None, None)
    return Problem(X, y, activation, loss, *test)
