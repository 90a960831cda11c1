"""Images for fine-tuning with real DP-SGD: scikit-learn's digits, CIFAR-10, STL-10, folders of images.

`empirical.glyphs` makes images of its own. Nothing is downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from empirical.images import (
    Images,
    Labels,
    Part,
    Pixels,
    Shift,
    class_numbers,
    of_classes,
    or_default,
    stratified,
)
from langevin import _validate
from langevin._random import RNG, generator

Bytes = NDArray[np.uint8]
# images that are converted at once
_BLOCK = 2048
# of scikit-learn's 1,797 digits: public, and held out for the test
_DIGITS, _DIGITS_PUBLIC, _DIGITS_TEST = 1797, 400, 300


def digits(
    shift: Shift | None = None,
    *,
    classes: Sequence[int] = tuple(range(10)),
    public: int | None = None,
    test: int | None = None,
    rng: RNG = 0,
) -> Images:
    """Digits of scikit-learn [1]_, 8 by 8 pixels: upright public ones, and private ones under a shift.

    All ten classes split by default into 400 public, 1,097 private and 300 test images. Each part has the
    classes in the same shares, and no image is in two parts.

    Parameters
    ----------
    shift : Shift, optional
        Shift of the private images, training and test; none by default. ``Shift(rotation=20)`` and
        ``Shift(gain=0.4, offset=0.3)`` are mild ones.
    classes : sequence of int
        Which digits, at least two; they are labelled from 0 in this order.
    public, test : int, optional
        Number of images in these parts, at least one of each class, or ``public=0`` for no public part; by
        default the shares above of those there are. The rest is for private training.
    rng : int, Generator or None
        Draws the split (SPEC 7).

    Returns
    -------
    Images
        One channel, intensities in sixteenths.

    Raises
    ------
    ValueError, TypeError
        On digits that are none, or parts that leave too few images for another.

    References
    ----------
    .. [1] Alpaydin, Kaynak, "Optical recognition of handwritten digits", UCI machine learning repository,
       1998; its test set, as in `sklearn.datasets.load_digits`.

    Examples
    --------
    >>> task = digits(Shift(rotation=20))
    >>> len(task.public), len(task.train), len(task.test), task.train.shape
    (400, 1097, 300, (1, 8, 8))
    """
    shift = or_default("shift", shift, Shift)
    chosen = [int(c) for c in classes]
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(10)):
        raise ValueError(f"classes must be two or more different digits from 0 to 9, got {classes!r}")
    from sklearn.datasets import load_digits

    pixels, digit = load_digits(return_X_y=True)
    places, labels = of_classes(np.asarray(digit, dtype=np.int64), chosen)
    total, kinds = len(labels), len(chosen)
    public = round(total * _DIGITS_PUBLIC / _DIGITS) if public is None else public
    test = round(total * _DIGITS_TEST / _DIGITS) if test is None else test
    most = total - kinds
    if _validate.integer("public", public, 0) and not kinds <= public <= most - kinds:
        raise ValueError(f"public must be 0 or lie from {kinds} to {most - kinds}, got {public!r}")
    if not kinds <= _validate.integer("test", test, 0) <= most - public:
        raise ValueError(
            f"test must lie from {kinds} to {most - public}, which leaves an image of each of the {kinds} "
            f"classes to train on, got {test!r}"
        )
    images = (np.asarray(pixels)[places] / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    whole = Part(images, labels, [str(c) for c in chosen])
    parts = stratified(whole.labels, [public, test], generator(rng, "digits"))
    for_public, for_test, for_train = (whole.take(part) if len(part) else None for part in parts)
    assert for_test is not None
    assert for_train is not None
    return Images(for_train.shifted(shift), for_test.shifted(shift), for_public, shift, "digits")


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
    if _validate.integer("size", size, 1) > _STL_SIDE or _STL_SIDE % size:
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
    """Read the images of the chosen classes, and of them alone."""
    shift = or_default("shift", shift, Shift)
    public, private = public_and_private(names, classes, public_classes)
    images = np.isin(train[0], public + private).sum() + np.isin(test[0], private).sum()
    copies = 1 if shift.is_none else 2
    _validate.memory(
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


def public_and_private(
    names: Sequence[str], classes: Sequence[str] | None, public_classes: Sequence[str]
) -> tuple[list[int], list[int]]:
    """Numbers of the public and of the private classes; none is both."""
    public = class_numbers("public_classes", public_classes, names) if len(public_classes) else []
    if classes is None:
        private = [number for number in range(len(names)) if number not in public]
    else:
        private = class_numbers("classes", classes, names)
    both = [names[number] for number in private if number in public]
    if both or not private:
        raise ValueError(
            f"classes and public_classes must be disjoint and leave a private class, got {both or 'none'} "
            f"{'in both' if both else 'left'}: remove some from public_classes"
        )
    return public, private


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
    """Return the names of the classes, one on a line."""
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


_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# decoders that may be tried, whatever the suffix: few, and none that runs another program
_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


def read_folder(root: str | Path, size: int, *, channels: Literal[1, 3] = 3, max_pixels: int = 2**26) -> Part:
    """Read the images under ``root/<class>/``, at one size.

    The shorter side is scaled to ``size``, averaging where that shrinks, and the middle of the longer is
    kept. The EXIF orientation is applied, transparent pixels become black, and only the first frame of an
    animation is used. Files without one of the suffixes bmp, gif, jpeg, jpg, pgm, png, ppm, tif, tiff, webp,
    and hidden ones, are ignored.

    Parameters
    ----------
    root : path
        Holding a folder for each class, named like it; images may lie deeper in it.
    size : int
        Height and width of the images to return, in pixels.
    channels : {1, 3}
        Grey or red, green, blue.
    max_pixels : int
        Images of more pixels are refused before they are unpacked: a small file can unpack to fill memory.

    Returns
    -------
    Part
        Sorted by class, and by path in it.

    Raises
    ------
    ValueError
        If there is no image of some class, or one that cannot be read, which is named.
    MemoryError
        If the images do not fit into memory.

    See Also
    --------
    image_folder : The same, split into a private and a public part.
    """
    size, max_pixels = _validate.integer("size", size, 1), _validate.integer("max_pixels", max_pixels, 1)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (red, green, blue), got {channels!r}")
    source = Path(root)
    folders = sorted(p for p in source.glob("*") if p.is_dir() and not p.name.startswith("."))
    if not folders:
        raise ValueError(f"root must hold a folder of images for each class, got {str(root)!r} without any")
    files = []
    for label, folder in enumerate(folders):
        found = sorted(
            path
            for path in folder.rglob("*")
            if path.suffix.lower() in _SUFFIXES and path.is_file() and not path.name.startswith(".")
        )
        if not found:
            raise ValueError(
                f"class folder {str(folder)!r} must hold images ({', '.join(_SUFFIXES)}), got none: fill or "
                "remove it"
            )
        files += [(path, label) for path in found]
    _validate.memory(
        4.0 * len(files) * channels * size**2,
        f"{len(files)} images of {size} pixels",
        "use a smaller size or fewer images",
    )
    images = np.empty((len(files), channels, size, size), np.float32)
    for place, (path, _) in enumerate(files):
        images[place] = _read_image(path, size, channels, max_pixels)
    return Part(images, np.array([label for _, label in files]), [folder.name for folder in folders])


def _read_image(path: Path, size: int, channels: int, max_pixels: int) -> Pixels:
    """One image, shape (channels, size, size)."""
    from PIL import Image, ImageOps

    try:
        with warnings.catch_warnings():
            # of faulty metadata, and of sizes, which are checked here
            warnings.simplefilter("ignore")
            with Image.open(path, formats=_FORMATS) as image:
                pixels = image.width * image.height
                if pixels > max_pixels:
                    raise ValueError(
                        f"it has {pixels} pixels, more than max_pixels={max_pixels}: shrink it, or raise "
                        "max_pixels if you trust it"
                    )
                image.load()
                whole = ImageOps.exif_transpose(image)
                if whole.mode.startswith("I"):  # 16 bits of grey
                    whole = Image.fromarray((np.asarray(whole).clip(0, 65535) // 257).astype(np.uint8))
                elif whole.mode == "F":
                    raise ValueError("it holds floats, whose range is not known: save it as bytes")
                if whole.has_transparency_data:
                    whole = whole.convert("RGBA")
                    whole = Image.alpha_composite(Image.new("RGBA", whole.size, (0, 0, 0, 255)), whole)
                whole = whole.convert("L" if channels == 1 else "RGB")
                whole = ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders of damaged files raise almost anything
        raise ValueError(f"image {str(path)!r} cannot be read ({error}): repair or remove it") from None
    values = np.asarray(whole, dtype=np.float32).reshape(size, size, channels)
    return values.transpose(2, 0, 1) / np.float32(255)


def image_folder(
    root: str | Path,
    size: int,
    *,
    channels: Literal[1, 3] = 3,
    test: float = 0.2,
    classes: Sequence[str] | None = None,
    public_classes: Sequence[str] = (),
    shift: Shift | None = None,
    rng: RNG = 0,
    max_pixels: int = 2**26,
) -> Images:
    """A task from the images under ``root/<class>/``.

    Parameters
    ----------
    root, size, channels, max_pixels
        As in `read_folder`.
    test : float
        Share of the private images to hold out, of each class alike, in (0, 1).
    classes : sequence of str, optional
        Names of the private classes, labelled in this order; by default all that are not public.
    public_classes : sequence of str
        Classes whose images all become the public part, unshifted. By default there is none.
    shift : Shift, optional
        Shift of the private images; none by default.
    rng : int, Generator or None
        Draws the split (SPEC 7).

    Returns
    -------
    Images

    Raises
    ------
    ValueError
        As in `read_folder`, or if a class would be without images to train on or to test with.
    MemoryError
        If the images do not fit into memory.

    See Also
    --------
    read_folder : For a split made already: ``Images(read_folder("train", 32), read_folder("test", 32))``.
    """
    shift = or_default("shift", shift, Shift)
    if not 0 < _validate.number("test", test) < 1:
        raise ValueError(f"test must lie in (0, 1), got {test!r}")
    whole = read_folder(root, size, channels=channels, max_pixels=max_pixels)
    public, private = public_and_private(whole.classes, classes, public_classes)
    own = whole.only([whole.classes[number] for number in private])
    held_out, rest = stratified(own.labels, [round(test * len(own))], generator(rng, "image folder"))
    for name, places in (("test with", held_out), ("train on", rest)):
        missing = np.bincount(own.labels[places], minlength=len(private)) == 0
        if missing.any():
            raise ValueError(
                f"test={test:g} leaves no image of class {own.classes[int(np.argmax(missing))]!r} to {name}: "
                "use another share or more images"
            )
    return Images(
        own.take(np.sort(rest)).shifted(shift),
        own.take(np.sort(held_out)).shifted(shift),
        whole.only([whole.classes[number] for number in public]) if public else None,
        shift,
        str(root),
    )
