"""Bodies: networks without their head."""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from empirical.data.images import Images
from empirical.devices import ambient
from langevin.support import validate
from langevin.support.rng import RNG, generator

# modules of the activations of `langevin.model.activations`
ACTIVATIONS = {"relu": nn.ReLU, "linear": nn.Identity, "gelu": nn.GELU, "tanh": nn.Tanh}

# mean and standard deviation of intensities, each a number or one for each channel
Scale = tuple[float | Sequence[float], float | Sequence[float]]


class Classifier(nn.Module):
    """A linear head on a body.

    Parameters
    ----------
    body : nn.Module
        Maps images (n, channels, height, width) to features (n, ``body.features``).
    classes : int
        Outputs; 1 for the two-layer network of the theory.
    bias : bool
        Of the head.
    """

    def __init__(self, body: nn.Module, classes: int, *, bias: bool = False) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features_of(body), validate.integer("classes", classes, 1), bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


def features_of(body: nn.Module) -> int:
    """Number of features of a body.

    Raises
    ------
    TypeError
        If it does not say.
    """
    features = getattr(body, "features", None)
    if not isinstance(features, int):
        raise TypeError(
            "body must say how many features it has in an attribute 'features', got "
            f"{type(body).__name__} without it"
        )
    return features


def scale_of(body: nn.Module, task: Images) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel by which a body sees a task's images, ``(x - mean) / std``.

    Parameters
    ----------
    body : nn.Module
        Its attribute ``scale``, if it is there and not None, holds those of its pre-training, which are
        taken: a number, or one for each channel, each.
    task : Images
        Otherwise its public part decides; without one, intensities x become ``2 x - 1``.

    Returns
    -------
    mean, std : ndarray, shape (channels,)

    Raises
    ------
    ValueError
        If the body's numbers are not those of a scale.

    Examples
    --------
    >>> from empirical import digits
    >>> body = mlp((1, 8, 8))
    >>> body.scale = 0.5, 0.25
    >>> scale_of(body, digits())
    (array([0.5]), array([0.25]))
    """
    own: Any = getattr(body, "scale", None)
    if own is None or isinstance(own, nn.Module):
        return task.scale()
    channels = task.train.shape[0]
    try:
        mean, std = (np.broadcast_to(np.asarray(part, dtype=float), (channels,)).copy() for part in own)
    except (TypeError, ValueError):
        mean = std = np.full(channels, np.nan)
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ValueError(
            f"body.scale must be a mean and a positive standard deviation, each a number or {channels}, one "
            f"for each channel, got {own!r}"
        )
    return mean, std


def eager(body: nn.Module) -> nn.Module:
    """The body as ordinary modules, without the wrappers of ``torch.compile``.

    Parameters
    ----------
    body : nn.Module
        Not changed.

    Returns
    -------
    nn.Module
        ``body`` itself, or a copy where parts of it are compiled.

    Raises
    ------
    TypeError, ValueError
        If it cannot be copied, or hooked layer by layer. The message names the module or the value.

    Examples
    --------
    >>> layers = nn.Linear(2, 1)
    >>> eager(layers) is layers
    True
    """
    if not isinstance(body, nn.Module):
        raise TypeError(f"body must be a torch.nn.Module, got {type(body).__name__}")
    body = getattr(body, "_orig_mod", body)
    for name, module in body.named_modules():
        where = f"at {name!r}" if name else "for the whole"
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"body must be of ordinary modules, got a scripted or traced one {where}: pass the module "
                "that it was made from"
            )
        computed = [key for key, v in vars(module).items() if isinstance(v, Tensor) and v.grad_fn is not None]
        if computed:
            raise ValueError(
                f"body must not keep results of its parameters, got {computed[0]!r} of "
                f"{type(module).__name__} {where}: compute it in forward, or remove weight normalisation"
            )
    for name, value in body.state_dict().items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"body must hold tensors alone, got {name!r} of {type(value).__name__}: quantised?"
            )
        if is_lazy(value):
            raise ValueError(f"body must have known shapes, got the lazy {name!r}: call it on images once")
        if value.is_meta:
            raise ValueError(f"body must have values, got {name!r} on the device 'meta': load its weights")
        if value.layout != torch.strided:
            raise ValueError(f"body must be dense, got {name!r} of {value.layout}: call to_dense()")
    if any(hasattr(module, "_orig_mod") for module in body.modules()):
        body = copy.deepcopy(body)
        for module in list(body.modules()):
            for name, child in list(module.named_children()):
                setattr(module, name, getattr(child, "_orig_mod", child))
    return body


class Body(nn.Sequential):
    """Layers that end in features.

    Attributes
    ----------
    features : int
    made : dict or None
        Arguments with which `body` makes it.
    scale : tuple of (float or sequence of float) or None
        Mean and standard deviation of intensities in the pre-training, see `scale_of`.
    """

    scale: Scale | None = None

    def __init__(self, *layers: nn.Module, features: int, made: dict[str, Any] | None = None) -> None:
        super().__init__(*layers)
        self.features, self.made = features, made


def mlp(
    shape: Sequence[int],
    widths: Sequence[int] = (128,),
    *,
    activation: str = "relu",
    bias: bool = True,
    rng: RNG = 0,
) -> Body:
    """Linear layers, each followed by the activation.

    With one width and without biases, a `Classifier` of it is the network ``v phi(W x)`` of the theory.

    Examples
    --------
    >>> mlp((1, 8, 8), (16, 4)).features
    4
    """
    validate.choice("activation", activation, ACTIVATIONS)
    sizes = [math.prod(_sizes("shape", shape)), *_sizes("widths", widths)]
    entries = sum(a * b for a, b in itertools.pairwise(sizes))
    validate.memory(4.0 * entries, f"an MLP of widths {list(widths)}", "use smaller widths")
    with seeded(rng, "mlp"):
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers.append(nn.Linear(inputs, outputs, bias=bias))
            if activation != "linear":
                layers.append(ACTIVATIONS[activation]())
    options = {"activation": activation, "bias": bool(bias)}
    return Body(*layers, features=sizes[-1], made=made_by("mlp", shape, sizes[1:], options))


@ambient.ordinary()
def layer(shape: Sequence[int], W: ArrayLike | None = None, *, activation: str | None = None) -> Body:
    """One layer on top of frozen features, ``phi(W x)``, without biases: the network that plans simulate.

    Parameters
    ----------
    shape : sequence of int
        Of an image; (1, 1, d) for feature vectors.
    W : array_like, shape (h, d), optional
        Weights to start from; by default the identity, so that probing is of the features as they are.
    activation : {"relu", "linear", "gelu", "tanh"}, optional
        By default "relu" with ``W``, otherwise "linear".

    Examples
    --------
    >>> layer((1, 1, 2))(torch.tensor([[[[1.0, -2.0]]]]))
    tensor([[ 1., -2.]], grad_fn=<MmBackward0>)
    """
    inputs = math.prod(_sizes("shape", shape))
    if W is None:
        validate.memory(4.0 * 4 * inputs**2, f"a layer of {inputs} features", "use fewer, or the body 'mlp'")
        start = torch.eye(inputs)
    else:
        start = torch.tensor(validate.array("W", W, 2), dtype=torch.float32)
    if start.shape[1] != inputs:
        raise ValueError(f"W must have a column for each of the {inputs} features, got {start.shape[1]}")
    chosen = validate.choice("activation", activation or ("linear" if W is None else "relu"), ACTIVATIONS)
    # no random number is drawn
    dense = nn.utils.skip_init(nn.Linear, inputs, len(start), bias=False)
    dense.weight = nn.Parameter(start)
    layers = [nn.Flatten(), dense, *([] if chosen == "linear" else [ACTIVATIONS[chosen]()])]
    # with other weights, an mlp of one width
    made = made_by("mlp", shape, (len(start),), {"activation": chosen, "bias": False})
    return Body(*layers, features=len(start), made=made)


def convnet(
    shape: Sequence[int], widths: Sequence[int] = (32, 64, 128), *, groups: int = 8, rng: RNG = 0
) -> Body:
    """Blocks of a 3 x 3 convolution, group normalisation and ReLU, the mean over pixels at the end.

    From the second on, a block halves height and width. Nothing mixes samples.

    Parameters
    ----------
    shape : sequence of int
    widths : sequence of int
        Channels of the blocks, multiples of ``groups``.
    groups : int

    Examples
    --------
    >>> convnet((1, 16, 16), (8, 16))(torch.zeros(2, 1, 16, 16)).shape
    torch.Size([2, 16])
    """
    widths = _sizes("widths", widths)
    groups = validate.integer("groups", groups, 1)
    odd = [width for width in widths if width % groups]
    if odd:
        raise ValueError(f"widths must be multiples of groups={groups}, got {odd[0]}")
    channels = [_sizes("shape", shape)[0], *widths]
    with seeded(rng, "convnet"):
        layers: list[nn.Module] = []
        for place, (inputs, outputs) in enumerate(itertools.pairwise(channels)):
            layers += [
                nn.Conv2d(inputs, outputs, 3, stride=2 if place else 1, padding=1, bias=False),
                nn.GroupNorm(groups, outputs),
                nn.ReLU(),
            ]
    made = made_by("conv", shape, widths, {"groups": groups})
    return Body(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), features=channels[-1], made=made)


def made_by(
    name: str,
    shape: Sequence[int],
    widths: Sequence[int] | None,
    options: dict[str, Any],
    weights: str | Path | None = None,
) -> dict[str, Any]:
    """The arguments of `body`, as plain data."""
    sizes = [int(n) for n in shape], None if widths is None else [int(n) for n in widths]
    given = None if weights is None else str(weights)
    return {"name": name, "shape": sizes[0], "widths": sizes[1], "options": options, "weights": given}


def _sizes(name: str, value: Any) -> list[int]:
    found = [validate.integer(name, size, 1) for size in validate.sequence(name, value, object)]
    if not found:
        raise ValueError(f"{name} must hold a number at least, got none")
    return found


@contextlib.contextmanager
def seeded(rng: RNG, purpose: str) -> Iterator[None]:
    """Seed torch's processor generator from ``rng``, and restore it afterwards."""
    seed = int(generator(rng, purpose).integers(2**62))
    with ambient.ordinary():
        ambient.seed(seed)
        yield
