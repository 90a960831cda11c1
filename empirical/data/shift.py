"""The shift from public to private images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from langevin.support import validate

Pixels = NDArray[np.float32]
Bytes = NDArray[np.uint8]
# those that stay in a processor's cache
_CACHED = 2**17


@dataclass(frozen=True)
class Shift:
    """The shift of private images relative to public ones: rotated, then dimmed.

    Parameters
    ----------
    rotation : float or None
        Rotation in degrees, counter-clockwise as displayed, about the centre; bilinear, black outside; by
        default 20 for digits in a `Setting`, otherwise 0.
    gain, offset : float
        Private intensities x in [0, 1] become gain * x + offset, which must stay in [0, 1].

    Raises
    ------
    ValueError, TypeError
        On numbers that are not finite, a gain of 0, or one that leaves [0, 1].

    Examples
    --------
    >>> Shift(gain=0.4, offset=0.3)(np.ones((1, 1, 2, 2), np.float32)).max().round(3)
    np.float32(0.7)
    """

    rotation: float | None = None
    gain: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rotation", "gain", "offset"):
            if (value := getattr(self, name)) is not None or name != "rotation":
                object.__setattr__(self, name, validate.number(name, value))
        if self.gain == 0:
            raise ValueError("gain must not be 0, got 0.0: all images would be equal")
        ends = (self.offset, self.offset + self.gain)
        if min(ends) < -1e-9 or max(ends) > 1 + 1e-9:
            raise ValueError(
                f"gain * x + offset must stay in [0, 1] for x in [0, 1], got gain={self.gain:g} and "
                f"offset={self.offset:g}: take offset from {max(0.0, -self.gain):g} to "
                f"{min(1.0, 1 - self.gain):g}, and a gain from -1 to 1"
            )

    @property
    def is_none(self) -> bool:
        """Whether images stay as they are."""
        return not self.rotation and (self.gain, self.offset) == (1.0, 0.0)

    def __call__(self, images: Pixels) -> Pixels:
        """Shifted images, the shape (n, channels, height, width) of ``images``; no argument is changed."""
        turn = self.rotation or 0.0
        out = _rotated(images, turn) if turn % 360 else images
        if (self.gain, self.offset) != (1.0, 0.0):
            out = np.clip(np.float32(self.gain) * out + np.float32(self.offset), 0, 1)
        return out


def _rotated(images: Pixels, degrees: float) -> Pixels:
    """Rotate images counter-clockwise about their centre, with zeros outside."""
    height, width = images.shape[-2:]
    turn = math.radians(degrees % 360)
    cos, sin = round(math.cos(turn), 15), round(math.sin(turn), 15)
    right = np.arange(width) - (width - 1) / 2
    up = (height - 1) / 2 - np.arange(height)[:, None]
    # where a pixel comes from
    row = (height - 1) / 2 - (cos * up - sin * right)
    column = (width - 1) / 2 + (cos * right + sin * up)
    top, left = np.floor(row).astype(int), np.floor(column).astype(int)
    corners = []
    for r, c in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        weight = np.where(inside, (1 - abs(row - r)) * (1 - abs(column - c)), 0)
        place = np.where(inside, r * width + c, 0)
        corners.append((weight.astype(np.float32).reshape(-1, 1), place.ravel()))
    planes = images.reshape(-1, height * width)
    out = np.empty_like(planes)
    step = max(1, _CACHED // (height * width))
    for first in range(0, len(planes), step):
        # a pixel of all planes together, so that whole rows are gathered
        block = np.ascontiguousarray(planes[first : first + step].T)
        turned = np.zeros_like(block)
        for weight, place in corners:
            turned += weight * block[place]
        out[first : first + step] = turned.T
    return np.minimum(out, 1).reshape(images.shape)
