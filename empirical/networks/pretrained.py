"""Bodies of timm and transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from empirical.networks.bodies import Scale, made_by, seeded
from langevin.support.rng import RNG

_VISION = "install the extra 'vision', with a torch version that torchvision supports"


class Pretrained(nn.Module):
    """A body from a library of models.

    Attributes
    ----------
    network : nn.Module
    features : int
    made : dict or None
        Arguments with which `body` makes it.
    scale : tuple or None
        Mean and standard deviation of intensities in the pre-training: of timm's weights on the hub, and of
        a folder of transformers with ``preprocessor_config.json``.
    """

    made: dict[str, Any] | None = None
    scale: Scale | None = None

    def __init__(self, network: nn.Module, features: int, transformers: bool = False) -> None:
        super().__init__()
        self.network, self.features, self._transformers = network, features, transformers

    def forward(self, x: Tensor) -> Tensor:
        if not self._transformers:
            return self.network(x)
        outputs = self.network(pixel_values=x)
        pooled = getattr(outputs, "pooler_output", None)
        return outputs.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def pretrained(
    name: str, shape: Sequence[int], *, weights: str | Path | None = None, rng: RNG = 0, **options: Any
) -> Pretrained:
    """Take a body from timm or transformers, without its classifier.

    Parameters
    ----------
    name : str
        "timm:<model>", such as "timm:resnet50", "timm:wide_resnet50_2", "timm:vit_tiny_patch16_224" or
        "timm:mobilenetv3_small_100"; or "hf:<model>", a name on the hub, or with ``weights=None`` a kind of
        model such as "vit".
    shape : sequence of int
        Channels, height and width of an image.
    weights : "hub", path or None
        "hub": downloaded, or found in the hub's local cache. A path: a file ending in ``.safetensors`` for
        timm, a folder with ``config.json`` and ``model.safetensors`` for transformers. None: drawn from
        ``rng``.
    **options
        For timm's ``create_model`` or the configuration of transformers, such as ``patch_size=4``.

    Raises
    ------
    ImportError
        If the library is not installed.
    ValueError
        If there is no such model, or the weights do not fit.
    """
    library, _, model = name.partition(":")
    if library not in ("timm", "hf") or not model:
        raise ValueError(f"body must be 'mlp', 'conv', 'lite0', 'timm:<model>' or 'hf:<model>', got {name!r}")
    make = _timm if library == "timm" else _transformers
    with seeded(rng, "pretrained"):
        made = make(model, [int(n) for n in shape], weights, options)
    made.made = made_by(name, shape, None, options, weights)
    return made


def _timm(name: str, shape: list[int], weights: str | Path | None, options: dict[str, Any]) -> Pretrained:
    try:
        import timm  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # a torchvision that does not fit torch
        raise ImportError(f"body 'timm:{name}' needs timm ({error}): {_VISION}") from None
    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('_')[0]}*")[:8]
        raise ValueError(f"body must be one of timm's models, got {name!r}; near it: {', '.join(near)}")
    arguments: dict[str, Any] = dict(num_classes=0, in_chans=shape[0]) | options
    if weights == "hub":
        # timm itself would load pickles if there is nothing else
        arguments |= dict(pretrained=True, pretrained_cfg_overlay={"file": _download(name)})
    try:
        network = timm.create_model(name, **{"img_size": tuple(shape[1:]), **arguments})
    except TypeError:  # most convolutional networks take any size
        network = timm.create_model(name, **arguments)
    if weights not in (None, "hub"):
        _load(network, Path(str(weights)))
    with torch.no_grad():
        features = network.eval()(torch.zeros(1, *shape)).shape[1]
    made = Pretrained(network.train(), features)
    if weights == "hub":
        published = network.pretrained_cfg
        made.scale = _scale(published.get("mean"), published.get("std"), shape[0])
    return made


def _scale(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> Scale | None:
    """Published mean and standard deviation; for another number of channels, their means."""
    if mean is None or std is None:
        return None
    if len(mean) == len(std) == channels:
        return tuple(mean), tuple(std)
    return sum(mean) / len(mean), sum(std) / len(std)


def _folder_scale(folder: Path, channels: int) -> Scale | None:
    """Mean and standard deviation that a folder of transformers states; None if it states none."""
    try:
        stated = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf8"))
        return _scale(stated.get("image_mean"), stated.get("image_std"), channels)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            f"weights={str(folder)!r} must have a readable preprocessor_config.json, or none: {error}"
        ) from None


def _download(name: str) -> str:
    """Path of the hub's weights of a timm model, in safetensors."""
    import timm  # pyright: ignore[reportMissingImports]
    from huggingface_hub import hf_hub_download  # pyright: ignore[reportMissingImports]

    known = timm.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        raise ValueError(f"weights must be None or a path for 'timm:{name}', got 'hub', which has none")
    return hf_hub_download(known.hf_hub_id, "model.safetensors")


def _load(network: nn.Module, path: Path) -> None:
    """Load a safetensors file; entries that the network lacks, such as a classifier, are ignored."""
    if path.suffix != ".safetensors" or not path.is_file():
        raise ValueError(f"weights must be 'hub', None or a file ending in .safetensors, got {str(path)!r}")
    from safetensors.torch import load_file  # pyright: ignore[reportMissingImports]

    found = load_file(path)
    own = network.state_dict()
    missing = [k for k, v in own.items() if k not in found or found[k].shape != v.shape]
    if missing:
        raise ValueError(
            f"weights in {str(path)!r} must hold {missing[0]!r} of shape {tuple(own[missing[0]].shape)} "
            f"({len(missing)} such): use those of this model, at this size"
        )
    network.load_state_dict({k: found[k] for k in own})


def _transformers(
    name: str, shape: list[int], weights: str | Path | None, options: dict[str, Any]
) -> Pretrained:
    try:
        from transformers import AutoConfig, AutoModel  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:
        raise ImportError(f"body 'hf:{name}' needs transformers ({error}): {_VISION}") from None
    try:
        if weights is None:
            size = {"image_size": shape[1] if shape[1] == shape[2] else tuple(shape[1:])}
            config = AutoConfig.for_model(name, **{"num_channels": shape[0], **size, **options})
            network = AutoModel.from_config(config)
            missing = []
        else:
            source = name if weights == "hub" else str(weights)
            local = weights != "hub"
            network, found = AutoModel.from_pretrained(
                source, local_files_only=local, use_safetensors=True, output_loading_info=True, **options
            )
            missing = sorted(found["missing_keys"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"body 'hf:{name}' with weights={str(weights)!r} cannot be made: {error}") from None
    absent = [key for key in missing if not key.startswith("pooler.")]
    if absent:
        raise ValueError(
            f"weights={str(weights)!r} must hold {absent[0]!r} of 'hf:{name}' ({len(absent)} such)"
        )
    pooler = getattr(network, "pooler", None)
    if (
        (missing or weights is None)
        and isinstance(pooler, nn.Module)
        and any(True for _ in pooler.parameters())
    ):
        # one that was never trained would scramble the features
        network.pooler = None
    wrapped = Pretrained(network, 1, transformers=True)
    if weights not in (None, "hub"):
        wrapped.scale = _folder_scale(Path(str(weights)), shape[0])
    with torch.no_grad():
        wrapped.features = wrapped.eval()(torch.zeros(1, *shape)).shape[1]
    return wrapped.train()
