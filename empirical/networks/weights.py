"""A module's weights in a file of plain arrays, never a pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from langevin.store import atomic, npz


class WeightsError(Exception):
    """A weights file that cannot be written, is damaged, or belongs to another architecture."""


def save_weights(path: str | Path, module: nn.Module) -> Path:
    """Write a module's parameters and buffers as ``.npz``; the file appears complete or not at all.

    Parameters
    ----------
    path : str or Path
        Ends in ``.npz``; replaced if it exists.
    module : nn.Module

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    WeightsError
        If the file cannot be written.
    """
    path = _path(path)
    arrays = {name: value.detach().cpu().numpy() for name, value in module.state_dict().items()}
    try:
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        raise WeightsError(f"{path} could not be written: {error.strerror or error}") from error
    return path


def load_weights(path: str | Path, module: nn.Module) -> None:
    """Fill a module of the same architecture; nothing changes if anything does not fit.

    Parameters
    ----------
    path : str or Path
        As `save_weights` wrote it.
    module : nn.Module
        Changed in place; stays on its device.

    Raises
    ------
    WeightsError
        If there is no such file, it is damaged, or names, shapes or types differ from the module's.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    >>> with TemporaryDirectory() as folder:
    ...     load_weights(save_weights(Path(folder, "head.npz"), first), second)
    >>> bool((first.weight == second.weight).all())
    True
    """
    path = _path(path)
    try:
        stored = npz.read(path)
    except FileNotFoundError:
        raise WeightsError(f"there is no file of weights {str(path)!r}: save them first") from None
    except (OSError, npz.Damaged) as error:
        raise WeightsError(f"{path} is damaged ({error}): make it again") from error
    state = module.state_dict()
    missing, unknown = sorted(state.keys() - stored.keys()), sorted(stored.keys() - state.keys())
    if missing or unknown:
        raise WeightsError(
            f"{path} holds weights of another architecture: it lacks {missing} and also has "
            f"{unknown}; build the module that it was saved from"
        )
    for name, value in state.items():
        found = torch.from_numpy(stored[name])
        if found.shape != value.shape or found.dtype != value.dtype:
            raise WeightsError(
                f"{path} holds {name} of shape {tuple(found.shape)} and {found.dtype}, the module's is of "
                f"{tuple(value.shape)} and {value.dtype}: build the module that it was saved from"
            )
    module.load_state_dict({name: torch.from_numpy(value) for name, value in stored.items()})


def _path(path: str | Path) -> Path:
    path = Path(path)
    if path.suffix != ".npz":
        raise WeightsError(f"path must end in .npz, got {str(path)!r}")
    return path
