"""Per-sample gradients of depthwise 2-d convolutions on a GPU, in one pass over memory.

cuDNN and PyTorch have no kernel for one image of many thousand channels, which is what a batch becomes.
"""

from __future__ import annotations

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor, nn

# numbers that one program holds, and the most pixels of a channel among them
_TILE, _PIXELS = 1024, 128


def correlated(layer: nn.Conv2d, x: Tensor, delta: Tensor, before: tuple[int, int]) -> Tensor:
    """Gradients of the weight, shape (n, outputs, 1, height, width), of the dtype of ``delta``.

    Parameters
    ----------
    layer : nn.Conv2d
        With a group for each input channel and zero padding.
    x, delta : Tensor, shape (n, channels, height, width), (n, outputs, height, width)
        Input, and gradient of the output.
    before : tuple of int
        Zeros above and left of the input.
    """
    x, delta = x.contiguous(), delta.contiguous()
    rows = len(x) * layer.out_channels
    found = delta.new_empty(len(x), *layer.weight.shape)
    pixels = min(_PIXELS, triton.next_power_of_2(delta[0, 0].numel()))
    at_once = _TILE // pixels
    with torch.cuda.device(x.device):
        _kernel[(triton.cdiv(rows, at_once),)](  # pyright: ignore[reportIndexIssue]
            x,
            delta,
            found,
            rows,
            layer.out_channels // layer.in_channels,
            *x.shape[2:],
            *delta.shape[2:],
            *layer.stride,
            *before,
            *layer.dilation,
            *layer.kernel_size,
            at_once,
            pixels,
        )
    return found


@triton.jit
def _kernel(
    x,
    delta,
    found,
    rows,
    per_channel,
    height,
    width,
    out_height,
    out_width,
    stride_y,
    stride_x,
    before_y,
    before_x,
    dilation_y,
    dilation_x,
    taps_y: tl.constexpr,
    taps_x: tl.constexpr,
    at_once: tl.constexpr,
    pixels: tl.constexpr,
):
    """A row is an output channel of a sample; its tile is read again for each tap, from the cache."""
    row = tl.program_id(0).to(tl.int64) * at_once + tl.arange(0, at_once)
    real = row < rows
    size = out_height * out_width
    x_row = x + (row // per_channel * height * width)[:, None]
    delta_row = delta + (row * size)[:, None]
    for tap in range(taps_y * taps_x):
        total = tl.zeros((at_once, pixels), dtype=tl.float32)
        for start in range(0, size, pixels):
            pixel = start + tl.arange(0, pixels)
            y = pixel // out_width * stride_y - before_y + tap // taps_x * dilation_y
            z = pixel % out_width * stride_x - before_x + tap % taps_x * dilation_x
            inside = (pixel < size) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
            mask = real[:, None] & inside[None, :]
            d = tl.load(delta_row + pixel[None, :], mask=mask, other=0.0)
            v = tl.load(x_row + (y * width + z)[None, :], mask=mask, other=0.0)
            total += d.to(tl.float32) * v.to(tl.float32)
        place = found + row * (taps_y * taps_x) + tap
        tl.store(place, tl.sum(total, axis=1).to(found.dtype.element_ty), mask=real)
