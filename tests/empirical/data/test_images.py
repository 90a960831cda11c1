"""Parts, shifts, splits and normalisation."""

import math

import numpy as np
import pytest

from empirical import Images, Part, Shift
from empirical.data.rows import Rows
from empirical.data.splits import stratified


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).uniform(size=(7, 2, 9, 9)).astype(np.float32)


def part_of(counts: list[int], seed: int = 0) -> Part:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    return Part(rng.uniform(size=(len(labels), 1, 4, 4)), labels, [f"c{i}" for i in range(len(counts))])


@pytest.mark.parametrize("quarters", range(-3, 9))
def test_quarter_turns_move_pixels_counter_clockwise(images, quarters):
    turned = Shift(rotation=90 * quarters)(images)
    np.testing.assert_allclose(turned, np.rot90(images, quarters, axes=(-2, -1)), atol=1e-6)
    if quarters % 2:
        assert abs(turned - np.rot90(images, -quarters, axes=(-2, -1))).max() > 0.1


@pytest.mark.parametrize("shape", [(8, 8), (9, 6)])
def test_rotation_is_bilinear_about_the_centre(shape):
    image = np.random.default_rng(1).uniform(size=shape)
    angle = math.radians(20)
    middle = [(side - 1) / 2 for side in shape]
    padded = np.pad(image, 1)  # zeros outside
    expected = np.zeros(shape)
    for row in range(shape[0]):
        for column in range(shape[1]):
            x, y = column - middle[1], middle[0] - row
            # the pixel comes from its place turned back, clockwise
            c = middle[1] + x * math.cos(angle) + y * math.sin(angle) + 1
            r = middle[0] - (-x * math.sin(angle) + y * math.cos(angle)) + 1
            if -1 < r < padded.shape[0] and -1 < c < padded.shape[1]:
                for i in range(math.floor(r), math.floor(r) + 2):
                    for j in range(math.floor(c), math.floor(c) + 2):
                        if 0 <= i < padded.shape[0] and 0 <= j < padded.shape[1]:
                            expected[row, column] += padded[i, j] * (1 - abs(r - i)) * (1 - abs(c - j))
    turned = Shift(rotation=20)(image[None, None].astype(np.float32))[0, 0]
    np.testing.assert_allclose(turned, expected, atol=1e-6)


def test_a_linear_ramp_is_turned_exactly():
    """Bilinear interpolation keeps linear images: away from the border the ramp's direction turns."""
    y, x = np.mgrid[8:-9:-1, -8:9] / 40.0
    turned = Shift(rotation=30)((0.5 + x)[None, None].astype(np.float32))[0, 0]
    expected = 0.5 + x * math.cos(math.pi / 6) + y * math.sin(math.pi / 6)
    inside = np.hypot(x, y) < 0.19
    np.testing.assert_allclose(turned[inside], expected[inside], atol=1e-6)


def test_dimming_comes_after_the_turn(images):
    np.testing.assert_allclose(Shift(gain=0.4, offset=0.3)(images), 0.4 * images + 0.3, atol=1e-6)
    np.testing.assert_allclose(Shift(gain=-1, offset=1)(images), 1 - images, atol=1e-6)
    turned = Shift(rotation=45, gain=0.4, offset=0.3)(images)
    np.testing.assert_allclose(turned, 0.4 * Shift(rotation=45)(images) + 0.3, atol=1e-6)
    assert turned[..., 0, 0] == pytest.approx(0.3)
    assert turned.dtype == np.float32


def test_no_shift_changes_nothing(images):
    part = Part(images, np.zeros(7, int), ["a"])
    assert part.shifted(Shift()) is part
    assert (Shift(rotation=360)(images) == images).all()


