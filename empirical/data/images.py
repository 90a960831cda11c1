"""Labelled images: the private task's training and test part, the public part, and the shift between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from empirical.data.shift import Bytes, Pixels, Shift
from empirical.data.splits import Labels, class_numbers, of_classes
from langevin.support import validate
from langevin.support.rng import RNG, generator

# values of images that are worked on at once
_BLOCK = 2**24


@dataclass(frozen=True, eq=False)
class Part:
    """Images with labels.

    Parameters
    ----------
    images : array_like, shape (n, channels, height, width)
        Intensities in [0, 1], kept as read-only float32, or bytes, of which 255 is 1, kept as they are;
        without a copy where they are either already (`torch.tensor` copies them, `torch.as_tensor` would
        warn).
    labels : array_like of int, shape (n,)
        From 0 to ``len(classes) - 1``.
    classes : sequence of str
        The classes' names, all different.

    Raises
    ------
    ValueError, TypeError
        On shapes that do not fit, intensities outside [0, 1], labels without a class, names given twice.

    Examples
    --------
    >>> part = Part(np.zeros((4, 1, 8, 8)), [0, 1, 0, 1], ["cat", "dog"])
    >>> part.shape, part.counts.tolist()
    ((1, 8, 8), [2, 2])
    """

    images: Pixels | Bytes
    labels: Labels
    classes: tuple[str, ...]

    def __init__(self, images: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> None:
        pixels: NDArray[Any] = np.ascontiguousarray(validate.plain("images", images))
        if pixels.dtype.kind != "f" and pixels.dtype != np.uint8:
            raise TypeError(
                f"images must hold floats in [0, 1] or bytes (uint8), got {pixels.dtype}: convert them"
            )
        kept = np.uint8 if pixels.dtype == np.uint8 else np.float32
        pixels = pixels.astype(kept, copy=False).view()
        if pixels.ndim != 4 or pixels.size == 0:
            raise ValueError(
                f"images must have the shape (n, channels, height, width), got {pixels.shape}: "
                "give grey images an axis of one channel"
            )
        self._check_range(pixels)
        numbers = validate.plain("labels", labels)
        if numbers.dtype.kind not in "iu" or numbers.shape != (len(pixels),):
            raise ValueError(
                f"labels must be {len(pixels)} whole numbers, one for each image, got {numbers.dtype} of "
                f"shape {numbers.shape}"
            )
        if isinstance(classes, str):
            raise TypeError(f"classes must be a sequence of names, got {classes!r}")
        names = tuple(str(name) for name in classes)
        if len(set(names)) < len(names):
            raise ValueError(f"classes must have different names, got {names}")
        if numbers.min() < 0 or numbers.max() >= len(names):
            raise ValueError(
                f"labels must lie from 0 to {len(names) - 1}, the number of classes less 1, got values from "
                f"{numbers.min()} to {numbers.max()}"
            )
        numbers = np.array(numbers, dtype=np.int64)
        pixels.flags.writeable = numbers.flags.writeable = False
        for name, value in dict(images=pixels, labels=numbers, classes=names).items():
            object.__setattr__(self, name, value)

    @staticmethod
    def _check_range(pixels: Pixels | Bytes) -> None:
        if pixels.dtype == np.uint8:
            return
        low, high = pixels.min(), pixels.max()
        if not (low >= 0 and high <= 1):  # not a number: neither
            raise ValueError(
                f"images must lie in [0, 1], got values from {low:g} to {high:g}: rescale them, and "
                "normalise with Images.normalised"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of shape {self.shape}, {len(self.classes)} classes)"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    @property
    def counts(self) -> Labels:
        """Number of images of each class, shape (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def take(self, indices: ArrayLike) -> Part:
        """Return the images at ``indices``, in that order; the classes stay."""
        chosen = validate.plain("indices", indices)
        return type(self)(self.images[chosen], self.labels[chosen], self.classes)

    def subsample(self, per_class: int, *, rng: RNG = 0) -> Part:
        """Return ``per_class`` images of each class, drawn without replacement, in their order here.

        Raises
        ------
        ValueError
            If a class has fewer images.
        """
        per_class = validate.integer("per_class", per_class, 1)
        scarce = int(np.argmin(self.counts))
        if self.counts[scarce] < per_class:
            raise ValueError(
                f"per_class must be at most {self.counts[scarce]}, the number of images of class "
                f"{self.classes[scarce]!r}, got {per_class}"
            )
        random = generator(rng, "subsample of images")
        order = random.permutation(len(self))
        kept = [order[self.labels[order] == label][:per_class] for label in range(len(self.classes))]
        return self.take(np.sort(np.concatenate(kept)))

    def only(self, classes: Sequence[str]) -> Part:
        """Return the images of some classes, labelled from 0 in the order given.

        Raises
        ------
        ValueError
            If a name is not one of this part's, or given twice.
        """
        chosen = class_numbers("classes", classes, self.classes)
        places, labels = of_classes(self.labels, chosen)
        return type(self)(self.images[places], labels, [self.classes[i] for i in chosen])

    def fixed_scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel without a public part: ``x`` becomes ``2 x - 1``."""
        half = np.full(self.shape[0], 0.5)
        return half, half

    def shifted(self, shift: Shift) -> Part:
        """Return the same images under a shift."""
        return self if shift.is_none else Part(shift(floats(self.images)), self.labels, self.classes)


@dataclass(frozen=True, eq=False)
class Images:
    """A private task and its public images, which may be used for training without noise.

    Parameters
    ----------
    train, test : Part
        Of the private task: the same classes, images of the same shape. The shift is applied already.
    public : Part or None
        For pre-training and for normalisation: images of the same shape; its classes may be others.
    shift : Shift
        What was applied to ``train`` and ``test``, and not to ``public``.
    name : str
        Where the images come from.

    Raises
    ------
    ValueError, TypeError
        If the parts do not fit together.

    Examples
    --------
    >>> part = Part(np.random.default_rng(0).uniform(size=(6, 1, 8, 8)), [0, 1] * 3, ["cat", "dog"])
    >>> task = Images(part.shifted(Shift(rotation=20)), part.shifted(Shift(rotation=20)), part)
    >>> task.subsample(train=2).normalised(task.train).shape
    (6, 1, 8, 8)
    """

    train: Part
    test: Part
    public: Part | None = None
    shift: Shift = Shift()  # noqa: RUF009
    name: str = "images"

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("test", self.test), ("public", self.public)):
            if not (isinstance(part, Part) or (name == "public" and part is None)):
                raise TypeError(f"{name} must be a Part(images, labels, classes), got {type(part).__name__}")
        if self.train.classes != self.test.classes:
            raise ValueError(
                f"train and test must have the same classes in the same order, got {self.train.classes} and "
                f"{self.test.classes}"
            )
        for name, part in (("test", self.test), ("public", self.public)):
            if part is not None and part.shape != self.train.shape:
                raise ValueError(
                    f"{name} must have images of the shape of train's, {self.train.shape}, got {part.shape}: "
                    "read both at the same size and number of channels"
                )

    def __repr__(self) -> str:
        public = "no public part" if self.public is None else f"{len(self.public)} public"
        return (
            f"Images({self.name!r}: {len(self.train)} train, {len(self.test)} test, {public}, "
            f"shape {self.train.shape}, {len(self.train.classes)} classes, {self.shift})"
        )

    def with_public(self, public: Part) -> Images:
        """Return the same task with another public part, as from another data set of the same shape."""
        return replace(self, public=public)

    def subsample(
        self,
        *,
        train: int | None = None,
        test: int | None = None,
        public: int | None = None,
        rng: RNG = 0,
    ) -> Images:
        """Return the same task with that many images of each class in each part; None keeps all.

        Each part has a stream of its own: what is kept of one does not depend on what is asked of another.

        Raises
        ------
        ValueError
            If a class has fewer, or there is no public part.
        """
        if public is not None and self.public is None:
            raise ValueError(f"public must be None, got {public!r}: there is no public part to subsample")
        streams = generator(rng, "subsample of parts").spawn(3)
        parts = (self.train, self.test, self.public)
        train_part, test_part, public_part = (
            part if part is None or count is None else part.subsample(count, rng=stream)
            for part, count, stream in zip(parts, (train, test, public), streams, strict=True)
        )
        assert train_part is not None
        assert test_part is not None
        return replace(self, train=train_part, test=test_part, public=public_part)

    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel over the public part.

        Of the public part only: those of private images would be a release of private data that no step of
        DP-SGD accounts for.

        Returns
        -------
        mean, std : ndarray, shape (channels,)

        Raises
        ------
        ValueError
            If there is no public part, or one of its channels is constant.
        """
        if self.public is None:
            raise ValueError(
                "a public part is needed to normalise by, got None: attach images with with_public, or give "
                "the body an attribute scale, the numbers that it was pre-trained with"
            )
        images = self.public.images
        step = max(1, _BLOCK // images[0].size)
        blocks = [images[first : first + step] for first in range(0, len(images), step)]
        pixels = images.size / images.shape[1]
        mean = sum(floats(b).sum(axis=(0, 2, 3), dtype=np.float64) for b in blocks) / pixels
        square = sum(((floats(b) - mean[:, None, None]) ** 2).sum(axis=(0, 2, 3)) for b in blocks) / pixels
        if not (square > 0).all():
            raise ValueError(
                f"public must vary in every channel, got standard deviations {np.sqrt(square).tolist()}: "
                "drop the constant channel"
            )
        return np.asarray(mean), np.sqrt(square)

    def normalised(self, part: Part) -> Pixels:
        """``(x - mean) / std`` of a part's images, by the public part's `statistics`; a new array."""
        return normalised(part.images, *self.statistics())

    def scale(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation of each channel to fine-tune with: the public part's, if any."""
        return self.train.fixed_scale() if self.public is None else self.statistics()


def floats(images: NDArray[Any]) -> Pixels:
    """Intensities in [0, 1]: those of bytes are new, others are returned as they are."""
    return np.divide(images, 255, dtype=np.float32) if images.dtype == np.uint8 else images


def normalised(images: NDArray[Any], mean: NDArray[np.float64], std: NDArray[np.float64]) -> Pixels:
    """``(x - mean) / std``, channel by channel; a new array."""
    out = floats(images) - mean.astype(np.float32)[:, None, None]
    out /= std.astype(np.float32)[:, None, None]
    return out
