"""Random views of images, and the contrastive loss on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch.nn import functional

from langevin.support import validate


@dataclass(frozen=True)
class Augment:
    """Random changes of images that preserve their content, drawn separately for each image.

    An image is cut out, turned and perhaps mirrored in one bilinear interpolation, then its pixels are
    changed, which are taken to be normalised: their unit is the standard deviation over the public part.

    Parameters
    ----------
    crop : float
        Least share of the area that is kept and enlarged, in (0, 1]; 1: all of it.
    rotation : float
        Largest angle in degrees, either way.
    flip : bool
        Mirror half of the images; not for characters.
    brightness : float
        Largest offset.
    contrast : float
        Largest relative change of the differences from the image's mean, below 1.
    colour : float
        Largest offset of each channel alone; grey images have none.
    noise : float
        Largest standard deviation of each pixel's noise.

    Examples
    --------
    >>> Augment(flip=True)(torch.zeros(5, 3, 8, 8)).shape
    torch.Size([5, 3, 8, 8])
    """

    crop: float = 0.5
    rotation: float = 15.0
    flip: bool = False
    brightness: float = 0.3
    contrast: float = 0.4
    colour: float = 0.3
    noise: float = 0.2

    def __post_init__(self) -> None:
        for name in ("rotation", "brightness", "contrast", "colour", "noise"):
            validate.non_negative(name, getattr(self, name))
        if not 0 < validate.number("crop", self.crop) <= 1:
            raise ValueError(f"crop must lie in (0, 1], got {self.crop!r}")
        if self.contrast >= 1:
            raise ValueError(f"contrast must be below 1, got {self.contrast!r}: images would be inverted")

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return augmented images of the same shape, with torch's generator; arguments are not modified."""
        count, channels = images.shape[:2]

        def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
            return low + (high - low) * torch.rand(count, *shape, device=images.device)

        side = uniform(self.crop, 1).sqrt()
        angle = uniform(-1, 1) * math.radians(self.rotation)
        across = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0) if self.flip else 1.0
        centre = uniform(-1, 1, 2) * (1 - side)[:, None]
        # from places in the result, in [-1, 1], to those in the image
        cos, sin = side * angle.cos(), side * angle.sin()
        rows = [cos * across, -sin, centre[:, 0], sin * across, cos, centre[:, 1]]
        grid = functional.affine_grid(
            torch.stack(rows, 1).view(-1, 2, 3), list(images.shape), align_corners=False
        )
        out = functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
        mean = out.mean(dim=(1, 2, 3), keepdim=True)
        out = mean + (out - mean) * uniform(1 - self.contrast, 1 + self.contrast, 1, 1, 1)
        out = out + self.brightness * uniform(-1, 1, 1, 1, 1)
        if channels > 1:
            out = out + self.colour * uniform(-1, 1, channels, 1, 1)
        return out + self.noise * uniform(0, 1, 1, 1, 1) * torch.randn_like(out)


def nt_xent(a: torch.Tensor, b: torch.Tensor, temperature: float = 0.5) -> torch.Tensor:
    """Mean cross-entropy of identifying each embedding's other view among all embeddings by cosine [1]_.

    Parameters
    ----------
    a, b : Tensor, shape (n, p)
        Embeddings of two views of ``n`` images.
    temperature : float

    Returns
    -------
    Tensor
        A scalar; ``log(2 n - 1)`` where all embeddings are equal.

    References
    ----------
    .. [1] Chen, Kornblith, Norouzi, Hinton, "A simple framework for contrastive learning of visual
       representations", ICML 2020.

    Examples
    --------
    >>> float(nt_xent(torch.ones(4, 2), torch.ones(4, 2)).exp().round())
    7.0
    """
    count = len(a)
    z = functional.normalize(torch.cat([a, b]).float())
    similarity = z @ z.T / temperature
    similarity.fill_diagonal_(-math.inf)
    partner = torch.arange(2 * count, device=z.device).roll(count)
    return functional.cross_entropy(similarity, partner)
