"""Compare forward passes of a network, and find the first module that differs."""

from __future__ import annotations

import contextlib
import copy
import math
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_Kept = TypeVar("_Kept")

DOUBLE = torch.finfo(torch.float64).eps
# most numbers that a pass over many images may compute, so that it takes about a second
_MOST = 2**23
# numbers that a pass computes for one image, and parameters, from which on fewer images are tried
_MANY = 2**22


class Seen(TorchDispatchMode):
    """What the operations inside compute of a number of images.

    Attributes
    ----------
    eps : float
        Relative rounding error of the least precise floating-point result.
    entries : int
        Numbers computed.
    lengths : set of int
        Of the axes of results.
    drew : bool
        Whether random numbers were drawn.
    """

    def __init__(self, images: int) -> None:
        super().__init__()
        self.eps, self.entries, self.drew = 0.0, 0, False
        self.lengths: set[int] = set()
        self._images = images

    @property
    def each(self) -> int:
        """Numbers computed for one image."""
        return max(self.entries // self._images, 1)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.drew |= torch.Tag.nondeterministic_seeded in func.tags
        for tensor in tensors(result):
            self.entries += tensor.numel()
            self.lengths |= set(tensor.shape)
            if tensor.is_floating_point():
                self.eps = max(self.eps, torch.finfo(tensor.dtype).eps)
        return result


def precise(network: nn.Module, x: Tensor, *, training: bool) -> tuple[nn.Module, Tensor, Seen]:
    """A copy of a network and its input, in double precision if supported, with the record of a pass.

    The copy shares nothing with the network, so that no pass leaves a trace in it. Entries of trained
    parameters that are zero become small random numbers: otherwise nothing would show what they multiply,
    although the first step of training may change them.
    """
    for dtype in (torch.float64, torch.float32):
        made, own = shaken(copied(network).to(dtype)).train(training), x.to(dtype)
        drawn = _drawn()
        try:
            with Seen(len(x)) as seen:
                copied(made)(own)
            seen.drew |= _drawn() != drawn
        except Exception as error:  # whatever a network does not like
            failed = error
        else:
            return made, own, seen
    raise ValueError(
        f"body must accept a batch of {len(x)} images of shape {tuple(x.shape[1:])}, got "
        f"{type(failed).__name__}: {failed}"
    ) from failed


def copied(network: nn.Module) -> nn.Module:
    """A deep copy.

    Raises
    ------
    ValueError
        If there is none.
    """
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise ValueError(
            f"body must be a module that copy.deepcopy copies, got {type(network).__name__} "
            f"({type(error).__name__}: {error}): keep no results of earlier passes in it"
        ) from error


def shaken(network: nn.Module) -> nn.Module:
    """Give trained entries that are zero small random values, in place."""
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad and not p.all():
                noise = 0.1 * torch.randn(p.shape, generator=draws, dtype=torch.float64)
                p.copy_(torch.where(p == 0, noise.to(p), p))
    return network


@contextlib.contextmanager
def unnoticed() -> Iterator[None]:
    """Restore the global random generators of torch, numpy and Python."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(0)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _drawn() -> tuple[Any, ...]:
    """State of the random generators other than torch's, whose draws `Seen` sees."""
    numpy = np.random.get_state(legacy=True)  # noqa: NPY002
    return random.getstate(), numpy[1].tobytes(), numpy[2]  # type: ignore[union-attr]


def tensors(result: Any) -> Iterator[Tensor]:
    """Tensors in what a module or an operation gives: alone, or in tuples, lists and dicts."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict):
        for value in result.values():
            yield from tensors(value)
    elif isinstance(result, list | tuple):
        for value in result:
            yield from tensors(value)


@contextlib.contextmanager
def calls(
    network: nn.Module, keep: Callable[[Any], _Kept] = lambda output: output
) -> Iterator[list[tuple[str, _Kept]]]:
    """Each call of each module in a pass, inner ones first: its name, and what is kept of its output."""
    found: list[tuple[str, _Kept]] = []

    def note(name: str, output: Any) -> None:
        # nothing is returned: it would replace the output
        found.append((name, keep(output)))

    handles = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in network.named_modules()
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def differ(a: Tensor, b: Tensor, eps: float) -> bool:
    """Tell whether values differ by more than rounding: in the first half of the digits."""
    if a.shape != b.shape or torch.equal(a, b):
        return a.shape != b.shape
    if not a.is_floating_point():
        return True
    finite = a.isfinite() & b.isfinite()
    if not torch.equal(a.nan_to_num(0.0, 1.0, -1.0)[~finite], b.nan_to_num(0.0, 1.0, -1.0)[~finite]):
        return True
    a, b = a[finite], b[finite]
    if not a.numel():
        return False
    scale = torch.maximum(a.abs().max(), b.abs().max())
    return bool((a - b).abs().max() > math.sqrt(eps) * scale)


def rows(network: nn.Module, images: Tensor, places: Sequence[int]) -> list[tuple[str, list[Tensor]]]:
    """For each call of a module, the rows of its results that belong to the images at ``places``."""
    chosen = torch.tensor(places, device=images.device)

    def keep(output: Any) -> list[Tensor]:
        # a copy, as later modules may work in place
        return [t.detach()[chosen] for t in tensors(output) if t.ndim and len(t) == len(images)]

    with calls(network, keep) as found:
        network(images)
    return found


def first_difference(
    a: Iterable[tuple[str, list[Tensor]]], b: Iterable[tuple[str, list[Tensor]]], eps: float
) -> str:
    """Return the first module that gives other rows, or "" if none does."""
    for (name, own), (other_name, other) in zip(a, b, strict=False):
        if name != other_name:
            return name
        if len(own) == len(other) and any(differ(x, y, eps) for x, y in zip(own, other, strict=True)):
            return name
    return ""


def others(images: Tensor, count: int | None = None) -> Tensor:
    """Random images in the range of ``images``, as many unless ``count`` says otherwise."""
    draws = torch.Generator().manual_seed(1)
    shape = (len(images) if count is None else count, *images.shape[1:])
    uniform = torch.rand(shape, generator=draws, dtype=torch.float64).to(images)
    return images.min() + (images.max() - images.min()) * uniform


def extremes(images: Tensor) -> Tensor:
    """Images of the least value, the largest, all between, and far beyond, shape (4, ...)."""
    low, high = images.min(), images.max()
    ramp = torch.linspace(0, 1, images[0].numel()).to(images).view_as(images[0])
    return torch.stack([low + 0 * ramp, high + 0 * ramp, low + (high - low) * ramp, 100 * images[-1]])


def fewer(network: nn.Module, images: Tensor, seen: Seen) -> Tensor:
    """All images; for a slow network, the first two and the last."""
    work = seen.each + sum(p.numel() for p in network.parameters())
    return images[[0, 1, -1]] if work > _MANY and len(images) > 3 else images


def sizes(seen: Seen, images: int) -> list[int]:
    """Numbers of images to try together: each length of an axis in the network that the cost admits.

    A module that confuses another axis with that of the images may do harm only if both have one length.
    """
    found, cost = [], 0
    for length in sorted(seen.lengths | {2, images + 1}):
        cost += length * seen.each
        if length > 1 and (cost <= _MOST or length <= images + 1):
            found.append(length)
    return found


def state(network: nn.Module) -> dict[tuple[str, str], Any]:
    """Return the plain attributes of modules: numbers, text, tensors and collections of them."""
    return {
        (name, key): _plain(value)
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if key not in _OWN
    }


_OWN = frozenset(vars(nn.Module()))
# how deep collections and objects in an attribute are looked into
_DEPTH = 4


def _plain(value: Any, depth: int = 0) -> Any:
    """What ``==`` compares instead of a value."""
    if isinstance(value, Tensor):
        return value.dtype, value.shape, value.detach().cpu().to(torch.complex128).numpy().tobytes()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return value.shape, value.tobytes()
    if value is None or isinstance(value, bool | int | float | complex | str):
        return value
    if depth < _DEPTH and isinstance(value, list | tuple | set | frozenset | deque):
        return tuple(_plain(item, depth + 1) for item in value)
    if isinstance(value, nn.Module) or not (isinstance(value, dict) or callable(value)):
        value = getattr(value, "__dict__", {})
    if depth < _DEPTH and isinstance(value, dict):
        return tuple((str(key), _plain(item, depth + 1)) for key, item in value.items())
    return type(value)
