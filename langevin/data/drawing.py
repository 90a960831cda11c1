"""Drawing of glyphs: synthetic characters of any number of classes, each a random figure of a few strokes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin.support import validate

Points = NDArray[np.float32]
# images drawn at once; a stream of random numbers each
BLOCK = 256
# the ink of a stroke falls to a half at this many standard deviations of its profile
_HALF_WIDTH = math.sqrt(-2 * math.log(math.sqrt(math.log(2) / 4)))
# half the side of the box that a figure fills, in sides of the image
_REACH = 0.33
# of so many random figures the one least like all before becomes the next class
_CANDIDATES = 12
_TEMPLATE = 16
_MOST_STROKES = 8
_STREAMS = {"figures": 0, "train": 1, "test": 2, "public": 3}


@dataclass(frozen=True)
class Style:
    """The variation within a class of glyphs: larger values are harder.

    Parameters
    ----------
    rotation : float
        Largest angle, in degrees, either way.
    scale : float
        Standard deviation of the logarithm of the size.
    shear : float
        Standard deviation of the slant and of the logarithm of the ratio of height to width.
    translation : float
        Largest move along each axis, in sides of the image.
    elastic : float
        Root mean square, along each axis, of a smooth distortion, in sides of the image.
    thin, thick : float
        Least and largest width of the strokes, in sides of the image, from 0.01 to 0.5.
    contrast : float
        Least contrast of ink and paper, in (0, 1]; the largest is 1.
    noise : float
        Standard deviation of each pixel's noise, for intensities in [0, 1].
    strokes : int
        Largest number of strokes of a class's figure, from 2 (which all have) to 8.

    Examples
    --------
    >>> easy = Style(rotation=5, elastic=0, noise=0)
    """

    rotation: float = 20.0
    scale: float = 0.15
    shear: float = 0.2
    translation: float = 0.09
    elastic: float = 0.03
    thin: float = 0.05
    thick: float = 0.1
    contrast: float = 0.4
    noise: float = 0.1
    strokes: int = 4

    def __post_init__(self) -> None:
        for name in ("rotation", "scale", "shear", "translation", "elastic", "noise"):
            validate.non_negative(name, getattr(self, name))
        if not 0.01 <= validate.number("thin", self.thin) <= validate.number("thick", self.thick) <= 0.5:
            raise ValueError(
                f"thin and thick must satisfy 0.01 <= thin <= thick <= 0.5 sides, got {self.thin!r} and "
                f"{self.thick!r}"
            )
        if not 0 < validate.number("contrast", self.contrast) <= 1:
            raise ValueError(f"contrast must lie in (0, 1], got {self.contrast!r}")
        if not 2 <= validate.integer("strokes", self.strokes, 2) <= _MOST_STROKES:
            raise ValueError(f"strokes must lie from 2 to {_MOST_STROKES}, got {self.strokes!r}")


def stream(seed: int, purpose: str, block: int) -> np.random.Generator:
    """The random numbers of a block of images of a part, or of the figures."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_STREAMS[purpose], block)))


def segments_of(style: Style) -> int:
    """Segments of a figure: about 1.6 standard deviations of the thinnest pen each, so that none shows."""
    return math.ceil(1.2 * style.strokes / (1.6 * style.thin / (2 * _HALF_WIDTH)))


def figures(count: int, style: Style, random: np.random.Generator) -> Points:
    """Draw ``count`` dissimilar figures.

    Returns
    -------
    ndarray, shape (count, segments, 2, 2)
        Ends of the segments of each figure, about equally long; the last axis is (x, y) in sides of the image
        from its centre, y downwards.
    """
    segments = segments_of(style)
    pen = np.full(_CANDIDATES, 0.12 / (2 * _HALF_WIDTH), np.float32)
    chosen: list[Points] = []
    known = np.zeros((count, _TEMPLATE**2), np.float32)
    for number in range(count):
        candidates = np.array([_figure(style.strokes, segments, random) for _ in range(_CANDIDATES)])
        looks = ink(candidates, pen, _TEMPLATE).reshape(_CANDIDATES, -1)
        looks /= np.linalg.norm(looks, axis=1, keepdims=True)
        likeness = (looks @ known[:number].T).max(axis=1, initial=0)
        best = int(np.argmin(likeness))
        known[number] = looks[best]
        chosen.append(candidates[best])
    return np.array(chosen)


# where strokes begin and end
_GRID = np.array([(x, y) for x in (-1.0, 0.0, 1.0) for y in (-1.0, 0.0, 1.0)])
_FINE = 64


