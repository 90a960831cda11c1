"""Fashion-MNIST from its published idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from empirical.data.images import Images, Part
from empirical.data.shift import Bytes, Shift
from empirical.data.splits import or_default, public_and_private, stratified
from langevin.support import validate
from langevin.support.rng import RNG, generator

# where Debian's package puts the files
FASHION_FOLDER = "/usr/share/datasets/fashion-mnist"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
_IMAGES = {"train": 60_000, "t10k": 10_000}
_SIDE = 28
_REMEDY = "install Debian's package dataset-fashion-mnist, or name the folder with its four idx.gz files"
# of an idx file of bytes, before the number of axes
_MAGIC = b"\0\0\x08"


def fashion_mnist(
    folder: str | Path = FASHION_FOLDER,
    *,
    train: int | None = None,
    classes: Sequence[str] | None = None,
    public_classes: Sequence[str] = (),
    public_share: float = 0.0,
    shift: Shift | None = None,
    rng: RNG = 0,
) -> Images:
    """Fashion-MNIST [1]_, grey images of 28 by 28 pixels, in its published split.

    Parameters
    ----------
    folder : path
        Holding ``train-images-idx3-ubyte.gz``, ``train-labels-idx1-ubyte.gz`` and the same of ``t10k``, by
        default where Debian's package puts them.
    train : int, optional
        Number of private training images to keep, of each class in its share; by default all.
    classes : sequence of str, optional
        Names of the private classes, labelled in this order; by default all that are not public.
    public_classes : sequence of str
        Classes whose training images become the public part, unshifted; their test images are left out.
    public_share : float
        Share of the training images, of each class alike, to make the public part of instead.
    shift : Shift, optional
        Shift of the private images; none by default.
    rng : int, Generator or None
        Draws the public share, and the images that ``train`` keeps (SPEC 7).

    Returns
    -------
    Images
        Shape (1, 28, 28), as bytes; 60,000 for training and 10,000 for test with all classes.

    Raises
    ------
    ValueError
        If a file is missing or is not what was published, or for parts that cannot be made.

    References
    ----------
    .. [1] Xiao, Rasul, Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
       algorithms", arXiv:1708.07747; MIT licence.

    Examples
    --------
    >>> fashion_mnist("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: folder must hold Fashion-MNIST, but there is no folder 'no/such/folder': install ...
    """
    shift, root = or_default("shift", shift, Shift), validate.path("folder", folder)
    if not root.is_dir():
        raise ValueError(f"folder must hold Fashion-MNIST, but there is no folder {str(folder)!r}: {_REMEDY}")
    if not 0 <= validate.number("public_share", public_share) < 1:
        raise ValueError(f"public_share must lie in [0, 1), got {public_share:g}")
    if public_share and len(public_classes):
        raise ValueError(
            f"public_share must be 0 with public_classes, got {public_share:g}: remove one of them"
        )
    public, private = public_and_private(FASHION_CLASSES, classes, public_classes)
    whole, held_out = (_part(root, name) for name in _IMAGES)
    streams = generator(rng, "Fashion-MNIST").spawn(2)
    own, known = _only(whole, private), _only(whole, public) if public else None
    if public_share:
        chosen, rest = stratified(own.labels, [round(public_share * len(own))], streams[0])
        own, known = own.take(np.sort(rest)), own.take(np.sort(chosen))
    if train is not None:
        own = own.take(np.sort(stratified(own.labels, [_count(train, own)], streams[1])[0]))
    return Images(own.shifted(shift), _only(held_out, private).shifted(shift), known, shift, "fashion-mnist")


def _count(train: int, own: Part) -> int:
    least = len(own.classes)
    if not least <= validate.integer("train", train, 1) <= len(own):
        raise ValueError(
            f"train must lie from {least}, the number of classes, to the {len(own)} private images, got "
            f"{train}"
        )
    return train


def _only(part: Part, numbers: Sequence[int]) -> Part:
    """The images of some classes; all of them unchanged, without a copy."""
    if list(numbers) == list(range(len(part.classes))):
        return part
    return part.only([part.classes[number] for number in numbers])


def _part(root: Path, name: str) -> Part:
    """One of the two published parts."""
    count = _IMAGES[name]
    images = read_idx(root / f"{name}-images-idx3-ubyte.gz", (count, _SIDE, _SIDE))
    labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz", (count,))
    if labels.max() >= len(FASHION_CLASSES):
        place = int(labels.argmax())
        raise ValueError(
            f"labels in {str(root)!r} must lie from 0 to 9, got {labels[place]} of image {place} of "
            f"{name!r}: {_REMEDY}"
        )
    return Part(images[:, None], labels, FASHION_CLASSES)


def read_idx(path: str | Path, shape: Sequence[int]) -> Bytes:
    """Read a gzipped idx file of bytes.

    Parameters
    ----------
    path : path
    shape : sequence of int
        The shape that the file must have; no more than that is unpacked.

    Returns
    -------
    ndarray of uint8
        Read-only.

    Raises
    ------
    ValueError
        If the file is missing, damaged, not an idx file of bytes, or of another shape.
    """
    path, size = Path(path), math.prod(shape)
    header = len(_MAGIC) + 1 + 4 * len(shape)
    try:
        with gzip.open(path) as file:
            # a byte more shows that there is more
            content = file.read(header + size + 1)
    except FileNotFoundError:
        raise ValueError(f"there is no file {str(path)!r}: {_REMEDY}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"file {str(path)!r} is damaged ({error}): {_REMEDY}") from None
    start = _MAGIC + bytes([len(shape)])
    if not content.startswith(start):
        raise ValueError(
            f"file {str(path)!r} must begin with the bytes {start.hex()} of an idx file of bytes with "
            f"{len(shape)} axes, got {content[:4].hex()}: {_REMEDY}"
        )
    said = tuple(int(n) for n in np.frombuffer(content[4:header], ">u4"))
    if said != tuple(shape):
        raise ValueError(f"file {str(path)!r} must hold the shape {tuple(shape)}, but says {said}: {_REMEDY}")
    if len(content) != header + size:
        found = "fewer" if len(content) < header + size else "more"
        raise ValueError(f"file {str(path)!r} holds {found} than the {size} bytes that it says: {_REMEDY}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
