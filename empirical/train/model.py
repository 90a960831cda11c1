"""A fine-tuned classifier on disk, with everything that prediction needs, and its privacy record."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from empirical.data.images import Part, normalised
from empirical.data.rows import Rows
from empirical.devices import ambient
from empirical.devices.parallel import place
from empirical.networks import bodies, by_name, subsets
from empirical.networks.bodies import Classifier
from empirical.networks.embed import embed
from empirical.networks.private import make_private
from empirical.networks.weights import WeightsError
from empirical.privacy.history import History
from langevin.store import atomic
from langevin.support import validate

if TYPE_CHECKING:
    from empirical.train.fine_tuning import FineTuning

_FORMAT = 1
# relative difference of outputs that another machine's rounding explains, in single precision
_ROUNDING = 1e-3
_LARGEST_IMAGE = 2**28


@dataclass(frozen=True, eq=False)
class Model:
    """A fine-tuned classifier that accepts unnormalised images and names their classes.

    Attributes
    ----------
    network : Classifier
        Body and head, on normalised images ``(x - mean) / std``.
    classes : tuple of str
        In the order of the outputs.
    shape : tuple of int
        Channels, height and width of an image.
    mean, std : ndarray, shape (channels,)
        Normalisation of images: ``(x - mean) / std``.
    history : History
        Everything that training released about private data; `account` states its epsilon.
    record : mapping
        The whole record stored with the weights.
    """

    network: Classifier
    classes: tuple[str, ...]
    shape: tuple[int, int, int]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    history: History
    record: Mapping[str, Any]

    def probabilities(self, images: Part | ArrayLike) -> NDArray[np.float32]:
        """Probability of each class for each image.

        Parameters
        ----------
        images : Part or array_like, shape (n, channels, height, width)
            Intensities in [0, 1], not normalised; or feature vectors, shape (n, 1, 1, d), where the model was
            trained on those.

        Returns
        -------
        ndarray of float32, shape (n, classes)

        Raises
        ------
        ValueError, TypeError
            For images of another shape, or intensities outside [0, 1].
        """
        if not isinstance(images, Part):
            pixels, kind = np.asarray(images), Rows if self.record["inputs"] == "features" else Part
            images = kind(pixels, np.zeros(pixels.shape[:1], int), self.classes)
        if images.shape != self.shape:
            raise ValueError(
                f"images must be of shape {self.shape}, got {images.shape}: read them as for the training"
            )
        with ambient.ordinary():
            outputs = embed(self.network, normalised(images.images, self.mean, self.std))
            return torch.softmax(torch.from_numpy(outputs), 1).numpy()

    def predict(self, images: Part | ArrayLike) -> NDArray[np.str_]:
        """Name of the most probable class of each image, shape (n,); see `probabilities`."""
        return np.array(self.classes)[self.probabilities(images).argmax(axis=1)]


def save(path: str | Path, tuning: FineTuning) -> Path:
    """Write a fine-tuned network as safetensors; the file appears complete or not at all.

    The file holds the weights and, as its metadata, what rebuilds the body, the classes' names, the
    normalisation, the recipe and the privacy record. It does not hold the key of the random draws.

    Parameters
    ----------
    path : str or Path
        Ends in ``.safetensors``; replaced if it exists.
    tuning : FineTuning
        After its run. Use ``rng=None`` there for weights that you publish: who knows the seed can subtract
        the noise.

    Returns
    -------
    Path
        Of the file.

    Raises
    ------
    WeightsError
        If a weight is not finite, or the file cannot be written.

    Examples
    --------
    >>> from empirical import FineTuning, Recipe, digits, mlp
    >>> task = digits()
    >>> tuning = FineTuning(task, mlp(task.train.shape, (16,)), Recipe("lp", steps=5), rng=None)
    >>> run = tuning.run()
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model = load(save(f"{folder}/digits.safetensors", tuning))
    >>> model.predict(task.test).shape, model.probabilities(task.test.images[:2]).shape
    ((300,), (2, 10))
    """
    path = check_target(path)
    network = copy.deepcopy(tuning.model).cpu().eval()
    tensors = {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}
    bad = next((name for name, v in tensors.items() if not _finite(v)), None)
    if bad is not None:
        raise WeightsError(
            f"model must have finite weights to be saved, got NaN or infinity in {bad!r}: the run diverged"
        )
    record = {"format": _FORMAT, **tuning.record()}
    record["body"] = _rebuilt(record, network, tensors)
    record["probe"] = _probe(network, record).tolist()
    text = json.dumps(record, default=str)
    metadata = {"record": text, "digest": _digest(text, tensors)}
    try:
        with atomic.replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"{path} could not be written: {getattr(error, 'strerror', None) or error}"
        ) from error
    return path


def check_target(path: str | Path) -> Path:
    """Refuse a file for a model that cannot be written, before any work is done."""
    path = validate.path("save_model", path)
    if path.suffix != ".safetensors":
        raise WeightsError(f"save_model must end in .safetensors, got {str(path)!r}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise WeightsError(f"save_model must be writable, got {str(path)!r}: {error.strerror}") from None
    if path.is_dir():
        raise WeightsError(f"save_model must be a file, but {str(path)!r} is a folder")
    return path


@ambient.ordinary()
def load(path: str | Path, body: nn.Module | None = None, *, device: str = "cpu") -> Model:
    """Read a model that `save`, or ``--save-model``, wrote; nothing is unpickled or downloaded.

    Parameters
    ----------
    path : str or Path
    body : nn.Module, optional
        Body of the same architecture, with any weights, if the file alone does not say how to make it: your
        own class, or a library's model with text options or configured by files. It is copied.
    device : str
        Where to predict.

    Returns
    -------
    Model

    Raises
    ------
    WeightsError
        If there is no such file, it is damaged, or it holds a network of another architecture.

    See Also
    --------
    save : With an example.
    """
    path = validate.path("path", path)
    target = place(device)
    record, tensors = _read(path)
    try:
        classes, shape = tuple(record["classes"]), tuple(record["shape"])
        mean, std = np.array(record["mean"], float), np.array(record["std"], float)
        history, probe = History.from_dict(record["history"]), np.array(record["probe"], float)
        _check(classes, shape, mean, std, record["rank"])
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"{path} is damaged (its record: {error}): get it again") from error
    if body is None:
        body = _make(path, record, sum(v.numel() for v in tensors.values()))
    network = _network(bodies.eager(body), len(classes), record["rank"])
    own = {name: (tuple(v.shape), v.dtype) for name, v in network.state_dict().items()}
    found = {name: (tuple(v.shape), v.dtype) for name, v in tensors.items()}
    if own != found:
        name = sorted(set(own.items()) ^ set(found.items()), key=str)[0][0]
        raise WeightsError(
            f"{path} holds a network of another architecture: {name!r} is {_said(found.get(name))} there and "
            f"{_said(own.get(name))} in the body; pass a body like the one that was trained"
        )
    network.load_state_dict(tensors)
    network.eval()
    outputs = _probe(network, record)
    if outputs.shape != probe.shape or not np.allclose(
        outputs, probe, rtol=_ROUNDING, atol=_ROUNDING * abs(probe).max()
    ):
        raise WeightsError(
            f"{path} holds a network whose outputs differ from this body's with the same weights: pass a "
            "body like the one that was trained, made by the same versions"
        )
    return Model(network.to(target), classes, shape, mean, std, history, record)  # type: ignore[arg-type]


# --- the network ------------------------------------------------------------------------------


def _network(body: nn.Module, classes: int, rank: int | None) -> Classifier:
    """Return the classifier with other weights, on a copy of a body."""
    features = bodies.features_of(body)
    body = make_private(copy.deepcopy(body))
    # copies of some modules, such as torch.fx's, lack it
    body.features = features  # type: ignore[assignment]
    if rank is not None:
        body = subsets.adapt(body, rank, 0)
    return Classifier(body, classes)


def _rebuilt(record: Mapping[str, Any], network: Classifier, tensors: Mapping[str, Tensor]) -> Any:
    """Return the description of the body; None unless it reproduces the trained one."""
    made = getattr(network.body, "made", None)
    if made is None or _untrusted(made) is not None:
        return made
    again = _network(_body(made), len(record["classes"]), record["rank"]).eval()
    if again.state_dict().keys() != tensors.keys():
        return None
    if any(v.shape != tensors[name].shape for name, v in again.state_dict().items()):
        return None
    again.load_state_dict(dict(tensors))
    return made if np.array_equal(_probe(again, record), _probe(network, record)) else None


def _body(made: Mapping[str, Any]) -> nn.Module:
    return by_name.body(made["name"], made["shape"], widths=made["widths"], rng=0, **made["options"])


def _make(path: Path, record: Mapping[str, Any], entries: int) -> nn.Module:
    """Make the body from its record, which is untrusted."""
    made = record.get("body")
    remedy = "pass body, of the same architecture with any weights"
    if made is None:
        raise WeightsError(f"{path} does not say how to make its body: {remedy}")
    try:
        call = f"empirical.body({made['name']!r}, {tuple(made['shape'])}, weights={made['weights']!r}"
        call += "".join(f", {name}={value!r}" for name, value in made["options"].items()) + ")"
        if reason := _untrusted(made):
            raise WeightsError(f"{path} does not make its body, as {reason}: {remedy}, such as {call}")
        if max(_numbers(made), default=0) > entries * max(*record["shape"], 1):
            raise ValueError("sizes beyond those of its weights")
        return _body(made)
    except ImportError as error:
        raise WeightsError(f"{path} needs a library: {error}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError) as error:
        raise WeightsError(f"{path} has a body that cannot be made ({error}): {remedy}") from error


def _untrusted(made: Mapping[str, Any]) -> str | None:
    """Return why a body must not be made from a file's record: libraries may download what it names."""
    library, _, model = made["name"].partition(":")
    if not model:
        return None
    if "/" in model or ":" in model:
        return f"{made['name']!r} is a name on a hub"
    if library == "hf" and made["weights"] is not None:
        return "its configuration comes from a folder or a hub"
    named = [name for name, value in made["options"].items() if "pretrained" in name or not _plain(value)]
    return f"its option {named[0]!r} could name a file or code" if named else None