@pytest.mark.parametrize(
    ("shift", "message"),
    [
        (dict(gain=0), "gain must not be 0"),
        (dict(gain=2), r"got gain=2 and offset=0: take offset from 0 to"),
        (dict(gain=0.5, offset=0.6), r"take offset from 0 to 0\.5"),
        (dict(gain=-0.5), r"take offset from 0\.5 to 1"),
        (dict(rotation=math.nan), "rotation must be finite, got nan"),
    ],
)
def test_shifts_out_of_the_grey_scale_are_refused(shift, message):
    with pytest.raises(ValueError, match=message):
        Shift(**shift)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "error", "message"),
    [
        (np.zeros((2, 1, 4, 4), np.int16), [0, 0], ["a"], TypeError, r"\[0, 1\] or bytes"),
        (np.zeros((2, 4, 4)), [0, 0], ["a"], ValueError, r"shape \(n, channels, height, width\)"),
        (np.zeros((0, 1, 4, 4)), [], ["a"], ValueError, r"got \(0, 1, 4, 4\)"),
        (np.full((2, 1, 4, 4), 1.1), [0, 0], ["a"], ValueError, r"lie in \[0, 1\], got values from 1\.1"),
        (np.full((2, 1, 4, 4), np.nan), [0, 0], ["a"], ValueError, "from nan"),
        (np.zeros((2, 1, 4, 4)), [0], ["a"], ValueError, "must be 2 whole numbers"),
        (np.zeros((2, 1, 4, 4)), [0.0, 1.0], ["a", "b"], ValueError, "got float64"),
        (np.zeros((2, 1, 4, 4)), [0, 1], ["a"], ValueError, "labels must lie from 0 to 0"),
        (np.zeros((2, 1, 4, 4)), [-1, 0], ["a"], ValueError, "from -1 to 0"),
        (np.zeros((2, 1, 4, 4)), [0, 1], ["a", "a"], ValueError, "different names"),
        (np.zeros((2, 1, 4, 4)), [0, 1], "ab", TypeError, "sequence of names"),
    ],
)
def test_bad_parts_are_refused(images, labels, classes, error, message):
    with pytest.raises(error, match=message):
        Part(images, labels, classes)


