"""CIFAR-10 and STL-10, in their published formats byte for byte."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from empirical import Shift, cifar10, stl10, stl10_unlabelled
from empirical.data import binary
from tests.empirical.data.published import CIFAR_NAMES, CIFAR_RECORDS, cifar_files, rows


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
