"""Per-sample gradients of depthwise and of 1 x 1 convolutions, for which Opacus's rule is slow.

Opacus computes the gradients of a convolution with groups as if it had one, and keeps the diagonal blocks:
of ``c`` channels it computes ``c`` times what is needed.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from empirical._opacus import compute_conv_grad_sample
from empirical.train.gradients.plain import row_norms

Convolution: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

# PyTorch brings Triton where it brings CUDA
_ON_GPU = find_spec("triton") is not None


def grad_sample(layer: Convolution, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Per-sample gradients of a convolution, by its parameters, as Opacus's samplers return them.

    Parameters
    ----------
    layer : nn.Conv1d, nn.Conv2d or nn.Conv3d
        With zero padding.
    activations : list of Tensor
        The input, shape (n, channels, ...), in any memory format.
    backprops : Tensor, shape (n, channels, ...)
        Gradient of the output.
    """
    x = activations[0].to(backprops.dtype)
    found: dict[Tensor, Tensor] = {}
    if not len(x) or not (_depthwise(layer) or _pointwise(layer)):
        return compute_conv_grad_sample(layer, activations, backprops)  # type: ignore[return-value]
    if layer.weight.requires_grad:
        rule = _correlated if _depthwise(layer) else _outer
        found[layer.weight] = rule(layer, x, backprops)
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = backprops.flatten(2).sum(2)
    return found


def norms(layer: Convolution, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """Norms of what `grad_sample` returns, of a 1 x 1 convolution without the gradients themselves."""
    if len(activations[0]) and _pointwise(layer):
        places = _pixels(layer, activations[0].to(backprops.dtype)), backprops.flatten(2)
        found = {}
        if layer.weight.requires_grad:
            found[layer.weight] = product_norms(places[0].transpose(1, 2), places[1].transpose(1, 2))
        if layer.bias is not None and layer.bias.requires_grad:
            found[layer.bias] = row_norms(places[1].sum(2))
        return found
    return {p: row_norms(g) for p, g in grad_sample(layer, activations, backprops).items()}


def product_norms(a: Tensor, delta: Tensor) -> Tensor:
    """Norms of ``delta[i].T @ a[i]``, by whichever way computes fewer numbers.

    Parameters
    ----------
    a, delta : Tensor, shape (n, tokens, inputs), (n, tokens, outputs)

    Returns
    -------
    Tensor, shape (n,)

    Examples
    --------
    >>> product_norms(torch.ones(1, 3, 2), torch.ones(1, 3, 2))
    tensor([6.], dtype=torch.float64)
    """
    if 2 * a.shape[1] ** 2 > a.shape[2] * delta.shape[2]:
        return row_norms(delta.transpose(1, 2) @ a)
    square = ((delta @ delta.transpose(1, 2)) * (a @ a.transpose(1, 2))).sum((1, 2), dtype=torch.float64)
    return square.clamp(min=0).sqrt()


def _depthwise(layer: Convolution) -> bool:
    """Whether each of several channels is convolved alone."""
    return 1 < layer.groups == layer.in_channels


def _pointwise(layer: Convolution) -> bool:
    return layer.groups == 1 and set(layer.kernel_size) == {1} and not any(_padding(layer))


def _padding(layer: Convolution) -> list[int]:
    """Zeros around the input, from the last axis to the first: before and after."""
    return layer._reversed_padding_repeated_twice if layer.padding != "valid" else []


def _correlated(layer: Convolution, x: Tensor, delta: Tensor) -> Tensor:
    """Gradients of a depthwise convolution: samples and channels become the channels of one image."""
    if _ON_GPU and x.is_cuda and isinstance(layer, nn.Conv2d) and delta.dtype != torch.float64:
        from empirical.train.gradients import depthwise

        left, _, above, _ = _padding(layer) or (0, 0, 0, 0)
        return depthwise.correlated(layer, x, delta, (above, left))
    n, axes = len(x), x.ndim - 2
    padding = layer.padding
    if isinstance(padding, str):
        x, padding = functional.pad(x, _padding(layer)), (0,) * axes
    weight = layer.weight.detach().to(delta.dtype)
    every = weight.expand(n, *weight.shape).flatten(0, 1)
    _, found, _ = torch.ops.aten.convolution_backward(
        delta.reshape(1, -1, *delta.shape[2:]),
        x.reshape(1, -1, *x.shape[2:]),
        every,
        None,
        layer.stride,
        padding,
        layer.dilation,
        False,
        [0] * axes,
        n * layer.groups,
        [False, True, False],
    )
    return found.view(n, *weight.shape)


def _outer(layer: Convolution, x: Tensor, delta: Tensor) -> Tensor:
    """Gradients of a 1 x 1 convolution: sums of outer products over pixels."""
    found = delta.flatten(2) @ _pixels(layer, x).transpose(1, 2)
    return found.view(len(x), *layer.weight.shape)


def _pixels(layer: Convolution, x: Tensor) -> Tensor:
    """The pixels that a 1 x 1 convolution reads, shape (n, channels, pixels)."""
    for axis, step in enumerate(layer.stride, start=2):
        if step > 1:
            x = x[(slice(None),) * axis + (slice(None, None, step),)]
    return x.flatten(2)
