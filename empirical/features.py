"""Quality of a body's features during fine-tuning: nearest neighbours, similarity to the start, collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from empirical.images import Images, Labels, stratified
from langevin import _validate
from langevin._random import RNG, generator
from langevin._validate import FloatArray

Features = NDArray[np.float32]
NEIGHBOURS = 20


@dataclass(frozen=True)
class Measure:
    """Description of a measure of features.

    Attributes
    ----------
    meaning : str
        In a line.
    units : str
        "1" for shares, cosines and ratios.
    """

    meaning: str
    units: str = "1"


# in the order in which `FeatureWatch` returns them
MEASURES = {
    "knn_accuracy": Measure(
        "share of test images classified correctly by their nearest training images in feature space"
    ),
    "cka": Measure("linear centred kernel alignment of test features with those at the start"),
    "cosine": Measure("mean cosine of a test image's features with those at the start"),
    "nc1": Measure("within-class over between-class variation, tr(S_W S_B^+) / C; 0: collapsed"),
    "nc2_norms": Measure("coefficient of variation of the norms of centred class means; 0: collapsed"),
    "nc2_angles": Measure("mean |cos + 1 / (C - 1)| of pairs of centred class means; 0: collapsed"),
    "nc3": Measure("squared distance of head and centred class means, both of norm 1; 0: collapsed"),
    "nc4": Measure("share of images whose nearest class mean is not the head's choice; 0: collapsed"),
}


def embed(
    body: nn.Module,
    images: NDArray[np.float32] | torch.Tensor,
    *,
    batch: int = 1024,
    device: str | torch.device | None = None,
) -> Features:
    """Features of images, in evaluation mode and without gradients.

    Parameters
    ----------
    body : nn.Module
        Its modules are left in the modes that they were in.
    images : ndarray or Tensor of float32, shape (n, channels, height, width)
        Normalised as in the body's training.
    batch : int
        Images at once.
    device : str or torch.device, optional
        Where the body is; by default where its first parameter is.

    Returns
    -------
    ndarray of float32, shape (n, features)

    Examples
    --------
    >>> embed(nn.Sequential(nn.Flatten(), nn.ReLU()), -np.ones((3, 1, 2, 2), np.float32)).max()
    np.float32(0.0)
    """
    batch = _validate.integer("batch", batch, 1)
    if images.ndim != 4 or not len(images):
        raise ValueError(
            f"images must have the shape (n, channels, height, width) with n >= 1, got {tuple(images.shape)}"
        )
    if device is None:
        parameter = next(body.parameters(), None)
        device = "cpu" if parameter is None else parameter.device
    modes = {module: module.training for module in body.modules()}
    body.eval()
    try:
        with torch.no_grad():
            blocks = []
            for first in range(0, len(images), batch):
                block = images[first : first + batch]
                # torch warns of read-only arrays, which `tensor` copies
                block = block if isinstance(block, torch.Tensor) else torch.tensor(block)
                blocks.append(body(block.to(device)).float().cpu())
            return torch.cat(blocks).numpy()
    finally:
        for module, mode in modes.items():
            module.training = mode


def knn_accuracy(
    train: ArrayLike,
    train_labels: Labels,
    test: ArrayLike,
    test_labels: Labels,
    *,
    neighbours: int = NEIGHBOURS,
) -> float:
    """Accuracy of the vote of the nearest training points by cosine.

    Features' lengths say how sure a net is rather than of what, so the angle is what is compared, as is usual
    for features [1]_. Pixels and random nets may also reach a high one: report theirs next to it. (Raw pixels
    of glyphs of 24 pixels have .87 to .90 by cosine, which passes over their contrast, and .79 to .83 by
    distance; for trained nets the two differ by .02 at most.)

    Parameters
    ----------
    train, test : array_like, shape (n, features), (m, features)
    train_labels, test_labels : ndarray of int, shape (n,), (m,)
    neighbours : int
        Voters of equal weight; all training points where there are fewer.

    Returns
    -------
    float

    References
    ----------
    .. [1] Wu, Xiong, Yu, Lin, "Unsupervised feature learning via non-parametric instance discrimination",
       CVPR 2018.

    Examples
    --------
    >>> knn_accuracy([[1, 0], [0, 1]], np.array([0, 1]), [[3, 1], [1, 9]], np.array([0, 1]), neighbours=1)
    1.0
    """
    neighbours = _validate.integer("neighbours", neighbours, 1)
    known, asked = unit_rows(matrix("train", train)), unit_rows(matrix("test", test))
    # of unit vectors, near is near by angle
    classifier = KNeighborsClassifier(min(neighbours, len(known)), algorithm="brute")
    classifier.fit(known, train_labels)
    return float((classifier.predict(asked) == test_labels).mean())


def linear_cka(a: ArrayLike, b: ArrayLike) -> float:
    """Linear centred kernel alignment of two sets of features of the same samples [1]_.

    ``|B^T A|^2 / (|A^T A| |B^T B|)`` in Frobenius norms, columns centred; from 0 to 1. It does not change
    under rotations, reflections and one common scale of either. Independent features of ``n`` samples have
    about ``sqrt(p q) / n`` rather than 0.

    Parameters
    ----------
    a, b : array_like, shape (n, p), (n, q)

    Returns
    -------
    float
        nan if either is constant over the samples.

    References
    ----------
    .. [1] Kornblith, Norouzi, Lee, Hinton, "Similarity of neural network representations revisited", ICML
       2019.

    Examples
    --------
    >>> a = np.random.default_rng(0).normal(size=(50, 3))
    >>> round(linear_cka(a, -2 * a[:, ::-1]), 12)
    1.0
    """
    x, y = matrix("a", a), matrix("b", b)
    _validate.same_length("a", x, "b", y)
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    scale = np.sqrt(_overlap(x, x) * _overlap(y, y))
    return float(_overlap(x, y) / scale) if scale > 0 else float("nan")


def _overlap(x: FloatArray, y: FloatArray) -> float:
    """``|y^T x|^2``, in the cheaper of two ways."""
    if max(x.shape[1], y.shape[1]) > len(x):
        return float(((x @ x.T) * (y @ y.T)).sum())
    return float(((y.T @ x) ** 2).sum())


def cosine_similarity(a: ArrayLike, b: ArrayLike) -> float:
    """Mean cosine of each sample's two feature vectors; one of zeros counts as 0.

    Parameters
    ----------
    a, b : array_like, shape (n, features)

    Returns
    -------
    float

    Examples
    --------
    >>> cosine_similarity([[1, 0], [0, 2]], [[3, 0], [1, 0]])
    0.5
    """
    x, y = matrix("a", a), matrix("b", b)
    if x.shape != y.shape:
        raise ValueError(f"a and b must have the same shape, got {x.shape} and {y.shape}")
    return float((unit_rows(x) * unit_rows(y)).sum(axis=1).mean())


class Collapse(NamedTuple):
    """Measures of neural collapse, all 0 where it is complete; see `neural_collapse`."""

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc3: float
    nc4: float


def neural_collapse(features: ArrayLike, labels: Labels, head: nn.Linear | None = None) -> Collapse:
    """How far features are from neural collapse [1]_: classes to points, points to a simplex, head to both.

    With class means ``mu_c``, their mean ``mu``, and the matrix ``M`` of rows ``mu_c - mu``:

    - ``nc1``: ``tr(S_W S_B^+) / C`` of the covariances within and between classes;
    - ``nc2_norms``: standard deviation over mean of the norms ``|mu_c - mu|``;
    - ``nc2_angles``: mean over pairs of classes of ``|cos(mu_c - mu, mu_d - mu) + 1 / (C - 1)|``;
    - ``nc3``: ``|W / |W| - M / |M||^2`` in Frobenius norms, from 0 to 4, of the head's weights ``W``;
    - ``nc4``: share of samples whose nearest ``mu_c`` is not the class that the head chooses.

    Every class weighs the same in ``mu`` and ``S_B``; in ``S_W``, every sample does.

    Parameters
    ----------
    features : array_like, shape (n, p)
        Of training samples.
    labels : ndarray of int, shape (n,)
        From 0; each class has a sample.
    head : nn.Linear, optional
        From ``p`` features to the classes.

    Returns
    -------
    Collapse
        nan for what is not defined: ``nc3`` and ``nc4`` without a head or with one of zero weights, and what
        divides by the spread of equal class means.

    References
    ----------
    .. [1] Papyan, Han, Donoho, "Prevalence of neural collapse during the terminal phase of deep learning
       training", PNAS 117 (2020).

    Examples
    --------
    >>> simplex = np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]
    >>> collapse = neural_collapse(simplex, np.arange(8) % 4)
    >>> [round(value, 12) for value in collapse[:3]]
    [0.0, 0.0, 0.0]
    """
    x = matrix("features", features)
    labels = _validate.plain("labels", labels)
    if labels.shape != (len(x),):
        raise ValueError(f"labels must have the shape ({len(x)},), one for each row, got {labels.shape}")
    classes = int(labels.max()) + 1 if head is None else head.out_features
    counts = np.bincount(labels, minlength=classes)
    if len(counts) > classes or classes < 2 or not counts.all():
        raise ValueError(
            f"labels must hold each of at least two classes, and no other than the head's, got counts "
            f"{counts.tolist()} for {classes} class(es): use more samples, or relabel from 0"
        )
    means = np.array([x[labels == label].mean(axis=0) for label in range(classes)])
    centred = means - means.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    nan = float("nan")
    if not norms.any():
        return Collapse(nan, nan, nan, nan, nan)
    _, singular, directions = np.linalg.svd(centred, full_matrices=False)
    kept = singular > singular[0] * max(centred.shape) * np.finfo(float).eps
    # S_B = M^T M / C
    within = (x - means[labels]) @ directions[kept].T / singular[kept]
    unit = unit_rows(centred)
    cosines = (unit @ unit.T)[np.triu_indices(classes, 1)]
    nc3 = nc4 = nan
    if head is not None:
        W = head.weight.detach().double().cpu().numpy()
        bias = 0.0 if head.bias is None else head.bias.detach().double().cpu().numpy()
        if W.any():
            nc3 = float(((W / np.linalg.norm(W) - centred / np.linalg.norm(centred)) ** 2).sum())
            # |x|^2 is the same for all means
            nearest = ((means**2).sum(axis=1) - 2 * x @ means.T).argmin(axis=1)
            nc4 = float((nearest != (x @ W.T + bias).argmax(axis=1)).mean())
    return Collapse(
        nc1=float((within**2).sum() / len(x)),
        nc2_norms=float(norms.std() / norms.mean()),
        nc2_angles=float(abs(cosines + 1 / (classes - 1)).mean()),
        nc3=nc3,
        nc4=nc4,
    )


class FeatureWatch:
    """Measures of a body's features on a fixed part of a private task, against those at the start.

    It reads private images without noise: for study, and never for release or for choosing anything in
    training.

    Parameters
    ----------
    task : Images
        With a public part, by which images are normalised.
    body : nn.Module
        As it is before fine-tuning; not kept.
    train, test : int
        Number of images of each part, or all that there are, with the classes' shares of the whole.
    random : nn.Module, optional
        A body of the same architecture with fresh weights, for `baselines`.
    rng : int, Generator or None
        Draws the images (SPEC 7).

    Attributes
    ----------
    baselines : mapping of str to float
        Accuracies by neighbours of "pixels", of "random" if it was given, and at the start, "pretrained".

    Examples
    --------
    >>> from empirical import digits
    >>> body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    >>> watch = FeatureWatch(digits(), body, train=100, test=50)
    >>> measures = watch(body)
    >>> list(measures) == list(MEASURES), round(measures["cka"], 6)
    (True, 1.0)
    """

    baselines: Mapping[str, float]

    def __init__(
        self,
        task: Images,
        body: nn.Module,
        *,
        train: int = 2000,
        test: int = 1000,
        random: nn.Module | None = None,
        rng: RNG = 0,
    ) -> None:
        streams = generator(rng, "watched images").spawn(2)
        parts = []
        for part, name, count, stream in zip(
            (task.train, task.test), ("train", "test"), (train, test), streams, strict=True
        ):
            count = min(_validate.integer(name, count, len(part.classes)), len(part))
            chosen = part.take(np.sort(stratified(part.labels, [count], stream)[0]))
            parts.append((torch.from_numpy(task.normalised(chosen)), chosen.labels))
        (self._train, self._train_labels), (self._test, self._test_labels) = parts
        self._start = embed(body, self._test)
        accuracies = {"pixels": self._accuracy(*(images.flatten(1).numpy() for images, _ in parts))}
        if random is not None:
            accuracies["random"] = self._accuracy(embed(random, self._train), embed(random, self._test))
        accuracies["pretrained"] = self._accuracy(embed(body, self._train), self._start)
        self.baselines = MappingProxyType(accuracies)

    def _accuracy(self, train: Features, test: Features) -> float:
        return knn_accuracy(train, self._train_labels, test, self._test_labels)

    def __call__(self, body: nn.Module, head: nn.Linear | None = None) -> dict[str, float]:
        """Return every measure in `MEASURES` of ``body`` and, for the last two, of ``head``."""
        train, test = embed(body, self._train), embed(body, self._test)
        measures = {
            "knn_accuracy": self._accuracy(train, test),
            "cka": linear_cka(test, self._start),
            "cosine": cosine_similarity(test, self._start),
        }
        self._last = train, measures
        return self.again(head)

    def again(self, head: nn.Linear | None = None) -> dict[str, float]:
        """Return the measures of the last call's body, unchanged since, with another head."""
        train, measures = self._last
        return measures | neural_collapse(train, self._train_labels, head)._asdict()


def unit_rows(x: FloatArray) -> FloatArray:
    """Rows over their norms; rows of zeros stay."""
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    return x / np.where(norms > 0, norms, 1)


def matrix(name: str, value: ArrayLike) -> FloatArray:
    """``value`` as a matrix of floats, or an error that names it."""
    return _validate.array(name, value, 2)
