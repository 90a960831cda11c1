"""Folders of images: what is read, how it is split, and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from empirical import Images, Shift, image_folder, read_folder
from tests.empirical.data.published import rows


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (12, 12)) -> Image.Image:
    bands = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *bands), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "pictures"
    for label, name in enumerate(["cat", "ant", "bee"]):
        (root / name).mkdir(parents=True)
        for i in range(10):
            picture(100 * label + i).save(root / name / f"{i:02}.png")
    return root


def test_a_folder_is_read_in_the_order_of_names(folder):
    (folder / "cat" / "deep").mkdir()
    picture(7).save(folder / "cat" / "deep" / "x.PNG")
    (folder / "cat" / "notes.txt").write_text("no image")
    (folder / "cat" / ".hidden.png").write_text("no image")
    (folder / ".cache").mkdir()
    part = read_folder(folder, 12)
    assert part.classes == ("ant", "bee", "cat")
    assert part.counts.tolist() == [10, 10, 11]
    expected = [np.asarray(picture(100 + i)) for i in range(10)]
    np.testing.assert_array_equal(
        part.images[:10], np.stack(expected).transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    )
    assert (part.images[-1] == np.asarray(picture(7)).transpose(2, 0, 1) / np.float32(255)).all()


def test_images_are_shrunk_to_the_middle(tmp_path):
    (tmp_path / "a").mkdir()
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = [255, 128, 0]  # the middle square; the rest is cut away
    Image.fromarray(wide).save(tmp_path / "a" / "wide.png")
    part = read_folder(tmp_path, 5)
    np.testing.assert_array_equal(part.images[0, :, 2, 2], np.array([255, 128, 0], np.float32) / 255)
    np.testing.assert_array_equal(part.images[0, 0, :, 1:4], 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_modes_of_images(tmp_path, channels):
    (tmp_path / "a").mkdir()
    grey = np.full((4, 4), 100, np.uint8)
    saved = {
        "a.png": Image.fromarray(grey),
        "b.png": Image.fromarray(grey).convert("P"),
        "c.png": Image.fromarray(grey).convert("LA"),
        "d.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "e.bmp": Image.fromarray(grey).convert("RGB"),
        "f.gif": Image.fromarray(grey),
        "g.tif": Image.fromarray(grey).convert("CMYK"),
        "h.webp": Image.fromarray(grey).convert("RGB"),
        "i.jpg": Image.fromarray(grey),
        "j.jpg": Image.fromarray(grey),  # of another format than its suffix says
    }
    for name, image in saved.items():
        image.save(tmp_path / "a" / name, lossless=True)  # heeded by webp
    (tmp_path / "a" / "j.jpg").write_bytes((tmp_path / "a" / "a.png").read_bytes())
    clear = Image.fromarray(np.dstack([grey, grey, grey, np.zeros_like(grey)]))
    clear.save(tmp_path / "a" / "k.png")
    part = read_folder(tmp_path, 4, channels=channels)
    assert part.shape == (channels, 4, 4)
    np.testing.assert_allclose(part.images[:-1], 100 / 255, atol=1e-6)
    assert (part.images[-1] == 0).all()  # what is transparent is black, whatever its colour says


def test_the_orientation_of_cameras_is_heeded(tmp_path):
    (tmp_path / "a").mkdir()
    image = picture(0, "L", (6, 6))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    image.save(tmp_path / "a" / "x.png", exif=exif)
    part = read_folder(tmp_path, 6, channels=1)
    np.testing.assert_allclose(part.images[0, 0], np.rot90(np.asarray(image), -1) / 255, atol=1e-6)


def test_a_folder_is_split_alike_in_each_class(folder):
    task = image_folder(folder, 12, classes=["cat", "ant"], public_classes=["bee"], test=0.3, rng=1)
    assert task.train.classes == ("cat", "ant")
    assert task.train.counts.tolist() == [7, 7]
    assert task.test.counts.tolist() == [3, 3]
    assert task.public is not None
    assert task.public.classes == ("bee",)
    assert len(rows(task.train) | rows(task.test) | rows(task.public)) == 30
    again = image_folder(folder, 12, classes=["cat", "ant"], public_classes=["bee"], test=0.3, rng=1)
    assert (again.train.images == task.train.images).all()
    other = image_folder(folder, 12, classes=["cat", "ant"], test=0.3, rng=2)
    assert rows(other.train) != rows(task.train)
    dim = image_folder(folder, 12, public_classes=["bee"], shift=Shift(gain=0.5))
    assert dim.train.images.max() <= 0.5
    assert dim.public is not None
    assert dim.public.images.max() > 0.9
    made = Images(read_folder(folder, 12), read_folder(folder, 12))
    assert len(made.train) == 30


def claimed(width: int, height: int) -> bytes:
    """A PNG that claims so many grey pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("side", [9_000, 12_000, 60_000, 2**31 - 1])
def test_decompression_bombs_are_not_unpacked(folder, side, monkeypatch):
    (folder / "ant" / "00.png").write_bytes(claimed(side, side))

    def unpacked(*_):
        pytest.fail("it was unpacked")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", unpacked)
    with pytest.raises(ValueError, match=r"ant.00\.png' cannot be read .*(max_pixels=67108864|bomb)"):
        read_folder(folder, 8)


def test_the_most_pixels_are_the_users(folder):
    with pytest.raises(ValueError, match=r"it has 144 pixels, more than max_pixels=143"):
        read_folder(folder, 8, max_pixels=143)
    assert len(read_folder(folder, 8, max_pixels=144)) == 30


@pytest.mark.parametrize("kind", ["truncated", "truncated jpeg", "text", "empty", "script", "floats"])
def test_unreadable_images_are_named(folder, kind):
    path = folder / "bee" / "05.png"
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "truncated jpeg":
        path.unlink()
        path = path.with_suffix(".jpg")
        picture(0, size=(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[:-500])
    elif kind == "text":
        path.write_text("no image")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "script":  # a format that another program would run
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EOF\n")
    else:
        path.unlink()
        path = path.with_suffix(".tif")
        Image.fromarray(np.zeros((4, 4), np.float32)).save(path)
    with pytest.raises(ValueError, match=rf"image .*bee.{path.name}' cannot be read \(.*remove it"):
        read_folder(folder, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(test=0), r"test must lie in \(0, 1\), got 0"),
        (dict(test=0.01), r"test=0\.01 leaves no image of class 'ant' to test with"),
        (dict(test=0.99), r"leaves no image of class '.*' to train on"),
        (dict(channels=2), r"channels must be 1 \(grey\) or 3"),
        (dict(size=0), "size must be at least 1"),
        (dict(classes=["dog"]), "classes must be different ones of ant, bee, cat"),
        (dict(public_classes=["ant", "bee", "cat"]), "classes and public_classes must be disjoint"),
        (dict(shift=90), r"shift must be a Shift\(...\) or None"),
    ],
)
def test_bad_arguments_of_folders_are_refused(folder, arguments, message):
    with pytest.raises((ValueError, TypeError), match=message):
        image_folder(**{**dict(root=folder, size=8), **arguments})


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="root must hold a folder of images for each class"):
        read_folder(tmp_path / "none", 8)
    (tmp_path / "a").mkdir()
    with pytest.raises(ValueError, match=r"class folder .*a' must hold images \(\.bmp.*got none"):
        read_folder(tmp_path, 8)
