"""CIFAR-10 and STL-10 from their published binary files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from empirical.data.images import Images, Part
from empirical.data.shift import Pixels, Shift
from empirical.data.splits import (
    Labels,
    of_classes,
    or_default,
    public_and_private,
)
from langevin.support import validate

Bytes = NDArray[np.uint8]
# images that are converted at once
_BLOCK = 2048

# of the published files
_CIFAR_RECORDS = 10_000
_CIFAR_IMAGE = 3 * 32 * 32
_CIFAR_REMEDY = (
    "download cifar-10-binary.tar.gz, the 'binary version', from https://www.cs.toronto.edu/~kriz/cifar.html "
    "and unpack it"
)


def cifar10(
    folder: str | Path,
    *,
    classes: Sequence[str] | None = None,
    public_classes: Sequence[str] = (),
    shift: Shift | None = None,
) -> Images:
    """CIFAR-10 [1]_ in its binary version, from a local folder.

    Parameters
    ----------
    folder : path
        Holding ``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin`` and ``batches.meta.txt``, or
        the folder ``cifar-10-batches-bin`` with these. A batch is 10,000 records of a byte of label and 3,072
        bytes of image, channel after channel, row after row.
    classes : sequence of str, optional
        Names of the private classes, labelled in this order; by default all that are not public.
    public_classes : sequence of str
        Classes whose training images become the public part, unshifted; their test images are left out. By
        default there is no public part: attach one with `Images.with_public`.
    shift : Shift, optional
        Shift of the private images; none by default.

    Returns
    -------
    Images
        Shape (3, 32, 32); 50,000 for training and 10,000 for test with all classes.

    Raises
    ------
    ValueError
        If a file is missing, of another size, holds labels from 10, or is of the python version, which is a
        pickle: that could run any code, and is not read.
    MemoryError
        If the images do not fit into memory.

    References
    ----------
    .. [1] Krizhevsky, "Learning multiple layers of features from tiny images", 2009.

    Examples
    --------
    >>> cifar10("no/such/folder")
    Traceback (most recent call last):
    ...
    ValueError: folder must hold CIFAR-10, but there is no folder 'no/such/folder': download ...
    """
    root = _folder(folder, "CIFAR-10", "cifar-10-batches-bin", _CIFAR_REMEDY)
    pickled = [root / "data_batch_1", root / "batches.meta", root / "cifar-10-batches-py"]
    if not (root / "data_batch_1.bin").exists() and any(path.exists() for path in pickled):
        raise ValueError(
            f"folder {str(folder)!r} holds the python version of CIFAR-10, a pickle, which could run any "
            f"code and is not read: {_CIFAR_REMEDY}"
        )
    names = _names(root / "batches.meta.txt", 10, _CIFAR_REMEDY)

    def source(files: list[str]) -> Source:
        paths = [root / file for file in files]
        batches = [_records(path, _CIFAR_RECORDS, 1 + _CIFAR_IMAGE, _CIFAR_REMEDY) for path in paths]
        labels = [_labels(p, b[:, 0], 0, 9, _CIFAR_REMEDY) for p, b in zip(paths, batches, strict=True)]

        def read(places: NDArray[np.intp]) -> Pixels:
            out = np.empty((len(places), 3, 32, 32), np.float32)
            for number, batch in enumerate(batches):
                (here,) = np.nonzero(places // _CIFAR_RECORDS == number)
                rows = places[here] % _CIFAR_RECORDS
                for first in range(0, len(here), _BLOCK):
                    block = batch[rows[first : first + _BLOCK], 1:].reshape(-1, 3, 32, 32)
                    out[here[first : first + _BLOCK]] = np.divide(block, 255, dtype=np.float32)
            return out

        return np.concatenate(labels), read

    return _task(
        "cifar10",
        names,
        source([f"data_batch_{number}.bin" for number in range(1, 6)]),
        source(["test_batch.bin"]),
        (3, 32, 32),
        classes,
        public_classes,
        shift,
    )


_STL_SIDE = 96
_STL_IMAGE = 3 * _STL_SIDE**2
_STL_RECORDS = {"train": 5_000, "test": 8_000, "unlabeled": 100_000}
_STL_REMEDY = "download stl10_binary.tar.gz from https://cs.stanford.edu/~acoates/stl10 and unpack it"


def stl10(
    folder: str | Path,
    size: int = _STL_SIDE,
    *,
    classes: Sequence[str] | None = None,
    public_classes: Sequence[str] = (),
    shift: Shift | None = None,
) -> Images:
    """STL-10 [1]_ in its binary version, from a local folder.

    Parameters
    ----------
    folder : path
        Holding ``train_X.bin``, ``train_y.bin``, ``test_X.bin``, ``test_y.bin`` and ``class_names.txt``, or
        the folder ``stl10_binary`` with these. An image is 27,648 bytes, channel after channel, *column*
        after column; labels are bytes from 1 to 10.
    size : int
        Height and width of the images to return, a divisor of 96: pixels are averaged over squares.
    classes, public_classes, shift
        As in `cifar10`.

    Returns
    -------
    Images
        Shape (3, size, size), rows before columns; 5,000 for training and 8,000 for test with all classes.

    Raises
    ------
    ValueError
        If a file is missing, of another size, or holds labels outside 1 to 10.
    MemoryError
        If the images do not fit into memory: use a smaller ``size``.

    See Also
    --------
    stl10_unlabelled : The images without labels.

    References
    ----------
    .. [1] Coates, Lee, Ng, "An analysis of single-layer networks in unsupervised feature learning",
       AISTATS 2011.
    """
    if validate.integer("size", size, 1) > _STL_SIDE or _STL_SIDE % size:
        raise ValueError(f"size must be a divisor of {_STL_SIDE}, got {size!r}: use 96, 48, 32 or 24")
    root = _folder(folder, "STL-10", "stl10_binary", _STL_REMEDY)
    names = _names(root / "class_names.txt", 10, _STL_REMEDY)
    times = _STL_SIDE // size

    def source(part: str) -> Source:
        records = _records(root / f"{part}_X.bin", _STL_RECORDS[part], _STL_IMAGE, _STL_REMEDY)
        path = root / f"{part}_y.bin"
        labels = _labels(path, _records(path, _STL_RECORDS[part], 1, _STL_REMEDY)[:, 0], 1, 10, _STL_REMEDY)

        def read(places: NDArray[np.intp]) -> Pixels:
            out = np.empty((len(places), 3, size, size), np.float32)
            for first in range(0, len(places), _BLOCK):
                block = _upright(records[places[first : first + _BLOCK]])
                squares = block.reshape(-1, 3, size, times, size, times).sum(axis=(3, 5), dtype=np.float32)
                out[first : first + _BLOCK] = squares / np.float32(255 * times**2)
            return out

        return labels, read

    return _task(
        "stl10", names, source("train"), source("test"), (3, size, size), classes, public_classes, shift
    )


def stl10_unlabelled(folder: str | Path) -> Bytes:
    """Unlabelled images of STL-10, left on disk.

    Parameters
    ----------
    folder : path
        Holding ``unlabeled_X.bin``, 2.8 GB, or the folder ``stl10_binary`` with it.

    Returns
    -------
    ndarray of uint8, shape (100000, 3, 96, 96)
        A read-only memory map, rows before columns. Index it, then divide by 255 as float32.

    Raises
    ------
    ValueError
        If the file is missing or of another size.
    """
    root = _folder(folder, "STL-10", "stl10_binary", _STL_REMEDY)
    records = _records(root / "unlabeled_X.bin", _STL_RECORDS["unlabeled"], _STL_IMAGE, _STL_REMEDY)
    return _upright(records)


def _upright(records: Bytes) -> Bytes:
    """Images of STL-10, rows before columns, shape (n, 3, 96, 96): a view."""
    return records.reshape(-1, 3, _STL_SIDE, _STL_SIDE).transpose(0, 1, 3, 2)


# labels, and what reads the images at some places
Source = tuple[Labels, Callable[[NDArray[np.intp]], Pixels]]


def _task(
    name: str,
    names: list[str],
    train: Source,
    test: Source,
    shape: tuple[int, int, int],
    classes: Sequence[str] | None,
    public_classes: Sequence[str],
    shift: Shift | None,
) -> Images:
    """Read only the images of the chosen classes."""
    shift = or_default("shift", shift, Shift)
    public, private = public_and_private(names, classes, public_classes)
    images = np.isin(train[0], public + private).sum() + np.isin(test[0], private).sum()
    copies = 1 if shift.is_none else 2
    validate.memory(
        4.0 * copies * int(images) * shape[0] * shape[1] * shape[2],
        f"{images} images of {name}",
        "use fewer classes or, where it can be chosen, a smaller size",
    )

    def part(source: Source, chosen: list[int]) -> Part:
        labels, read = source
        places, new = of_classes(labels, chosen)
        if len(places) == 0:
            raise ValueError(f"classes must have images, got none of {[names[i] for i in chosen]} in {name}")
        return Part(read(places), new, [names[i] for i in chosen])

    return Images(
        part(train, private).shifted(shift),
        part(test, private).shifted(shift),
        part(train, public) if public else None,
        shift,
        name,
    )


def _folder(folder: str | Path, what: str, inner: str, remedy: str) -> Path:
    """Return the folder that holds the files, which may be ``inner`` in the one given."""
    root = Path(folder)
    if not root.is_dir():
        found = "this is a file:" if root.exists() else "there is no folder"
        raise ValueError(f"folder must hold {what}, but {found} {str(folder)!r}: {remedy}")
    return root / inner if (root / inner).is_dir() else root


def _records(path: Path, records: int, record: int, remedy: str) -> Bytes:
    """Map a file of records, read-only, shape (records, record); refuse any other size."""
    if not path.is_file():
        raise ValueError(f"there is no file {str(path)!r}: {remedy}")
    size, expected = path.stat().st_size, records * record
    if size != expected:
        state = "truncated" if size < expected else "not what was published"
        raise ValueError(
            f"file {str(path)!r} must have {expected} bytes, {records} records of {record}, got {size}: "
            f"it is {state}; {remedy} again"
        )
    return np.memmap(path, dtype=np.uint8, mode="r", shape=(records, record))


def _labels(path: Path, labels: Bytes, low: int, high: int, remedy: str) -> Labels:
    """Return labels from 0; refuse those outside ``low`` to ``high``."""
    wrong = (labels < low) | (labels > high)
    if wrong.any():
        i = int(np.argmax(wrong))
        raise ValueError(
            f"labels in {str(path)!r} must lie from {low} to {high}, got {labels[i]} in record {i} "
            f"({wrong.sum()} such records): it is damaged; {remedy} again"
        )
    return labels.astype(np.int64) - low


def _names(path: Path, count: int, remedy: str) -> list[str]:
    """Read the names of the classes, one per line."""
    try:
        names = path.read_text(encoding="utf8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"names of the classes cannot be read from {str(path)!r} ({error}): {remedy}"
        ) from None
    if len(names) != count or len(set(names)) != count:
        raise ValueError(
            f"file {str(path)!r} must name {count} different classes, one on a line, got {names[:20]}: "
            f"{remedy}"
        )
    return names
