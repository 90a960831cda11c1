"""Data to fine-tune on: synthetic with known properties, and scikit-learn's digits."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import numpy as np

from langevin import _atomic, _validate
from langevin._random import RNG, generator
from langevin._validate import FloatArray
from langevin.initial import gaussian_features, gaussian_head
from langevin.model.losses import LOSSES
from langevin.problem import Problem, Weights
from langevin.schedule import Schedule


def _fits(samples: int, dim: int) -> None:
    _validate.memory(
        4.0 * 8 * samples * dim, f"{samples} samples in {dim} dimensions", "take fewer of either"
    )


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
    samples, dim = _validate.integer("samples", samples, 2), _validate.integer("dim", dim, 2)
    test_samples = _validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, dim)
    if not 90 < _validate.number("angle", angle) <= 180:
        raise ValueError(f"angle must lie in (90, 180] degrees, got {angle!r}")
    limit = math.tan(math.radians(angle - 90) / 2)
    if not 0 <= _validate.number("spread", spread) < limit:
        raise ValueError(
            f"spread must lie in [0, {limit:.4g}) at angle={angle:g}, else samples of different classes may "
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
    _validate.choice("loss", loss, [name for name, entry in LOSSES.items() if not entry.signs])
    samples, dim = _validate.integer("samples", samples, 1), _validate.integer("dim", dim, 1)
    test_samples = _validate.integer("test_samples", test_samples, 0)
    _fits(samples + test_samples, dim)
    noise = _validate.non_negative("noise", noise)
    random = generator(rng, "teacher data")
    beta = random.standard_normal(dim)
    beta *= dim**0.5 / np.linalg.norm(beta)

    def draw(count: int) -> tuple[FloatArray, FloatArray]:
        X = random.standard_normal((count, dim)) / dim**0.5
        return X, X @ beta + noise * random.standard_normal(count)

    X, y = draw(samples)
    test = draw(test_samples) if test_samples else (None, None)
    return Problem(X, y, activation, loss, *test)


# pre-training on the public digits: even against odd, to a plateau of the accuracy
_PRETRAINING_TIME, _PRETRAINING_DT = 0.4, 1e-3
_TEST_SHARE = 0.2


def digits(
    classes: tuple[int, int] = (3, 8),
    width: int = 512,
    *,
    activation: str = "relu",
    loss: str = "logistic",
    head_scale: float | None = None,
    rng: RNG = 0,
    cache: bool = True,
) -> tuple[Problem, Weights]:
    """Two of scikit-learn's digits, and features pre-trained on the other eight.

    The eight public digits pre-train a network of the same width on a task of their own, even against odd,
    by the noiseless gradient flow of the logistic loss. Its head is discarded for a Gaussian one. Inputs are
    centred and scaled by the public digits alone. A fifth of the private digits is held out. The features are
    learnt, but need not suit the private digits: random ones of the same size often probe better.

    Parameters
    ----------
    classes : pair of int
        The private digits, labelled -1 and +1.
    width : int
        ``h``.
    activation, loss
        As in `Problem`; the pre-training uses the same activation.
    head_scale : float, optional
        ``beta`` of the new head; ``1 / sqrt(width)`` by default.
    rng : int, Generator or None
        Draws the pre-training's start, the split and the new head.
    cache : bool
        Keep the pre-trained features in the user's cache folder.

    Returns
    -------
    problem : Problem
        With held-out points.
    weights : Weights
    """
    pair = tuple(_validate.sequence("classes", classes, int))
    if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(range(10)):
        raise ValueError(f"classes must be two different digits from 0 to 9, got {pair!r}")
    width = _validate.integer("width", width, 1)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    private = np.isin(labels, pair)
    mean = images[~private].mean(axis=0)
    scale = np.sqrt(((images[~private] - mean) ** 2).sum(axis=1).mean())
    X = (images - mean) / scale

    random = generator(rng, "digits")
    start = Weights(
        gaussian_features(width, X.shape[1], scale=(X.shape[1] / width) ** 0.5, rng=random),
        gaussian_head(width, rng=random),
    )
    public = Problem(X[~private], np.where(labels[~private] % 2 == 0, 1.0, -1.0), activation)
    W = _pretrained(public, start, cache)

    y = np.where(labels[private] == pair[1], 1.0, -1.0)
    order = random.permutation(len(y))
    held_out, train = np.split(order, [round(_TEST_SHARE * len(y))])
    problem = Problem(X[private][train], y[train], activation, loss, X[private][held_out], y[held_out])
    return problem, Weights(W, gaussian_head(width, head_scale, rng=random))


def _cache_folder() -> Path | None:
    """Where features are kept, unless there is no home."""
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("private-finetuning-dynamics")
    except RuntimeError:
        return None
    # earlier versions of platformdirs take a folder called "~" in the current one
    return folder if folder.is_absolute() else None


def _pretrained(public: Problem, start: Weights, cache: bool) -> FloatArray:
    """Features after pre-training, from the cache if they are there."""
    from langevin.solvers import gradient_flow

    schedule = Schedule.fft(time=_PRETRAINING_TIME)
    folder = _cache_folder() if cache else None
    if folder is None:
        return gradient_flow(public, start, schedule, dt=_PRETRAINING_DT).W
    content = hashlib.sha256(repr((schedule, _PRETRAINING_DT, public.activation)).encode())
    for array in (public.X, public.y, start.W, start.v):
        content.update(array.tobytes())
    path = folder / f"digits-{content.hexdigest()[:16]}.npy"
    try:
        W = np.load(path, allow_pickle=False)
        if W.shape == start.W.shape and np.isfinite(W).all():
            return W
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged: made anew
    W = gradient_flow(public, start, schedule, dt=_PRETRAINING_DT).W
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _atomic.replacing(path) as temporary:
            np.save(temporary, W, allow_pickle=False)
    except OSError:
        pass  # a cache that cannot be written is no reason to fail
    return W
