"""What a study is about: the private task, the body, its pre-training, and the device."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from empirical.data.images import Images
from empirical.data.rows import first_layer
from empirical.data.shift import Shift
from empirical.data.solar import ELPV_TYPES
from empirical.data.splits import stratified
from langevin.data import files
from langevin.store import locks
from langevin.support import validate
from langevin.support.rng import generator

if TYPE_CHECKING:
    from torch import nn

Pretraining = Literal["supervised", "simclr", "none"]

DATA = ("digits", "glyphs", "fashion-mnist", "elpv", "cifar10", "stl10", "folder")
PRETRAINING = ("supervised", "simclr", "none")
# split by the seed; the others come split, as a file may
_SPLIT = ("digits", "glyphs", "elpv", "folder")
# bodies of feature vectors
_OF_FILES = ("layer", "mlp")
# of a published training part: what tuning tests on
_HELD_OUT = 0.2
# in a folder that must be named
_ON_DISK = ("cifar10", "stl10", "folder")
# with classes, of elpv types of cells, that can be made public
_NAMED_PUBLIC = ("fashion-mnist", "elpv", *_ON_DISK)
# with a size that can be chosen, and a number of private images
_SIZED, _COUNTED = ("glyphs", "elpv", "stl10", "folder"), ("glyphs", "fashion-mnist")


@dataclass(frozen=True)
class Setting:
    """Task and pre-trained body, as functions of a seed; plain data that can be sent to other processes.

    Parameters
    ----------
    data : str
        digits (scikit-learn's), glyphs (synthetic; new classes are private), fashion-mnist, elpv (defects of
        solar cells, from the extra elpv); from ``folder`` cifar10, stl10 or folder (images in a folder for
        each class); or a file of features: .npz with X, y and optionally W, X_test, y_test; .csv or .parquet,
        features in all columns but one.
    label : str
        Column of the labels in a .csv or .parquet file.
    folder : str or None
        Folder with cifar10, stl10, the images of folder, or fashion-mnist, which is by default where Debian's
        package dataset-fashion-mnist puts it.
    size : int or None
        Height and width in pixels; by default 24 for glyphs, 128 for elpv, 96 for stl10, 32 for folder.
    images : int or None
        Number of private training images of glyphs, by default 2000, or of fashion-mnist, by default all.
    public_classes : tuple of str
        Classes of fashion-mnist, cifar10, stl10 or folder to pre-train on; of elpv, mono or poly, a type of
        cells. Without any there is no public part: the body keeps the weights that it was given or drawn
        with, and intensities x are normalised as it was pre-trained, or become 2 x - 1. A file has none
        either; its features stay as they are.
    public_share : float
        Share of the training images of fashion-mnist to pre-train on, instead of classes.
    shift : Shift
        Of the private images; none with a file.
    body : str or None
        mlp, conv, lite0, timm:<model> or hf:<model>; by default mlp for digits, otherwise conv. For a file of
        features layer, the default, or mlp: layer starts as the file's W, or as the identity.
    options : tuple of (str, value)
        Options for the function that makes the body, such as size=64 of lite0 or patch_size=4.
    widths : tuple of int or None
        Widths of mlp (by default 128 64) or conv (32 64 128).
    weights : str or None
        Weights of the body: file.npz for mlp, conv and layer; imagenet, from the extra real, or file.npz for
        lite0; hub or a path for others.
    pretrain : {"supervised", "simclr", "none"} or None
        Pre-training on the public part, without noise; by default supervised, or none where there is no
        public part or ``weights`` are given.
    epochs : int or None
        Epochs of the pre-training; by default 30 supervised, 40 simclr.
    device : str
        cpu, or an NVIDIA GPU: cuda or cuda:<number>.
    precision : {"single", "mixed"}
        Precision of the training; mixed: with bfloat16.
    features : bool
        Measure the features at each evaluation.
    bodies : str or None
        Folder in which pre-trained bodies are kept and looked for; not part of what the setting is.

    Raises
    ------
    ValueError
        If settings contradict each other.

    Examples
    --------
    >>> setting = Setting("digits", shift=Shift(rotation=20))
    >>> len(setting.task(0).train)
    1097
    """

    data: str = field(default="digits", metadata={"metavar": "DATA"})
    label: str = field(default="y", metadata={"metavar": "COLUMN"})
    folder: str | None = field(default=None, metadata={"option": "data_folder", "metavar": "FOLDER"})
    size: int | None = None
    images: int | None = None
    public_classes: tuple[str, ...] = field(default=(), metadata={"metavar": "CLASS"})
    public_share: float = 0.0
    shift: Shift = field(default_factory=Shift)
    body: str | None = field(default=None, metadata={"metavar": "BODY"})
    options: tuple[tuple[str, Any], ...] = field(
        default=(), metadata={"option": "body_options", "metavar": "NAME=VALUE"}
    )
    widths: tuple[int, ...] | None = None
    weights: str | None = field(default=None, metadata={"metavar": "FILE"})
    pretrain: Pretraining | None = None
    epochs: int | None = field(default=None, metadata={"option": "pretrain_epochs"})
    device: str = "cpu"
    precision: Literal["single", "mixed"] = "single"
    features: bool = False
    bodies: str | None = field(default=None, metadata={"metavar": "FOLDER"})

    def __post_init__(self) -> None:
        self._check_types()
        self._check_data()
        self._check_file()
        self._check_pretraining()
        if self.body == "mlp" and self.widths is None:
            object.__setattr__(self, "widths", (128, 64))

    def _check_types(self) -> None:
        validate.instance("data", self.data, str)
        validate.instance("label", self.label, str)
        if not self.is_file and self.data not in DATA:
            raise ValueError(
                f"data must be one of {', '.join(map(repr, DATA))}, or {files.ALLOWED}; got {self.data!r}"
            )
        validate.device(self.device)
        validate.instance("shift", self.shift, Shift)
        self._fill()
        validate.instance("body", self.body, str)
        validate.instance("features", self.features, bool)
        for name in ("size", "images"):
            if getattr(self, name) is not None:
                validate.integer(name, getattr(self, name), 1)
        for name in ("folder", "weights", "bodies"):
            if getattr(self, name) is not None:
                validate.path(name, getattr(self, name))
        for name, kind in (("public_classes", str), ("widths", int), ("options", tuple)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(validate.sequence(name, getattr(self, name), kind)))
        object.__setattr__(self, "options", _hashable(self.options))
        validate.choice("precision", self.precision, ("single", "mixed"))

    def _check_data(self) -> None:
        on_disk = self.data in _ON_DISK
        if on_disk != (self.folder is not None) and self.data != "fashion-mnist":
            allowed = "be given" if on_disk else "be left out"
            raise ValueError(f"folder must {allowed} with data={self.data!r}, got {self.folder!r}")
        if self.size is not None and self.data not in _SIZED:
            raise ValueError(f"size must be left out with data={self.data!r}, got {self.size}")
        if self.images is not None and self.data not in _COUNTED:
            raise ValueError(f"images must be left out with data={self.data!r}, got {self.images}")
        self._check_public()

    def _check_public(self) -> None:
        if self.public_classes and self.data not in _NAMED_PUBLIC:
            raise ValueError(
                f"public_classes must be left out with data={self.data!r}, which has "
                f"{'no' if self.is_file else 'a'} public part, got {self.public_classes}"
            )
        if self.data == "elpv" and self.public_classes not in ((), *((kind,) for kind in ELPV_TYPES)):
            raise ValueError(
                f"public_classes must be mono or poly with data='elpv', a type of cells, got "
                f"{self.public_classes}"
            )
        if not 0 <= validate.number("public_share", self.public_share) < 1:
            raise ValueError(f"public_share must lie in [0, 1), got {self.public_share:g}")
        if self.public_share and self.data != "fashion-mnist":
            raise ValueError(
                f"public_share must be left out with data={self.data!r}, got {self.public_share:g}"
            )

    def _check_pretraining(self) -> None:
        named = self.data in _NAMED_PUBLIC
        public = bool(self.public_classes or self.public_share) if named else not self.is_file
        if self.pretrain is None:
            object.__setattr__(self, "pretrain", "none" if self.weights or not public else "supervised")
        validate.choice("pretrain", self.pretrain, PRETRAINING)
        remedy = ": name public_classes" if named else ""
        if self.pretrain != "none" and not public:
            raise ValueError(f"pretrain must be 'none' without a public part, got {self.pretrain!r}{remedy}")
        if self.epochs is not None:
            validate.integer("epochs", self.epochs, 1)
            if self.pretrain == "none":
                raise ValueError(f"epochs must be left out with pretrain='none', got {self.epochs}")

    def _fill(self) -> None:
        """Choose body and rotation, unless they are given."""
        digits = self.data == "digits"
        if self.body is None:
            object.__setattr__(self, "body", "mlp" if digits else "layer" if self.is_file else "conv")
        if self.shift.rotation is None:
            object.__setattr__(self, "shift", replace(self.shift, rotation=20.0 if digits else 0.0))

    def _check_file(self) -> None:
        """Refuse what requires a file, or does not go with one."""
        if not self.is_file:
            if self.label != "y":
                raise ValueError(f"label must be left out with data={self.data!r}, got {self.label!r}")
            if self.body == "layer":
                raise ValueError(
                    f"body must be another than 'layer' with data={self.data!r}: that takes features"
                )
            return
        for name, value in asdict(self.shift).items():
            if value != getattr(Shift(rotation=0.0), name):
                raise ValueError(f"{name} must be left out with data={self.data!r}, got {value:g}")
        if self.body not in _OF_FILES:
            raise ValueError(f"body must be 'layer' or 'mlp' with data={self.data!r}, got {self.body!r}")

    @property
    def is_file(self) -> bool:
        """Tell whether the task consists of feature vectors from a file."""
        return files.is_file(self.data)

    def as_dict(self) -> dict[str, Any]:
        """Return everything that results depend on, as plain data."""
        without = ("bodies",) if self.is_file else ("bodies", "label")
        if not self.public_share:
            without += ("public_share",)
        return {name: value for name, value in asdict(self).items() if name not in without}

    def task(self, seed: int, *, tuning: bool = False) -> Images:
        """The task, with a new split for each seed; published splits, and those in files, stay.

        With ``tuning``, a fifth of each class's training images, drawn by the seed, replaces their test
        images.
        """
        if self.data in _SPLIT or (self.is_file and "X_test" not in files.held(self.data)):
            return _task(self, seed)
        published = _task(self, 0)
        if not tuning:
            return published
        train = published.train
        count = round(_HELD_OUT * len(train))
        held_out, rest = stratified(train.labels, [count], generator(seed, "tuning"))
        return replace(published, train=train.take(np.sort(rest)), test=train.take(np.sort(held_out)))

    def untrained(self, seed: int) -> nn.Module | None:
        """The body with random weights, as a reference for measures of features; None: it has none."""
        if self.body == "layer":
            return None
        return replace(self, pretrain="none", epochs=None, weights=None, bodies=None).network(seed)

    def network(self, seed: int, progress: Callable[[int, float], None] | None = None) -> nn.Module:
        """The body, pre-trained; not to be changed in place.

        Parameters
        ----------
        seed : int
        progress : callable, optional
            Called with the number of epochs done and the last one's mean loss.
        """
        # with given weights, and no training on a split of the seed, nothing depends on the seed
        return _network(self, 0 if self.weights and self.pretrain == "none" else seed, progress)


class _Mapping(dict[str, Any]):
    """A constant mapping, so that it can be part of a key."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


