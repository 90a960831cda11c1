"""Memory that fine-tuning needs: estimated in advance, divided into chunks, and refused if it is not free."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from langevin.support import validate

_Result = TypeVar("_Result")

# for the samples that are worked on at once, in bytes; of a GPU half of what is free, as unfolded inputs of
# convolutions come on top
_CHUNK_BYTES = 2**30
_CHUNK_SHARE = 2
_FEWER = 4
# weights, their gradient or that of an image, its noise, the sum of both, momentum, and a copy for a file
_COPIES = 6


def kept(body: nn.Module, shape: Sequence[int]) -> int:
    """Bytes that a forward pass keeps of one image, if all parameters train.

    Parameters
    ----------
    body : nn.Module
    shape : sequence of int
        Of an image.

    Examples
    --------
    >>> layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> kept(layers, (1, 2, 2))  # what either layer sees, 4 numbers and 8
    48
    """
    device = next((p.device for p in body.parameters()), torch.device("cpu"))
    # two, as some layers take no batch of one
    images = torch.zeros(2, *shape, device=device)
    weights = {value.untyped_storage().data_ptr() for value in body.state_dict().values()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    modes = {layer: layer.training for layer in body.modules()}
    trains = {p: p.requires_grad for p in body.parameters()}
    try:
        # no running mean is touched, and no random number drawn
        body.eval()
        for p in trains:
            p.requires_grad_(True)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            # what is kept lives as long as the result: no two of it have the same address
            result = body(images)
        del result
    finally:
        for layer, training in modes.items():
            layer.training = training
        for p, train in trains.items():
            p.requires_grad_(train)
    return sum(found.values()) // len(images)


def free(device: torch.device) -> int:
    """Bytes that are free on a device, including those that torch holds in reserve."""
    if device.type == "cuda":
        reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + reserve
    import psutil

    return psutil.virtual_memory().available


def chunk(each: int, most: int, device: torch.device) -> int:
    """Samples of ``each`` bytes to process at once, from 1 to ``most``.

    On a processor it depends on nothing else, so that every machine gives the same bits.
    """
    budget = free(device) // _CHUNK_SHARE if device.type == "cuda" else _CHUNK_BYTES
    return max(1, min(most, budget // max(each, 1)))


def for_features(each: int, most: int, device: torch.device) -> int:
    """Samples to compute features of at once: fewer, as large batches are slow in a processor's caches."""
    return chunk(_FEWER * each, most, device)


def fitting(
    work: Callable[[int], _Result],
    at_once: int,
    device: torch.device,
    afresh: Callable[[], None] | None = None,
) -> tuple[_Result, int]:
    """Do ``work`` on ``at_once`` samples at a time, halving that number until it fits in memory.

    Parameters
    ----------
    work : callable
        Takes the number of samples at once; its result must not depend on it.
    at_once : int
    device : torch.device
    afresh : callable, optional
        Removes what unfinished work left behind.

    Returns
    -------
    tuple
        The result, and the number that fits.

    Raises
    ------
    MemoryError
        If one sample at a time does not fit.
    """
    while True:
        try:
            return work(at_once), at_once
        except torch.OutOfMemoryError:
            pass
        # not in the handler, which keeps alive what filled the memory
        if afresh is not None:
            afresh()
        torch.cuda.empty_cache()
        if at_once == 1:
            raise MemoryError(
                f"one image at a time needs more than the {free(device) / 2**30:.3g} GiB that are free on "
                f"{device}: use smaller images, a smaller body, or the engine 'ghost'"
            )
        at_once //= 2


def require(
    body: nn.Module, shape: Sequence[int], images: int, device: torch.device, *, at_once: int = 1
) -> None:
    """Refuse to train with more memory than a device has free.

    Parameters
    ----------
    body : nn.Module
    shape : sequence of int
        Of an image.
    images : int
        Number of images held on the device.
    device : torch.device
    at_once : int
        Images processed at once.

    Raises
    ------
    MemoryError
        Says how much is needed, and how much is free.
    """
    held = 4 * images * torch.Size(shape).numel()
    weights = 4 * sum(p.numel() for p in body.parameters())
    work = 2 * at_once * kept(body, shape)
    validate.memory(
        held + _COPIES * weights + work,
        f"training on {device}, of {images} images of {tuple(shape)} ({held / 2**30:.2g} GiB), {at_once} at "
        f"once ({work / 2**30:.2g} GiB),",
        "use fewer or smaller images, or a smaller body",
        free(device),
    )
