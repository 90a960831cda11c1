"""Digits, the published formats byte for byte, and folders of images."""

import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from empirical import Images, Part, Shift, cifar10, digits, image_folder, read_folder, stl10, stl10_unlabelled
from empirical.data import binary

ROOT = Path(__file__).resolve().parents[3]


def rows(part: Part | None) -> set[bytes]:
    assert part is not None
    return {image.tobytes() for image in part.images}


# digits


def test_digits_split_into_the_usual_numbers():
    task = digits()
    assert task.public is not None
    assert (len(task.public), len(task.train), len(task.test)) == (400, 1097, 300)
    everything = load_digits(return_X_y=True)[0].astype(np.float32) / 16
    # disjoint, and nothing is lost
    assert rows(task.public) | rows(task.train) | rows(task.test) == {
        row.tobytes() for row in everything.reshape(-1, 8, 8)
    }
    assert len(everything) == len(rows(task.public)) + len(rows(task.train)) + len(rows(task.test))
    counts = np.bincount(load_digits(return_X_y=True)[1])
    for part in (task.public, task.train, task.test):
        assert abs(part.counts - counts * len(part) / 1797).max() < 2


def test_digits_keep_their_labels():
    images, labels = load_digits(return_X_y=True)
    label_of = {row.astype(np.float32).tobytes(): label for row, label in zip(images, labels, strict=True)}
    task = digits(classes=(7, 1, 4))
    assert task.test.classes == ("7", "1", "4")
    for part in (task.public, task.train, task.test):
        assert part is not None
        found = [label_of[(16 * image).tobytes()] for image in part.images]
        assert found == [(7, 1, 4)[label] for label in part.labels]


def test_digits_depend_on_the_seed_alone():
    first, again, other = digits(rng=1), digits(rng=1), digits(rng=2)
    assert (first.train.images == again.train.images).all()
    assert rows(first.train) != rows(other.train)
    # the split is the same under every shift: methods and shifts are compared on the same images
    shifted = digits(Shift(rotation=20, gain=0.4, offset=0.3), rng=1)
    assert (shifted.train.labels == first.train.labels).all()
    assert rows(shifted.public) == rows(first.public)
    for name in ("train", "test"):
        expected = 0.4 * Shift(rotation=20)(getattr(first, name).images) + 0.3
        np.testing.assert_allclose(getattr(shifted, name).images, expected, atol=1e-6)


def test_digits_are_told_apart_by_their_pixels_and_shuffled_ones_are_not():
    task = digits()

    def score(labels: np.ndarray) -> float:
        model = KNeighborsClassifier(21).fit(task.train.images.reshape(-1, 64), labels)
        return float(model.score(task.test.images.reshape(-1, 64), task.test.labels))

    assert score(task.train.labels) > 0.93
    shuffled = np.random.default_rng(0).permutation(task.train.labels)
    assert score(shuffled) < 0.1 + 4 * np.sqrt(0.09 / 300)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(classes=(3,)), "two or more different digits"),
        (dict(classes=(3, 3)), "two or more different digits"),
        (dict(classes=(3, 10)), "two or more different digits"),
        (dict(public=1790), "public must be 0 or lie from 10 to 1777, got 1790"),
        (dict(public=5), "public must be 0 or lie from 10"),
        (dict(test=5), "test must lie from 10 to 1387"),
        (dict(test=1388), "leaves an image of each of the 10 classes"),
    ],
)
def test_digits_that_cannot_be_split_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        digits(**arguments)


def test_digits_without_a_public_part():
    task = digits(classes=(0, 1), public=0, test=60)
    assert task.public is None
    assert len(task.train) == 300


# CIFAR-10

CIFAR_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR_RECORDS = 20


