"""A body by its name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from empirical.networks.bodies import convnet, layer, mlp
from empirical.networks.lite0 import lite0
from empirical.networks.pretrained import pretrained
from langevin.support.rng import RNG


def body(
    name: str,
    shape: Sequence[int],
    *,
    widths: Sequence[int] | None = None,
    weights: str | Path | None = None,
    rng: RNG = 0,
    **options: Any,
) -> nn.Module:
    """Make a body by its name.

    Parameters
    ----------
    name : str
        "mlp" or "conv", see `mlp` and `convnet`; "lite0", see `lite0`; "timm:<model>" or "hf:<model>", see
        `pretrained`.
    shape : sequence of int
        Channels, height and width of an image.
    widths : sequence of int, optional
        Of "mlp" and "conv".
    weights : "imagenet", "hub", path or None
        See `lite0` and `pretrained`.
    rng : int, Generator or None
        Draws what is not loaded (SPEC 7).
    **options
        For the function that makes it.

    Examples
    --------
    >>> body("mlp", (1, 8, 8), widths=(32,)).features
    32
    """
    given = {} if widths is None else {"widths": widths}
    if name == "layer" and widths is None and weights is None:
        return layer(shape, **options)
    if name in ("mlp", "conv"):
        if weights is not None:
            raise ValueError(
                f"weights must be None for {name!r}, got {str(weights)!r}: load_weights loads them"
            )
        return (mlp if name == "mlp" else convnet)(shape, **given, rng=rng, **options)
    if given:
        raise ValueError(f"widths must be None for {name!r}, got {widths}")
    if name == "lite0":
        return lite0(shape, weights=weights, rng=rng, **options)
    return pretrained(name, shape, weights=weights, rng=rng, **options)
