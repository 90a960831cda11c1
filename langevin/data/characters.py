"""Glyphs: synthetic characters, with features pre-trained on other classes of them."""

from __future__ import annotations

import numpy as np

from langevin.data.drawing import Style, drawn, figures, stream
from langevin.data.initial import gaussian_features, gaussian_head
from langevin.data.pretrained import pretrained
from langevin.model.losses import LOSSES
from langevin.model.problem import Problem
from langevin.model.weights import Weights
from langevin.support import validate
from langevin.support.rng import RNG, generator
from langevin.support.validate import FloatArray

SIZE, PUBLIC_CLASSES, PUBLIC_SAMPLES = 16, 20, 1600


def glyphs(
    classes: int = 2,
    width: int = 512,
    *,
    samples: int = 1000,
    test_samples: int | None = None,
    activation: str = "relu",
    loss: str = "logistic",
    head_scale: float | None = None,
    rng: RNG = 0,
    cache: bool = True,
) -> tuple[Problem, Weights]:
    """Images of synthetic characters, and features pre-trained on other characters.

    The images are those of `langevin.data.drawing` in 16 by 16 pixels. 1,600 public images of 20 classes,
    none of which is private, pre-train a network of the same width by the noiseless gradient flow of the
    softmax loss. Its head is discarded for a Gaussian one. Inputs are centred and scaled by the public images
    alone.

    Parameters
    ----------
    classes : int
        Number of private classes: two with labels -1 and +1, or any number from two with the losses
        ``"softmax"`` and ``"ovr"``.
    width : int
        ``h``.
    samples, test_samples : int
        Private images for training and held out (by default as many), class after class in turn.
    activation, loss
        As in `Problem`; the pre-training uses the same activation.
    head_scale : float, optional
        ``beta`` of the new head; ``1 / sqrt(width)`` by default.
    rng : int, Generator or None
        Draws the images, the pre-training's start and the new head.
    cache : bool
        Keep the pre-trained features in the user's cache folder.

    Returns
    -------
    problem : Problem
        With held-out points.
    weights : Weights

    Raises
    ------
    ValueError
        On fewer samples than classes, or more than two classes with a loss of one output.
    """
    numbered = LOSSES[validate.choice("loss", loss, LOSSES)].classes
    classes, width = validate.integer("classes", classes, 2), validate.integer("width", width, 1)
    if classes > 2 and not numbered:
        raise ValueError(
            f"classes must be 2 with loss {loss!r}, got {classes}: take loss='softmax' or 'ovr' for more"
        )
    samples = validate.integer("samples", samples, classes)
    test_samples = samples if test_samples is None else validate.integer("test_samples", test_samples, 1)
    random = generator(rng, "glyphs")
    seed, style = int(random.integers(2**63)), Style()
    # private and public figures in turn, so that the former do not depend on the number of the latter
    known = figures(2 * max(classes, PUBLIC_CLASSES), style, stream(seed, "figures", 0))

    def part(name: str, count: int, own: np.ndarray) -> tuple[FloatArray, np.ndarray]:
        labels = np.arange(count) % len(own)
        images = drawn(own, labels, SIZE, style, seed, name)
        return images.reshape(count, -1).astype(np.float64), labels

    public, numbers = part("public", PUBLIC_SAMPLES, known[1 : 2 * PUBLIC_CLASSES : 2])
    train, test = (
        part(name, count, known[: 2 * classes : 2])
        for name, count in (("train", samples), ("test", test_samples))
    )
    mean = public.mean(axis=0)
    scale = np.sqrt(((public - mean) ** 2).sum(axis=1).mean())
    start = Weights(
        gaussian_features(width, SIZE**2, scale=(SIZE**2 / width) ** 0.5, rng=random),
        gaussian_head(width, outputs=PUBLIC_CLASSES, rng=random),
    )
    task = Problem((public - mean) / scale, numbers, activation, "softmax")
    W = pretrained(task, start, name="glyphs" if cache else None)
    y, y_test = (labels if numbered else 2.0 * labels - 1 for _, labels in (train, test))
    X, X_test = ((images - mean) / scale for images, _ in (train, test))
    names = [f"glyph {2 * k}" for k in range(classes)] if numbered else None
    problem = Problem(X, y, activation, loss, X_test, y_test, classes=names)
    return problem, Weights(W, gaussian_head(width, head_scale, outputs=problem.outputs_dim, rng=random))
