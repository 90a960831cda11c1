"""Images in folders."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from empirical.data.images import Images, Part
from empirical.data.shift import Pixels, Shift
from empirical.data.splits import (
    or_default,
    public_and_private,
    stratified,
)
from langevin.support import validate
from langevin.support.rng import RNG, generator

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
    size, max_pixels = validate.integer("size", size, 1), validate.integer("max_pixels", max_pixels, 1)
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
    validate.memory(
        4.0 * len(files) * channels * size**2,
        f"{len(files)} images of {size} pixels",
        "use a smaller size or fewer images",
    )
    images = np.empty((len(files), channels, size, size), np.float32)
    for place, (path, _) in enumerate(files):
        images[place] = read_image(path, size, channels, max_pixels)
    return Part(images, np.array([label for _, label in files]), [folder.name for folder in folders])


def read_image(path: Path, size: int, channels: int, max_pixels: int) -> Pixels:
    """Read one image, shape (channels, size, size); see `read_folder`."""
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
    if not 0 < validate.number("test", test) < 1:
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