def cifar_files(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Write small files in the published format; labels and images (n, 32, 32, 3) of each."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    written = {}
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        labels = rng.permutation(np.arange(CIFAR_RECORDS) % 10)
        images = rng.integers(0, 256, (CIFAR_RECORDS, 32, 32, 3), dtype=np.uint8)
        with (folder / name).open("wb") as file:
            for label, image in zip(labels, images, strict=True):
                file.write(bytes([label]))
                for colour in range(3):
                    for row in range(32):
                        file.write(image[row, :, colour].tobytes())
        written[name] = labels, images
    (folder / "batches.meta.txt").write_text("\n".join(CIFAR_NAMES) + "\n\n")
    return written


@pytest.fixture
def cifar(tmp_path, monkeypatch) -> tuple[Path, dict]:
    monkeypatch.setattr(binary, "_CIFAR_RECORDS", CIFAR_RECORDS)
    monkeypatch.setattr(binary, "_BLOCK", 7)
    folder = tmp_path / "cifar-10-batches-bin"
    return folder, cifar_files(folder)


def test_cifar_is_read_byte_for_byte(cifar):
    folder, written = cifar
    for path in (folder, folder.parent, str(folder)):
        task = cifar10(path)
        assert task.train.classes == tuple(CIFAR_NAMES)
        assert task.public is None
        batches = [written[f"data_batch_{i}.bin"] for i in range(1, 6)]
        for part, parts in ((task.train, batches), (task.test, [written["test_batch.bin"]])):
            images = np.concatenate([images for _, images in parts]).transpose(0, 3, 1, 2)
            np.testing.assert_array_equal(part.labels, np.concatenate([labels for labels, _ in parts]))
            np.testing.assert_array_equal(part.images, images.astype(np.float32) / np.float32(255))


def test_cifar_classes_public_and_private(cifar):
    folder, written = cifar
    task = cifar10(folder, classes=["ship", "cat"], public_classes=["dog", "frog", "bird"])
    assert task.train.classes == ("ship", "cat")
    assert task.public is not None
    assert task.public.classes == ("dog", "frog", "bird")
    assert (len(task.public), len(task.train), len(task.test)) == (30, 20, 4)
    assert not rows(task.public) & (rows(task.train) | rows(task.test))
    labels, images = written["test_batch.bin"]
    ships = images[labels == 8].transpose(0, 3, 1, 2) / np.float32(255)
    np.testing.assert_array_equal(task.test.images[task.test.labels == 0], ships)
    assert len(cifar10(folder, public_classes=CIFAR_NAMES[:4]).train.classes) == 6
    shifted = cifar10(folder, classes=["cat"], public_classes=["dog"], shift=Shift(gain=0.5))
    assert shifted.train.images.max() <= 0.5
    assert shifted.public is not None
    assert shifted.public.images.max() > 0.9
    for classes, public in ((["cat"], ["cat"]), (None, CIFAR_NAMES)):
        with pytest.raises(ValueError, match="classes and public_classes must be disjoint"):
            cifar10(folder, classes=classes, public_classes=public)
    with pytest.raises(ValueError, match="classes must be different ones of airplane"):
        cifar10(folder, classes=["zebra"])


@pytest.mark.parametrize(
    "kind",
    ["no folder", "archive", "missing", "truncated", "a record less", "longer", "label", "names", "few"],
)
def test_damaged_cifar_is_refused_by_name(cifar, kind):
    folder, _ = cifar
    batch = folder / "data_batch_3.bin"
    whole = batch.read_bytes()
    match kind:
        case "no folder":
            folder, message = folder / "none", r"there is no folder .*none.*binary version"
        case "archive":
            folder, message = batch, r"must hold CIFAR-10, but this is a file: .*unpack it"
        case "missing":
            batch.unlink()
            message = r"there is no file .*data_batch_3\.bin.*binary version"
        case "truncated":
            batch.write_bytes(whole[:-1])
            message = (
                r"data_batch_3\.bin' must have 61460 bytes, 20 records of 3073, got 61459: it is truncated"
            )
        case "a record less":
            batch.write_bytes(whole[:-3073])
            message = "got 58387: it is truncated"
        case "longer":
            batch.write_bytes(whole + b"\0")
            message = "not what was published"
        case "label":
            batch.write_bytes(whole[: 3073 * 4] + bytes([10]) + whole[3073 * 4 + 1 :])
            message = r"labels in .*data_batch_3\.bin' must lie from 0 to 9, got 10 in record 4 \(1 such"
        case "names":
            (folder / "batches.meta.txt").unlink()
            message = r"names of the classes cannot be read from .*batches\.meta\.txt"
        case _:
            (folder / "batches.meta.txt").write_text("cat\ndog\n")
            message = "must name 10 different classes"
    with pytest.raises(ValueError, match=message):
        cifar10(folder)


class Malicious:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize("inner", [".", "cifar-10-batches-py"])
def test_the_pickled_version_of_cifar_is_not_opened(tmp_path, inner):
    folder = tmp_path / inner
    folder.mkdir(exist_ok=True)
    for name in ("data_batch_1", "batches.meta", "test_batch"):
        (folder / name).write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(ValueError, match=r"python version of CIFAR-10, a pickle.*download cifar-10-binary"):
        cifar10(tmp_path)


# STL-10

STL_NAMES = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]


