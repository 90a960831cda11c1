"""The digits of scikit-learn: how they are split, shifted and refused."""

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from empirical import Shift, digits
from tests.empirical.data.published import rows


def test_digits_split_into_the_usual_numbers():
    task = digits()
    assert task.public is not None
    assert (len(task.public), len(task.train), len(task.test)) == (400, 1097, 300)
    everything = load_digits(return_X_y=True)[0].astype(np.float32) / 16
    # disjoint, and nothing is lost
    assert rows(task.public) | rows(task.train) | rows(task.test) == {
        row.tobytes() for row in everything.reshape(-1, 8, 8)
    }
    assert len(everything) == len(rows(task.public)) + len(rows(task.train)) + len(rows(task.test))
    counts = np.bincount(load_digits(return_X_y=True)[1])
    for part in (task.public, task.train, task.test):
        assert abs(part.counts - counts * len(part) / 1797).max() < 2


def test_digits_keep_their_labels():
    images, labels = load_digits(return_X_y=True)
    label_of = {row.astype(np.float32).tobytes(): label for row, label in zip(images, labels, strict=True)}
    task = digits(classes=(7, 1, 4))
    assert task.test.classes == ("7", "1", "4")
    for part in (task.public, task.train, task.test):
        assert part is not None
        found = [label_of[(16 * image).tobytes()] for image in part.images]
        assert found == [(7, 1, 4)[label] for label in part.labels]


def test_digits_depend_on_the_seed_alone():
    first, again, other = digits(rng=1), digits(rng=1), digits(rng=2)
    assert (first.train.images == again.train.images).all()
    assert rows(first.train) != rows(other.train)
    # the split is the same under every shift: methods and shifts are compared on the same images
    shifted = digits(Shift(rotation=20, gain=0.4, offset=0.3), rng=1)
    assert (shifted.train.labels == first.train.labels).all()
    assert rows(shifted.public) == rows(first.public)
    for name in ("train", "test"):
        expected = 0.4 * Shift(rotation=20)(getattr(first, name).images) + 0.3
        np.testing.assert_allclose(getattr(shifted, name).images, expected, atol=1e-6)


def test_digits_are_told_apart_by_their_pixels_and_shuffled_ones_are_not():
    task = digits()

    def score(labels: np.ndarray) -> float:
        model = KNeighborsClassifier(21).fit(task.train.images.reshape(-1, 64), labels)
        return float(model.score(task.test.images.reshape(-1, 64), task.test.labels))

    assert score(task.train.labels) > 0.93
    shuffled = np.random.default_rng(0).permutation(task.train.labels)
    assert score(shuffled) < 0.1 + 4 * np.sqrt(0.09 / 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(classes=(3,)), "two or more different digits"),
        (dict(classes=(3, 3)), "two or more different digits"),
        (dict(classes=(3, 10)), "two or more different digits"),
        (dict(public=1790), "public must be 0 or lie from 10 to 1777, got 1790"),
        (dict(public=5), "public must be 0 or lie from 10"),
        (dict(test=5), "test must lie from 10 to 1387"),
        (dict(test=1388), "leaves an image of each of the 10 classes"),
    ],
)
def test_digits_that_cannot_be_split_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        digits(**arguments)


def test_digits_without_a_public_part():
    task = digits(classes=(0, 1), public=0, test=60)
    assert task.public is None
    assert len(task.train) == 300