def _hashable(value: Any) -> Any:
    """Data from JSON with tuples for lists, and hashable mappings."""
    if isinstance(value, list | tuple):
        return tuple(map(_hashable, value))
    if isinstance(value, dict):
        return _Mapping({name: _hashable(inner) for name, inner in value.items()})
    return value


@functools.lru_cache(maxsize=2)
def _task(setting: Setting, seed: int) -> Images:
    from empirical import cifar10, digits, elpv, fashion_mnist, from_file, glyphs, image_folder, stl10

    s, folder = setting, setting.folder or ""
    disk: dict[str, Any] = dict(public_classes=s.public_classes, shift=s.shift)
    if s.is_file:
        return from_file(s.data, label=s.label, rng=seed)
    if s.data == "digits":
        return digits(s.shift, rng=seed)
    if s.data == "glyphs":
        return glyphs(s.size or 24, train=s.images or 2000, shift=s.shift, rng=seed)
    if s.data == "fashion-mnist":
        where = {} if s.folder is None else {"folder": s.folder}
        return fashion_mnist(**where, train=s.images, public_share=s.public_share, rng=seed, **disk)
    if s.data == "elpv":
        kind: Any = s.public_classes[0] if s.public_classes else None
        return elpv(s.size or 128, public=kind, shift=s.shift, rng=seed)
    if s.data == "cifar10":
        return cifar10(folder, **disk)
    if s.data == "stl10":
        return stl10(folder, s.size or 96, **disk)
    return image_folder(folder, s.size or 32, rng=seed, **disk)


