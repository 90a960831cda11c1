"""Some of scikit-learn's digits, with features pre-trained on the others."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from langevin.data.initial import gaussian_features, gaussian_head
from langevin.data.pretrained import pretrained
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.rng import RNG, generator
from langevin.support.validate import FloatArray

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
    W = pretrained(public, start, name="digits" if cache else None)

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
