"""Glyphs: reproducible, new classes for the private task, neither trivial nor hopeless."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from empirical import Part, Shift, Style, glyphs
from langevin.data.drawing import figures as draw_figures
from langevin.data.drawing import ink


def small(**changes):
    return glyphs(
        **{
            **dict(size=16, classes=4, public_classes=6, train=40, test=20, public=60, rng=3),
            **changes,
        }
    )


def nearest(train: Part, test: Part, labels: np.ndarray | None = None) -> float:
    """Accuracy of the 21 nearest neighbours in raw pixels."""
    flat = [part.images.reshape(len(part), -1) for part in (train, test)]
    model = KNeighborsClassifier(21).fit(flat[0], train.labels if labels is None else labels)
    return float(model.score(flat[1], test.labels))


def test_equal_seeds_give_equal_bits_and_others_do_not():
    first, again, other = small(), small(), small(rng=4)
    for name in ("train", "test", "public"):
        assert (getattr(first, name).images == getattr(again, name).images).all()
        assert (getattr(first, name).images != getattr(other, name).images).any(axis=(1, 2, 3)).all()
    generator = small(rng=np.random.default_rng(5))
    assert (generator.train.images == small(rng=np.random.default_rng(5)).train.images).all()


def test_more_images_leave_the_first_ones_as_they_were():
    few, many = small(), small(train=700, public=300, test=300)
    assert (many.train.images[:40] == few.train.images).all()
    assert few.public is not None
    assert many.public is not None
    assert (many.public.images[:60] == few.public.images).all()
    # nor do the private images know of the public ones
    assert (small(public=0, public_classes=0).train.images == few.train.images).all()
    assert (small(public_classes=30).test.images == few.test.images).all()


def test_no_image_is_drawn_twice():
    task = small(train=600, test=600, public=600)
    assert task.public is not None
    rows = np.concatenate([p.images.reshape(len(p), -1) for p in (task.train, task.test, task.public)])
    assert len(np.unique(rows, axis=0)) == 1800


def test_private_classes_are_new():
    task = glyphs(classes=10, public_classes=20, train=10, test=10, public=20, rng=0)
    assert task.public is not None
    assert not set(task.train.classes) & set(task.public.classes)
    # no two figures of the whole sequence look alike: the cosine of a figure with itself is 1
    figures = draw_figures(40, Style(), np.random.default_rng(0))
    looks = ink(figures, np.full(40, 0.03, np.float32), 16).reshape(40, -1)
    looks /= np.linalg.norm(looks, axis=1, keepdims=True)
    likeness = looks @ looks.T - np.eye(40)
    assert likeness.max() < 0.85


@pytest.mark.parametrize("size", [8, 9, 32, 48])
def test_images_are_bytes_between_black_and_white(size):
    task = small(size=size)
    images = task.train.images
    assert images.shape == (40, 1, size, size)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images * 255, np.rint(images * 255), atol=1e-4)
    assert task.train.counts.tolist() == [10] * 4
    # every figure is seen
    clean = small(size=size, style=Style(noise=0, contrast=1)).train.images
    assert (clean.max(axis=(1, 2, 3)) > 0.7).all()
    assert (clean.mean(axis=(1, 2, 3)) < (0.4 if size > 9 else 0.6)).all()


def test_a_line_is_as_wide_as_the_pen_and_as_bright_as_itsink():
    ends = np.linspace(-0.8, 0.8, 101)
    line = np.zeros((1, 100, 2, 2), np.float32)
    line[0, :, 0, 0], line[0, :, 1, 0] = ends[:-1], ends[1:]
    # 2.4 standard deviations across, where the ink is a half
    width = 2 * np.sqrt(-2 * np.log(np.sqrt(np.log(2) / 4))) * 0.03
    image = ink(line, np.array([0.03], np.float32), 200)[0]
    np.testing.assert_allclose(image, image[:, :1] * np.ones(200), atol=1e-4)
    assert (image[:, 100] > 0.5).mean() == pytest.approx(width, abs=2 / 200)
    assert image.max() == pytest.approx(1 - np.exp(-4), abs=0.01)


def test_x_goes_right_and_y_goes_down():
    corner = np.zeros((1, 1, 2, 2), np.float32)
    corner[0, 0] = [[0.2, -0.3], [0.3, -0.3]]  # right, above
    image = ink(corner, np.array([0.03], np.float32), 20)[0]
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert row < 10 < column


def test_nearest_pixels_tell_most_but_not_all_and_less_under_a_harder_style():
    task = glyphs(train=2000, test=500, public=0, rng=0)
    accuracy = nearest(task.train, task.test)
    error = np.sqrt(0.25 / 500)
    assert 0.75 - 3 * error < accuracy < 0.85 + 3 * error
    # negative control: random labels teach nothing, chance is one in ten
    shuffled = np.random.default_rng(0).permutation(task.train.labels)
    assert nearest(task.train, task.test, shuffled) < 0.1 + 4 * np.sqrt(0.09 / 500)
    easy = glyphs(train=2000, test=500, public=0, rng=0, style=Style(rotation=5, elastic=0, translation=0.03))
    hard = glyphs(train=2000, test=500, public=0, rng=0, style=Style(rotation=90, elastic=0.06))
    assert nearest(easy.train, easy.test) > accuracy + 3 * error
    assert nearest(hard.train, hard.test) < accuracy - 3 * error


def test_a_shift_is_applied_to_the_private_images_alone():
    plain, shifted = small(), small(shift=Shift(rotation=90))
    assert shifted.public is not None
    assert plain.public is not None
    assert (shifted.public.images == plain.public.images).all()
    for name in ("train", "test"):
        turned = np.rot90(getattr(plain, name).images, axes=(-2, -1))
        np.testing.assert_allclose(getattr(shifted, name).images, turned, atol=1e-6)
    assert shifted.shift == Shift(rotation=90)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (dict(size=7), ValueError, "size must be at least 8, got 7"),
        (dict(size=16.0), TypeError, "size must be a whole number"),
        (dict(classes=1), ValueError, "classes must be at least 2"),
        (dict(public_classes=1), ValueError, "public_classes must be at least 2"),
        (dict(train=3), ValueError, "train must be at least 4, one image of each class, got 3"),
        (dict(test=0), ValueError, "test must be at least 4"),
        (dict(public=5), ValueError, "public must be at least 6"),
        (dict(train=10**12), MemoryError, "use fewer or smaller ones"),
        (dict(style={"noise": 1}), TypeError, r"style must be a Style\(...\) or None"),
        (dict(shift=20), TypeError, r"shift must be a Shift\(...\) or None, got 20"),
        (dict(rng="seed"), ValueError, "rng must be a seed"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        small(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(noise=-1), "noise must be zero or positive"),
        (dict(rotation=np.nan), "rotation must be finite"),
        (dict(thin=0.2), "thin and thick must satisfy"),
        (dict(thin=1e-6), "thin and thick must satisfy"),
        (dict(contrast=0), r"contrast must lie in \(0, 1\]"),
        (dict(strokes=9), "strokes must lie from 2 to 8"),
    ],
)
def test_bad_styles_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Style(**arguments)
