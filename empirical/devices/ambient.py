"""Torch's modes and random generators: set to defaults while working, restored afterwards."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def ordinary(device: torch.device | None = None) -> Iterator[None]:
    """Work in torch's initial modes, and restore the caller's modes and random generators afterwards.

    Gradients are recorded, new tensors are in single precision and on the processor, and autocasting is off:
    it would round the norms that clipping relies on. Also works as a decorator.

    Parameters
    ----------
    device : torch.device, optional
        A GPU whose generator is restored too; those of GPUs already in use always are.

    Notes
    -----
    The default precision belongs to the process: other threads see the change in the meantime.

    Examples
    --------
    >>> with torch.no_grad(), ordinary():
    ...     torch.is_grad_enabled()
    True
    """
    used = set(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else set()
    if device is not None and device.type == "cuda":
        used.add(torch.cuda.current_device() if device.index is None else device.index)
    precision = torch.get_default_dtype()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(sorted(used)))
        # in this order, as leaving inference mode sets whether gradients are recorded
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # such a mode slows every operation
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if precision != torch.float32:
            stack.callback(torch.set_default_dtype, precision)
            torch.set_default_dtype(torch.float32)
        yield


def seed(value: int, device: torch.device | None = None) -> None:
    """Seed the processor's generator, and that of a GPU; `torch.manual_seed` would seed all."""
    torch.default_generator.manual_seed(value)
    if device is not None and device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(value)