@pytest.fixture
def stl(tmp_path, monkeypatch) -> tuple[Path, dict]:
    """Small files in the published format; labels and images (n, 96, 96, 3) of each."""
    records = {"train": 12, "test": 10, "unlabeled": 3}
    monkeypatch.setattr(binary, "_STL_RECORDS", records)
    monkeypatch.setattr(binary, "_BLOCK", 5)
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    written = {}
    for name, count in records.items():
        labels = np.arange(count) % 10 + 1
        images = rng.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        with (folder / f"{name}_X.bin").open("wb") as file:
            for image in images:
                for colour in range(3):
                    for column in range(96):
                        file.write(image[:, column, colour].tobytes())
        if name != "unlabeled":
            (folder / f"{name}_y.bin").write_bytes(bytes(labels.tolist()))
        written[name] = labels, images
    (folder / "class_names.txt").write_text("\n".join(STL_NAMES) + "\n")
    return folder, written


def test_stl_is_read_byte_for_byte(stl):
    folder, written = stl
    task = stl10(folder.parent)
    for name in ("train", "test"):
        part, (labels, images) = getattr(task, name), written[name]
        np.testing.assert_array_equal(part.labels, labels - 1)
        expected = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
        np.testing.assert_allclose(part.images, expected, rtol=1e-6)
        # rows and columns are not mixed up
        assert abs(part.images - expected.transpose(0, 1, 3, 2)).max() > 0.5
    assert task.train.classes == tuple(STL_NAMES)


@pytest.mark.parametrize("size", [48, 32, 24])
def test_stl_is_shrunk_by_averages(stl, size):
    folder, written = stl
    images = written["test"][1].transpose(0, 3, 1, 2) / 255
    times = 96 // size
    expected = np.zeros((10, 3, size, size))
    for i in range(times):
        for j in range(times):
            expected += images[:, :, i::times, j::times] / times**2
    task = stl10(folder, size, classes=STL_NAMES[::-1])
    np.testing.assert_allclose(task.test.images, expected, atol=1e-6)
    assert task.test.labels.tolist() == list(range(9, -1, -1))


def test_unlabelled_stl_stays_on_disk(stl):
    folder, written = stl
    images = stl10_unlabelled(folder)
    assert isinstance(images, np.memmap)
    assert not images.flags.writeable
    np.testing.assert_array_equal(images, written["unlabeled"][1].transpose(0, 3, 1, 2))
    (folder / "unlabeled_X.bin").unlink()
    assert len(stl10(folder).train) == 12  # it is optional
    with pytest.raises(ValueError, match=r"there is no file .*unlabeled_X\.bin"):
        stl10_unlabelled(folder)


@pytest.mark.parametrize(
    "kind", ["missing", "truncated", "labels truncated", "zero", "eleven", "size", "names"]
)
def test_damaged_stl_is_refused_by_name(stl, kind):
    folder, _ = stl
    size = 32
    match kind:
        case "missing":
            (folder / "test_y.bin").unlink()
            message = r"there is no file .*test_y\.bin.*stl10_binary\.tar\.gz"
        case "truncated":
            path = folder / "train_X.bin"
            path.write_bytes(path.read_bytes()[:-27648])
            message = (
                r"train_X\.bin' must have 331776 bytes, 12 records of 27648, got 304128: it is truncated"
            )
        case "labels truncated":
            (folder / "train_y.bin").write_bytes(b"\1" * 11)
            message = r"train_y\.bin' must have 12 bytes"
        case "zero":
            (folder / "train_y.bin").write_bytes(b"\1" * 11 + b"\0")
            message = r"must lie from 1 to 10, got 0 in record 11"
        case "eleven":
            (folder / "test_y.bin").write_bytes(b"\x0b" * 10)
            message = r"got 11 in record 0 \(10 such"
        case "size":
            size, message = 64, "size must be a divisor of 96, got 64"
        case _:
            (folder / "class_names.txt").write_bytes(b"\xff\xfe")
            message = "names of the classes cannot be read"
    with pytest.raises(ValueError, match=message):
        stl10(folder, size)


# folders


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


def test_empirical_is_light():
    heavy = ("numpy", "scipy", "sklearn", "PIL", "torch", "opacus")
    code = f"import sys, empirical; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    code = (
        "import sys, empirical; empirical.Part; empirical.glyphs; empirical.cifar10;"
        f"print([m for m in {heavy[2:]} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
