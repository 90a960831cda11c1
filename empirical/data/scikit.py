"""scikit-learn's digits as a private task with a public part."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from empirical.data.images import Images, Part
from empirical.data.shift import Shift
from empirical.data.splits import of_classes, or_default, stratified
from langevin.support import validate
from langevin.support.rng import RNG, generator

# of scikit-learn's 1,797 digits: public, and held out for the test
_DIGITS, _DIGITS_PUBLIC, _DIGITS_TEST = 1797, 400, 300


def digits(
    shift: Shift | None = None,
    *,
    classes: Sequence[int] = tuple(range(10)),
    public: int | None = None,
    test: int | None = None,
    rng: RNG = 0,
) -> Images:
    """Digits of scikit-learn [1]_, 8 by 8 pixels: upright public ones, and private ones under a shift.

    All ten classes split by default into 400 public, 1,097 private and 300 test images. Each part has the
    classes in the same shares, and no image is in two parts.

    Parameters
    ----------
    shift : Shift, optional
        Shift of the private images, training and test; none by default. ``Shift(rotation=20)`` and
        ``Shift(gain=0.4, offset=0.3)`` are mild ones.
    classes : sequence of int
        Which digits, at least two; they are labelled from 0 in this order.
    public, test : int, optional
        Number of images in these parts, at least one of each class, or ``public=0`` for no public part; by
        default the shares above of those there are. The rest is for private training.
    rng : int, Generator or None
        Draws the split (SPEC 7).

    Returns
    -------
    Images
        One channel, intensities in sixteenths.

    Raises
    ------
    ValueError, TypeError
        On digits that are none, or parts that leave too few images for another.

    References
    ----------
    .. [1] Alpaydin, Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository,
       1998; its test set, as in `sklearn.datasets.load_digits`.

    Examples
    --------
    >>> task = digits(Shift(rotation=20))
    >>> len(task.public), len(task.train), len(task.test), task.train.shape
    (400, 1097, 300, (1, 8, 8))
    """
    shift = or_default("shift", shift, Shift)
    chosen = [int(c) for c in classes]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(10)):
        raise ValueError(f"classes must be two or more different digits from 0 to 9, got {classes!r}")
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    places, labels = of_classes(np.asarray(digit, dtype=np.int64), chosen)
    total, kinds = len(labels), len(chosen)
    public = round(total * _DIGITS_PUBLIC / _DIGITS) if public is None else public
    test = round(total * _DIGITS_TEST / _DIGITS) if test is None else test
    most = total - kinds
    if validate.integer("public", public, 0) and not kinds <= public <= most - kinds:
        raise ValueError(f"public must be 0 or lie from {kinds} to {most - kinds}, got {public!r}")
    if not kinds <= validate.integer("test", test, 0) <= most - public:
        raise ValueError(
            f"test must lie from {kinds} to {most - public}, which leaves an image of each of the {kinds} "
            f"classes to train on, got {test!r}"
        )
    images = (np.asarray(pixels)[places] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    whole = Part(images, labels, [str(c) for c in chosen])
    parts = stratified(whole.labels, [public, test], generator(rng, "digits"))
    for_public, for_test, for_train = (whole.take(part) if len(part) else None for part in parts)
    assert for_test is not None
    assert for_train is not None
    return Images(for_train.shifted(shift), for_test.shifted(shift), for_public, shift, "digits")
