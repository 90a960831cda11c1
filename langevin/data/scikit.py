"""Some of scikit-learn's digits, with features pre-trained on the others."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from langevin.data.initial import gaussian_features, gaussian_head
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.schedule import Schedule
from langevin.model.weights import Weights
from langevin.store import atomic
from langevin.support import validate
from langevin.support.rng import RNG, generator
from langevin.support.validate import FloatArray

# pre-training on the public digits: even against odd, to a plateau of the accuracy
_PRETRAINING_TIME, _PRETRAINING_DT = 0.4, 1e-3
_TEST_SHARE = 0.2
# of the private digits' images, where fewer than two digits are left to pre-train on
_PUBLIC_SHARE = 0.25


def digits(
    classes: Sequence[int] = (3, 8),
    width: int = 512,
    *,
    activation: str = "relu",
    loss: str = "logistic",
    head_scale: float | None = None,
    rng: RNG = 0,
    cache: bool = True,
) -> tuple[Problem, Weights]:
    """Some of scikit-learn's digits, and features pre-trained on the others.

    The public digits pre-train a network of the same width on a task of their own, even against odd (if all
    are even or all odd, every second one against the others), by the noiseless gradient flow of the logistic
    loss. Its head is discarded for a Gaussian one. Inputs are centred and scaled by the public images alone.
    A fifth of the private images is held out. The features are learnt, but need not suit the private digits:
    random ones of the same size often probe better.

    Nine or ten private digits leave fewer than two others to pre-train on. Then a random quarter of their
    images is public as well.

    Parameters
    ----------
    classes : sequence of int
        The private digits: two, labelled -1 and +1, or with the losses ``"softmax"`` and ``"ovr"`` from two
        to ten, numbered in this order.
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
    chosen = _chosen(classes, loss)
    width = validate.integer("width", width, 1)
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    random = generator(rng, "digits")
    private = np.isin(labels, chosen)
    if split(chosen):
        private &= generator(rng, "public digits").uniform(size=len(labels)) >= _PUBLIC_SHARE
    mean = images[~private].mean(axis=0)
    scale = np.sqrt(((images[~private] - mean) ** 2).sum(axis=1).mean())
    X = (images - mean) / scale

    start = Weights(
        gaussian_features(width, X.shape[1], scale=(X.shape[1] / width) ** 0.5, rng=random),
        gaussian_head(width, rng=random),
    )
    public = Problem(X[~private], _halves(np.asarray(labels)[~private]), activation)
    W = _pretrained(public, start, cache)

    numbered = LOSSES[loss].classes
    number = np.argmax(labels[private][:, None] == np.array(chosen), axis=1).astype(np.int64)
    y = number if numbered else np.where(number == 1, 1.0, -1.0)
    order = random.permutation(len(y))
    held_out, train = np.split(order, [round(_TEST_SHARE * len(y))])
    problem = Problem(
        *(X[private][train], y[train], activation, loss, X[private][held_out], y[held_out]),
        classes=chosen if numbered else None,
    )
    head = gaussian_head(width, head_scale, outputs=problem.outputs_dim, rng=random)
    return problem, Weights(W, head)


def split(classes: Sequence[int]) -> bool:
    """Tell whether some images of these private digits are public, because fewer than two others are left."""
    return len(classes) > 8


def _chosen(classes: Sequence[int], loss: str) -> tuple[int, ...]:
    """Return the private digits if they are different ones, and not more than the loss allows."""
    chosen = tuple(validate.sequence("classes", classes, int))
    several = LOSSES[validate.choice("loss", loss, LOSSES)].classes
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(10)):
        count = "two to ten" if several else "two"
        raise ValueError(f"classes must be {count} different digits from 0 to 9, got {chosen!r}")
    if len(chosen) > 2 and not several:
        raise ValueError(
            f"classes must be two different digits with loss {loss!r}, got {chosen!r}: take "
            "loss='softmax' or 'ovr' for more"
        )
    return chosen


def _halves(labels: np.ndarray) -> FloatArray:
    """Labels of the public task: +1 for even digits, or for every second one if all are even or all odd."""
    digits = np.unique(labels)
    even = labels % 2 == 0
    return np.where(
        even if 0 < even.sum() < len(labels) else np.searchsorted(digits, labels) % 2 == 0, 1.0, -1.0
    )


def _cache_folder() -> Path | None:
    """Return the folder of cached features; None without a home directory."""
    from platformdirs import user_cache_path

    try:
        folder = user_cache_path("private-finetuning-dynamics")
    except RuntimeError:
        return None
    # earlier versions of platformdirs take a folder called "~" in the current one
    return folder if folder.is_absolute() else None


def _pretrained(public: Problem, start: Weights, cache: bool) -> FloatArray:
    """Return features after pre-training, from the cache if available."""
    from langevin.solvers.zeroth import gradient_flow

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
        pass  # missing or damaged: made again
    W = gradient_flow(public, start, schedule, dt=_PRETRAINING_DT).W
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary:
            np.save(temporary, W, allow_pickle=False)
    except OSError:
        pass  # a cache that cannot be written is no reason to fail
    return W
