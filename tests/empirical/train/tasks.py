"""A small task of images, and networks and recipes for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from empirical.data.images import Images, Part
from empirical.networks.bodies import convnet, mlp
from empirical.recipe import Recipe

SHAPE = (1, 6, 6)
SAMPLES = 60


def make_task(samples: int = SAMPLES) -> Images:
    random = np.random.default_rng(0)

    def part(count: int) -> Part:
        labels = np.arange(count) % 3
        images = 0.3 * random.random((count, *SHAPE))
        images[np.arange(count), 0, labels, labels] += 0.6
        return Part(images, labels, ["a", "b", "c"])

    return Images(part(samples), part(30), part(30))


TASK = make_task()
BODY = mlp(SHAPE, (8, 6), rng=0)
CONV = convnet(SHAPE, widths=(8, 16), groups=4, rng=0)


def quick(method: Any = "lp-fft", **options: Any) -> Recipe:
    return Recipe(method, **({"steps": 12, "batch": 15, "lr": 0.5, "density": 0.3} | options))
