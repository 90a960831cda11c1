"""Several processes, one GPU each, that fine-tune one network together, started by ``torchrun``."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from langevin.support import validate

_Value = TypeVar("_Value")


class Group:
    """The processes of a distributed run, or the only one.

    Each draws the same Poisson batch, processes its share, and adds the clipped sums of the others to its
    own; all then add the same noise. A process whose share is empty contributes zeros, so that no process
    waits for another. From Opacus's wrapper for several processes only the sharing of weights is used: its
    optimizer skips an empty share, and the other processes would wait forever.

    Attributes
    ----------
    rank, size : int
    """

    def __init__(self) -> None:
        active = distributed.is_available() and distributed.is_initialized()
        self.rank = distributed.get_rank() if active else 0
        self.size = distributed.get_world_size() if active else 1

    def synchronise(self, model: nn.Module) -> None:
        """Give every process the weights of the first."""
        if self.size > 1:
            from opacus.distributed import DifferentiallyPrivateDistributedDataParallel

            DifferentiallyPrivateDistributedDataParallel(model)

    def agreed(self, value: _Value) -> _Value:
        """The first process's value, for all."""
        shared = [value]
        if self.size > 1:
            distributed.broadcast_object_list(shared)
        return shared[0]

    def add(self, sums: Tensor) -> None:
        """Add ``sums`` over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(sums)


def place(device: str) -> torch.device:
    """The device of a name, if torch finds it.

    Raises
    ------
    ValueError
        For an unknown name, or a GPU that does not exist.

    Examples
    --------
    >>> place("cpu")
    device(type='cpu')
    """
    found = torch.device(validate.device(device))
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device must be 'cpu', or one of the {torch.cuda.device_count()} GPU(s) that torch finds, got "
            f"{device!r}"
        )
    return found


def join(device: str) -> str:
    """Join the processes started by ``torchrun``, if any; return this process's device.

    Examples
    --------
    >>> join("cpu")
    'cpu'
    """
    import os

    if "LOCAL_RANK" not in os.environ or distributed.is_initialized():
        return device
    if device == "cpu":
        distributed.init_process_group("gloo")
        return device
    place = f"cuda:{os.environ['LOCAL_RANK']}"
    torch.cuda.set_device(place)
    distributed.init_process_group("nccl")
    return place