def _figure(most: int, segments: int, random: np.random.Generator) -> Points:
    """One figure, shape (segments, 2, 2): cubic strokes between places of a grid, mostly joined."""
    t = np.linspace(0, 1, _FINE + 1)[:, None]
    basis = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    strokes: list[NDArray[np.float64]] = []
    for number in range(random.integers(2, most + 1)):
        first = _GRID[random.integers(len(_GRID))]
        if number and random.random() < 0.7:  # from the end or the middle of the one before
            first = strokes[-1][random.choice([_FINE, _FINE // 2])]
        far = _GRID[np.linalg.norm(_GRID - first, axis=1) > 0.9]
        last = far[random.integers(len(far))]
        along = last - first
        across = np.array([-along[1], along[0]])
        kind = random.random()
        if kind < 0.4:  # a line
            bend = np.zeros(2)
        elif kind < 0.8:  # a bow
            bend = np.full(2, random.choice([-1, 1]) * random.uniform(0.4, 0.9))
        else:  # a wave
            bend = np.array([1, -1]) * random.choice([-1, 1]) * random.uniform(0.6, 1.2)
        control = np.array(
            [first, first + along / 3 + bend[0] * across, last - along / 3 + bend[1] * across, last]
        )
        strokes.append(basis @ control)
    drawn = np.concatenate(strokes)
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    # the longer axis fills the box, the shorter at least half of it
    extent = np.maximum(high - low, 0.5 * (high - low).max())
    strokes = [(stroke - (low + high) / 2) * (2 * _REACH / extent) for stroke in strokes]
    # cut at equal lengths of the pen's way
    lengths = [np.linalg.norm(np.diff(stroke, axis=0), axis=1).cumsum() for stroke in strokes]
    shares = _shares([length[-1] for length in lengths], segments)
    cut = []
    for stroke, length, share in zip(strokes, lengths, shares, strict=True):
        places = np.linspace(0, length[-1], share + 1)
        points = np.stack([np.interp(places, [0, *length], axis) for axis in stroke.T], axis=1)
        cut.append(np.stack([points[:-1], points[1:]], axis=1))
    return np.concatenate(cut).astype(np.float32)


def _shares(lengths: list[float], total: int) -> list[int]:
    """Divide ``total`` segments among strokes in proportion to their lengths."""
    ends = np.rint(np.cumsum(lengths) / sum(lengths) * total).astype(int)
    return np.diff(ends, prepend=0).tolist()


def ink(segments: Points, pen: Points, size: int) -> Points:
    """Draw figures: the line integral of a Gaussian pen along the segments, saturated.

    Parameters
    ----------
    segments : ndarray, shape (n, segments, 2, 2)
    pen : ndarray, shape (n,)
        Standard deviation of the pen, in sides of the image.

    Returns
    -------
    ndarray, shape (n, size, size)
        In [0, 1).
    """
    middle = segments.mean(axis=2)
    length = np.linalg.norm(segments[:, :, 1] - segments[:, :, 0], axis=2)
    # a pen thinner than a pixel would fall between them: it is drawn about as wide as one
    wide = np.hypot(pen, np.float32(0.4 / size))[:, None]
    grid = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5)[:, None]
    scale = np.float32(math.sqrt(0.5)) / wide
    # the pen is a product of one Gaussian along each axis, so that drawing is a product of matrices
    x, y = (np.exp(-(((grid - middle[:, None, :, axis]) * scale[:, :, None]) ** 2)) for axis in range(2))
    y *= (length / (wide * np.float32(math.sqrt(2 * math.pi))))[:, None, :]
    density = y @ x.transpose(0, 2, 1)
    return 1 - np.exp(-4 * density**2)


def drawn(
    figures: Points, labels: NDArray[np.int64], size: int, style: Style, seed: int, part: str
) -> Points:
    """Images of the labelled figures, shape (n, size, size), in blocks with a stream each."""
    out = np.empty((len(labels), size, size), np.float32)
    for block, first in enumerate(range(0, len(labels), BLOCK)):
        random = stream(seed, part, block)
        numbers = labels[first : first + BLOCK]
        segments, pen, contrast, paper = _varied(figures, numbers, style, random)
        images = contrast * ink(segments, pen, size) + paper
        noise = random.standard_normal(images.shape, dtype=np.float32)
        images += np.float32(style.noise) * noise
        out[first : first + BLOCK] = np.rint(np.clip(images, 0, 1) * 255) / np.float32(255)
    return out


def _varied(
    figures: Points, labels: NDArray[np.int64], style: Style, random: np.random.Generator
) -> tuple[Points, Points, Points, Points]:
    """Segments, pens, contrasts and papers of one block of images."""
    n = BLOCK  # all are drawn, so that an image does not depend on how many there are
    turn = np.radians(random.uniform(-style.rotation, style.rotation, n))
    size = np.exp(style.scale * random.standard_normal(n).clip(-2, 2))
    ratio = np.exp(style.shear / 2 * random.standard_normal(n).clip(-2, 2))
    slant = style.shear * random.standard_normal(n).clip(-2, 2)
    cos, sin, zero = np.cos(turn), np.sin(turn), np.zeros(n)
    rotation = np.stack([np.stack([cos, -sin], -1), np.stack([sin, cos], -1)], -2)
    shape = np.stack([np.stack([size * ratio, slant * size], -1), np.stack([zero, size / ratio], -1)], -2)
    affine = (rotation @ shape).astype(np.float32)
    move = random.uniform(-style.translation, style.translation, (n, 2)).astype(np.float32)
    # a smooth field: four plane waves of up to one period and a half a side
    waves = random.uniform(-1.5, 1.5, (n, 4, 2)).astype(np.float32)
    phases = random.uniform(0, 2 * math.pi, (n, 1, 4)).astype(np.float32)
    heights = (style.elastic * math.sqrt(0.5) * random.standard_normal((n, 4, 2))).astype(np.float32)
    pen = (random.uniform(style.thin, style.thick, n) / (2 * _HALF_WIDTH)).astype(np.float32)
    contrast = random.uniform(style.contrast, 1, n).astype(np.float32)
    paper = (random.uniform(0, 1, n) * (1 - contrast)).astype(np.float32)

    own = np.arange(len(labels))
    points = figures[labels].reshape(len(labels), -1, 2)
    bends = np.sin(2 * np.float32(math.pi) * (points @ waves[own].transpose(0, 2, 1)) + phases[own])
    points = points + bends @ heights[own]
    points = points @ affine[own].transpose(0, 2, 1) + move[own, None]
    segments = points.reshape(len(labels), -1, 2, 2).astype(np.float32, copy=False)
    return segments, pen[own], contrast[own, None, None], paper[own, None, None]
