"""The generator: known answers, moments, distribution, and independence of streams."""

import numpy as np
import pytest
from scipy import stats

from langevin.engine import noise
from langevin.engine.kernels import normals

# Random123, kat_vectors: philox4x32 with 10 rounds
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, expected):
    words = np.zeros((4, normals.LANES), np.uint32)
    normals.philox_batch(words, *(np.uint64(c) for c in counter), *(np.uint64(k) for k in key))
    assert tuple(int(w) for w in words[:, 0]) == expected


@pytest.mark.parametrize("precision", ["double", "single"])
def test_normals_follow_box_muller_of_the_words(precision):
    """Polynomials against the library's functions, draw by draw."""
    key, path, step = (5, 6), 7, 8
    draws = noise.normals(key, path, step, normals.TILE, precision)
    words = np.zeros((4, normals.LANES), np.uint32)
    counter = [np.uint64(c) for c in (0, step, path, normals.STATE_STREAM)]
    normals.philox_batch(words, *counter, *(np.uint64(k) for k in key))
    u, angle = (words.astype(float) + 0.5) / 2**32, 2 * np.pi * words.astype(float) / 2**32
    expected = []
    for r in (0, 2):
        radius = np.sqrt(-2 * np.log(u[r]))
        expected += [radius * np.cos(angle[r + 1]), radius * np.sin(angle[r + 1])]
    error = np.abs(draws - np.concatenate(expected)).max()
    # a few units in the last place of the largest radius, 6.7
    assert error < 64 * np.finfo(draws.dtype).eps


def sample(precision: noise.Precision, count: int = 400, size: int = 5000) -> np.ndarray:
    return np.concatenate([noise.normals((11, 12), p, 3, size, precision) for p in range(count)]).astype(
        float
    )


@pytest.mark.parametrize("precision", ["double", "single"])
def test_moments_and_distribution(precision):
    x = sample(precision)
    # E x^k of a standard normal, and the variance of x^k
    for k, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
        z = ((x**k).mean() - moment) / np.sqrt(variance / x.size)
        assert abs(z) < 4, (k, z)
    assert stats.kstest(x, "norm").pvalue > 1e-4
    # negative control: a standard deviation that is off by half a percent is detected
    assert stats.kstest(1.005 * x, "norm").pvalue < 1e-4


def test_streams_are_uncorrelated():
    """Paths, steps, keys and places in a step."""
    size = 200_000
    base = noise.normals((1, 2), 3, 4, size)
    others = [
        noise.normals((1, 2), 4, 4, size),
        noise.normals((1, 2), 3, 5, size),
        noise.normals((1, 3), 3, 4, size),
        noise.normals((2, 2), 3, 4, size),
        np.roll(base, 1),
        np.roll(base, normals.LANES),
        np.roll(base, normals.TILE),
    ]
    for other in others:
        for a, b in ((base, other), (base**2 - 1, other**2 - 1)):
            z = (a * b).mean() / (a * b).std() * np.sqrt(size)
            assert abs(z) < 4.5
    # negative control: a correlation of 2 % is detected
    mixed = 0.02 * base + others[0]
    assert abs((base * mixed).mean() / (base * mixed).std() * np.sqrt(size)) > 4.5


def test_draws_do_not_depend_on_how_many_are_requested():
    assert (noise.normals((1, 2), 3, 4, 10) == noise.normals((1, 2), 3, 4, 1000)[:10]).all()


@pytest.mark.parametrize("degrees", [1, 2, 3, 7, 1000, 10**9, 10**12])
def test_chi_square(degrees):
    draw = lambda path: normals.chi_square(degrees, 0, 0, path, 2, np.uint64(1), np.uint64(2))  # noqa: E731
    x = np.array([draw(p) for p in range(40_000)])
    assert stats.kstest(x, "chi2", args=(degrees,)).pvalue > 1e-4
    # negative control: a tenth of the standard deviation too large
    wrong = x * (1 + 0.1 * np.sqrt(2 / degrees))
    assert stats.kstest(wrong, "chi2", args=(degrees,)).pvalue < 1e-4


def test_seeds_and_generators_give_keys():
    assert noise.key(7) == noise.key(7)
    assert noise.key(7) != noise.key(8)
    assert noise.key(None) != noise.key(None)
    generator = np.random.default_rng(7)
    first = noise.key(generator)
    assert first == noise.key(np.random.default_rng(7))
    assert first != noise.key(generator)
    with pytest.raises(ValueError, match="rng must be a seed"):
        noise.key("seven")  # pyright: ignore[reportArgumentType]