def _plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_plain, value))
    return value is None or isinstance(value, bool | int | float)


def _numbers(value: Any) -> list[int]:
    """Return all integers in nested data."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [number for inner in value for number in _numbers(inner)]
    return [value] if isinstance(value, int) else []


def _probe(network: nn.Module, record: Mapping[str, Any]) -> NDArray[np.float64]:
    """Outputs for a fixed image, which distinguish this network from others."""
    shape = tuple(record["shape"])
    image = (0.5 + 0.5 * np.sin(1 + np.arange(math.prod(shape)))).reshape(1, *shape).astype(np.float32)
    pixels = normalised(image, np.array(record["mean"]), np.array(record["std"]))
    return embed(network, pixels)[0].astype(float)


# --- the file ---------------------------------------------------------------------------------


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Record and tensors of a file, as they were written."""
    if not path.is_file():
        raise WeightsError(f"there is no file of a model {str(path)!r}")
    validate.memory(3.0 * path.stat().st_size, f"model {path}", "load it on a machine with more memory")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsError(f"{path} is damaged ({error}): get it again") from error
    if "record" not in metadata:
        raise WeightsError(f"{path} holds weights without a record: use a file that --save-model wrote")
    text = metadata["record"]
    if metadata.get("digest") != _digest(text, tensors):
        raise WeightsError(f"{path} is damaged (it is not what was written): get it again")
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged ({error}): get it again") from error
    if not isinstance(record, dict) or record.get("format") != _FORMAT:
        found = record.get("format") if isinstance(record, dict) else type(record).__name__
        raise WeightsError(f"{path} must be of format {_FORMAT}, got {found!r}: load it with its own version")
    bad = next((name for name, v in tensors.items() if not _finite(v)), None)
    if bad is not None:
        raise WeightsError(f"{path} is damaged ({bad!r} is not finite): get it again")
    return record, tensors


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def _check(classes: Any, shape: Any, mean: Any, std: Any, rank: Any) -> None:
    """Refuse a record with implausible values."""
    if not classes or not all(isinstance(name, str) for name in classes) or len(set(classes)) < len(classes):
        raise ValueError("classes must be different names")
    if len(shape) != 3 or not all(isinstance(n, int) and n > 0 for n in shape):
        raise ValueError(f"shape must be three sizes, got {shape}")
    if math.prod(shape) > _LARGEST_IMAGE:
        raise ValueError(f"shape must be of at most {_LARGEST_IMAGE} values, got {shape}")
    if mean.shape != shape[:1] or std.shape != shape[:1] or not (np.isfinite(mean).all() and (std > 0).all()):
        raise ValueError("mean and std must be finite, one of each channel")
    if rank is not None:
        validate.integer("rank", rank, 1)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())


def _said(of: tuple[tuple[int, ...], torch.dtype] | None) -> str:
    return "missing" if of is None else f"{of[1]} of shape {of[0]}"