def test_parts_are_frozen(images):
    part = Part(images, np.zeros(7, int), ["a"])
    assert np.shares_memory(part.images, images)
    for array in (part.images, part.labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    images[0] = 0  # the caller's own array stays the caller's
    assert "7 images of shape (2, 9, 9), 1 classes" in repr(part)


def test_subsamples_are_of_each_class_and_in_order():
    part = part_of([30, 20, 10])
    few = part.subsample(5, rng=0)
    assert few.counts.tolist() == [5, 5, 5]
    places = [int(np.flatnonzero((part.images == image).all(axis=(1, 2, 3)))[0]) for image in few.images]
    assert places == sorted(set(places))
    assert (part.labels[places] == few.labels).all()
    assert (part.subsample(5, rng=0).images == few.images).all()
    assert (part.subsample(5, rng=1).images != few.images).any()
    with pytest.raises(ValueError, match="per_class must be at most 10, the number of images of class 'c2'"):
        part.subsample(11)


def test_classes_are_chosen_by_name():
    part = part_of([3, 4, 5])
    two = part.only(["c2", "c0"])
    assert two.classes == ("c2", "c0")
    assert two.counts.tolist() == [5, 3]
    assert (two.images[two.labels == 0] == part.images[part.labels == 2]).all()
    for wrong in (["c3"], ["c0", "c0"], []):
        with pytest.raises(ValueError, match="classes must be different ones of c0, c1, c2"):
            part.only(wrong)
    with pytest.raises(TypeError, match="sequence of names"):
        part.only("c0")


@pytest.mark.parametrize("seed", range(20))
def test_stratified_groups_are_disjoint_and_proportional(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(5, 60, rng.integers(2, 6))
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    counts = [int(rng.integers(0, len(labels) // 2)) for _ in range(2)]
    groups = stratified(labels, counts, rng)
    assert [len(group) for group in groups] == [*counts, len(labels) - sum(counts)]
    assert sorted(np.concatenate(groups)) == list(range(len(labels)))
    for group in groups:
        share = np.bincount(labels[group], minlength=len(sizes))
        assert abs(share - sizes * len(group) / len(labels)).max() < 2


def test_statistics_are_the_public_parts_alone():
    train, test, public = part_of([5, 5], 0), part_of([5, 5], 1), part_of([5, 5, 5], 2)
    dim = Images(train.shifted(Shift(gain=0.1)), test, public)
    mean, std = dim.statistics()
    assert mean == pytest.approx(public.images.mean(dtype=float))
    assert std == pytest.approx(public.images.std(dtype=float))
    assert mean != pytest.approx(dim.train.images.mean(dtype=float), rel=0.1)
    np.testing.assert_array_equal(mean, Images(test, train, public).statistics()[0])
    normal = dim.normalised(public)
    assert normal.mean(dtype=float) == pytest.approx(0, abs=1e-6)
    assert normal.std(dtype=float) == pytest.approx(1, abs=1e-6)
    assert normal.dtype == np.float32


def test_statistics_are_per_channel():
    images = np.zeros((2, 2, 1, 2))
    images[:, 0] = [0, 1]
    images[:, 1] = [0.5, 0.7]
    part = Part(images, [0, 1], ["a", "b"])
    mean, std = Images(part, part, part).statistics()
    assert mean == pytest.approx([0.5, 0.6])
    assert std == pytest.approx([0.5, 0.1])


def test_there_is_nothing_to_normalise_by_without_public_images():
    part = part_of([4, 4])
    task = Images(part, part)
    with pytest.raises(ValueError, match="a public part is needed to normalise by"):
        task.statistics()
    assert task.with_public(part).statistics()[1] > 0
    flat = Part(np.full((2, 1, 4, 4), 0.5), [0, 0], ["a"])
    with pytest.raises(ValueError, match="public must vary in every channel"):
        task.with_public(flat).statistics()
    with pytest.raises(ValueError, match="there is no public part to subsample"):
        task.subsample(public=1)


def test_each_part_is_subsampled_from_a_stream_of_its_own():
    task = Images(part_of([9, 9], 0), part_of([9, 9], 1), part_of([9, 9, 9], 2))
    small = task.subsample(train=3, public=2, rng=4)
    assert small.public is not None
    assert (len(small.train), len(small.test), len(small.public)) == (6, 18, 6)
    alone = task.subsample(train=3, rng=4)
    assert (alone.train.images == small.train.images).all()
    assert alone.public is task.public


def test_parts_must_fit_together():
    part = part_of([2, 2])
    with pytest.raises(ValueError, match="train and test must have the same classes"):
        Images(part, part_of([2, 2, 2]))
    with pytest.raises(TypeError, match="test must be a Part"):
        Images(part, None)  # pyright: ignore[reportArgumentType]
    wide = Part(np.zeros((1, 1, 4, 5)), [0], ["a"])
    with pytest.raises(ValueError, match=r"public must have images of the shape of train's, \(1, 4, 4\)"):
        Images(part, part, wide)


def test_bytes_stay_bytes_and_mean_the_same():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 4, 4), dtype=np.uint8)
    kept = Part(pixels, [0, 1] * 3, ["a", "b"])
    expected = Part(pixels.astype(np.float32) / 255, kept.labels, kept.classes)
    assert kept.images.dtype == np.uint8
    assert kept.images.nbytes == expected.images.nbytes / 4
    assert kept.take([1, 2]).images.dtype == np.uint8
    task, other = (Images(part, part, part) for part in (kept, expected))
    for one, two in zip(task.statistics(), other.statistics(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-12)
    np.testing.assert_array_equal(task.normalised(kept), other.normalised(expected))
    shift = Shift(gain=0.5, rotation=20)
    np.testing.assert_array_equal(kept.shifted(shift).images, expected.shifted(shift).images)


def test_feature_vectors_are_no_bytes():
    with pytest.raises(TypeError, match="feature vectors, got uint8"):
        Rows(np.zeros((2, 1, 1, 3), np.uint8), [0, 1], ["a", "b"])