@functools.lru_cache(maxsize=4)
def _network(setting: Setting, seed: int, progress: Callable[[int, float], None] | None) -> nn.Module:
    from empirical import body, load_weights, pretrain, save_weights

    s, task = setting, setting.task(seed)
    own, options = s.body in ("mlp", "conv", "layer"), dict(s.options)
    if s.body == "layer":
        options["W"] = first_layer(s.data)
    given = None if own else s.weights
    assert s.body is not None
    made = body(s.body, task.train.shape, widths=s.widths, weights=given, rng=seed, **options)
    if own and s.weights is not None:
        load_weights(s.weights, made)
    if s.pretrain is None or s.pretrain == "none":
        return made
    kept = None
    if s.bodies is not None:
        text = json.dumps([s.as_dict(), seed], sort_keys=True)
        kept = Path(s.bodies, f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.npz")
    with _only_one(kept):
        if kept is not None and kept.exists():
            load_weights(kept, made)
            return made
        pretrain(made, task, kind=s.pretrain, epochs=s.epochs, rng=seed, device=s.device, progress=progress)
        made = made.cpu()
        if kept is not None:
            save_weights(kept, made)
    return made


@contextlib.contextmanager
def _only_one(kept: Path | None) -> Iterator[None]:
    """Let one process at a time make a file; the others wait for it."""
    if kept is None:
        yield
        return
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = kept.with_suffix(".lock").open("w")
    except OSError as error:
        raise ValueError(f"bodies must be a folder, got {str(kept.parent)!r}: {error.strerror}") from None
    with lock:
        locks.lock(lock, wait=True)
        yield
