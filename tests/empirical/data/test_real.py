"""Fashion-MNIST from idx files that the tests write, and ELPV where its package is installed."""

import gzip
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from empirical import Images, Setting, Shift, elpv, fashion_mnist
from empirical.data import fashion, solar
from empirical.data.fashion import FASHION_CLASSES, FASHION_FOLDER, read_idx

NAMES = [f"{part}-{what}" for part in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
installed = pytest.mark.skipif(
    importlib.util.find_spec("elpv_dataset") is None, reason="needs elpv-dataset (extra 'elpv')"
)
packaged = pytest.mark.skipif(
    not Path(FASHION_FOLDER).is_dir(), reason="needs Debian's package dataset-fashion-mnist"
)


def idx(values: np.ndarray, kind: int = 8, said: tuple[int, ...] | None = None) -> bytes:
    shape = values.shape if said is None else said
    return bytes([0, 0, kind, len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape) + values.tobytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The four files, of 60 and 30 images; the place of an image is written in its first pixels."""
    monkeypatch.setattr(fashion, "_IMAGES", {"train": 60, "t10k": 30})
    random = np.random.default_rng(0)
    for part, count in (("train", 60), ("t10k", 30)):
        images = random.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        images[:, 0, 0] = np.arange(count)
        for name, values in (("images-idx3", images), ("labels-idx1", np.arange(count) % 10)):
            path = tmp_path / f"{part}-{name}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(values.astype(np.uint8))))
    return tmp_path


def places(part: Any) -> list[int]:
    """Where images are in their file."""
    return part.images[:, 0, 0, 0].astype(int).tolist()


def test_the_published_split_is_kept(folder: Path) -> None:
    task = fashion_mnist(folder)
    assert task.public is None
    assert places(task.train) == list(range(60))
    assert places(task.test) == list(range(30))
    assert task.train.classes == FASHION_CLASSES
    assert task.train.labels.tolist() == [n % 10 for n in range(60)]
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        content = file.read()[16:]
    assert task.train.images.dtype == np.uint8
    assert task.train.images.tobytes() == content


def test_classes_or_a_share_become_public(folder: Path) -> None:
    task = fashion_mnist(folder, public_classes=("Bag", "Coat"), shift=Shift(gain=0.5))
    assert task.public is not None
    assert task.public.classes == ("Bag", "Coat")
    assert sorted(places(task.public)) == [n for n in range(60) if n % 10 in (4, 8)]
    assert len(task.train.classes) == 8
    assert task.train.images.max() <= 0.5 < task.public.images.max() / 255
    assert len(task.test) == 24
    task = fashion_mnist(folder, public_share=0.5, train=20, rng=3)
    assert task.public is not None
    assert task.public.counts.tolist() == [3] * 10
    assert task.train.counts.tolist() == [2] * 10
    assert not set(places(task.public)) & set(places(task.train))
    assert len(task.test) == 30
    assert places(fashion_mnist(folder, train=20, rng=3).train) != places(
        fashion_mnist(folder, train=20).train
    )
    assert fashion_mnist(folder, classes=("Bag", "Coat")).train.labels.tolist() == [1, 0] * 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(train=9), "train must lie from 10, the number of classes, to the 60 private images, got 9"),
        (dict(train=61), "train must lie from 10"),
        (dict(public_share=1.0), r"public_share must lie in \[0, 1\), got 1"),
        (dict(public_share=0.5, public_classes=("Bag",)), "public_share must be 0 with public_classes"),
        (dict(public_classes=("Hat",)), "public_classes must be different ones of T-shirt/top"),
    ],
)
def test_parts_that_cannot_be_made_are_refused(folder: Path, options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fashion_mnist(folder, **options)


def changed(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


LABELS = idx((np.arange(60) % 10).astype(np.uint8))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(LABELS[:-1]), "holds fewer than the 60 bytes that it says"),
        (gzip.compress(LABELS + b"\0"), "holds more than the 60 bytes that it says"),
        (gzip.compress(LABELS)[:-12], "is damaged"),
        (LABELS, "is damaged"),
        (gzip.compress(b""), "must begin with the bytes 00000801 of an idx file"),
        (gzip.compress(changed(LABELS, 2, 9)), "must begin with the bytes 00000801 .* got 00000901"),
        (gzip.compress(changed(LABELS, 3, 3)), "must begin with the bytes 00000801"),
        (gzip.compress(changed(LABELS, 7, 61)), r"must hold the shape \(60,\), but says \(61,\)"),
        (gzip.compress(changed(LABELS, 4, 255)), r"must hold the shape \(60,\), but says \(42781"),
        (gzip.compress(changed(LABELS, 20, 10)), "labels in .* must lie from 0 to 9, got 10 of image 12"),
    ],
    # the bytes hold the time at which they were compressed
    ids=["short", "long", "cut", "plain", "empty", "floats", "dimensions", "one more", "many more", "label"],
)
def test_files_that_are_not_as_published_are_refused(folder: Path, content: bytes, message: str) -> None:
    path = folder / "train-labels-idx1-ubyte.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        fashion_mnist(folder)
    assert "dataset-fashion-mnist" in str(raised.value)


def test_a_file_that_unpacks_to_more_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.gz"
    path.write_bytes(gzip.compress(LABELS[:8] + bytes(2**26)))
    reads: list[int] = []

    class Counted(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            content = super().read(size)
            reads.append(len(content))
            return content

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gzip, "open", Counted)
        with pytest.raises(ValueError, match="holds more"):
            read_idx(path, (60,))
    assert reads == [69]


def test_missing_files_are_named(folder: Path) -> None:
    (folder / "t10k-images-idx3-ubyte.gz").unlink()
    with pytest.raises(ValueError, match=r"there is no file .*t10k-images.* install Debian's package"):
        fashion_mnist(folder)


def test_the_setting_reads_it(folder: Path) -> None:
    setting = Setting("fashion-mnist", folder=str(folder), images=30, public_share=0.25)
    assert setting.pretrain == "supervised"
    task = setting.task(0)
    assert task.public is not None
    assert (len(task.train), len(task.test), len(task.public)) == (30, 30, 15)
    # published splits stay, whatever the seed; tuning never sees the test images
    assert places(setting.task(5).train) == places(task.train)
    tuned = setting.task(10_000, tuning=True)
    assert len(tuned.test) == 6
    assert set(places(tuned.test)) | set(places(tuned.train)) == set(places(task.train))
    named = Setting("fashion-mnist", folder=str(folder), public_classes=("Bag",))
    assert len(named.task(0).train.classes) == 9
    # settings without a share are what they were, so that stored cells are found
    assert "public_share" not in Setting().as_dict()
    assert setting.as_dict()["public_share"] == 0.25


@packaged
def test_debians_files() -> None:
    task = fashion_mnist()
    assert (len(task.train), len(task.test)) == (60_000, 10_000)
    assert set(task.train.counts) == {6_000}
    assert set(task.test.counts) == {1_000}
    assert task.train.images.mean() / 255 == pytest.approx(0.2860, abs=5e-5)
    # a byte for a pixel
    assert task.train.images.nbytes == 60_000 * 28 * 28
    # the first image is an ankle boot
    assert task.train.classes[task.train.labels[0]] == "Ankle boot"


@installed
def test_elpv() -> None:
    task = elpv(32, rng=1)
    assert (len(task.train), len(task.test), task.train.shape) == (2099, 525, (1, 32, 32))
    assert task.train.classes == ("intact", "defective")
    for part in (task.train, task.test):
        assert part.counts[1] / len(part) == pytest.approx(0.313, abs=2e-3)
    other = elpv(32, rng=2)
    assert not np.array_equal(other.test.images, task.test.images)
    shifted = Setting("elpv", size=32, public_classes=("mono",)).task(0)
    assert shifted.public is not None
    assert (len(shifted.public), len(shifted.train) + len(shifted.test)) == (1074, 1550)


def test_elpv_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solar, "_PACKAGE", "no_such_package")
    with pytest.raises(
        ImportError, match="needs the package elpv-dataset, which is not installed: pip install"
    ):
        elpv()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("images/a.png  1.0  mono\nimages/b.png  x  poly\n", "is not the published table"),
        ("images/a.png  1.0\n", "is not the published table"),
        ("images/a.png  1.0  thin\n", "must tell mono from poly, got \\['thin'\\]"),
        ("", "must tell mono from poly"),
        ("images/a.png  1.0  mono\n", "image .*a.png' cannot be read"),
    ],
)
def test_another_table_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, message: str
) -> None:
    package = tmp_path / "solar_cells"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "labels.csv").write_text(table)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(solar, "_PACKAGE", "solar_cells")
    with pytest.raises(ValueError, match=message):
        elpv()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: elpv(301), "size must be at most 300"),
        (lambda: elpv(test=1.0), "test must lie in"),
        (lambda: elpv(public="thin"), "public must be one of"),  # type: ignore[arg-type]
        (lambda: Setting("elpv", public_classes=("mono", "poly")), "public_classes must be mono or poly"),
        (lambda: Setting("elpv", folder="x"), "folder must be left out"),
        (lambda: Setting("elpv", images=5), "images must be left out"),
        (lambda: Setting("fashion-mnist", size=5), "size must be left out"),
        (lambda: Setting("fashion-mnist", public_share=-0.1), "public_share must lie in"),
        (lambda: Setting("digits", public_share=0.1), "public_share must be left out with data='digits'"),
        (
            lambda: Setting("fashion-mnist", pretrain="simclr"),
            "pretrain must be 'none' without a public part",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make: Callable[[], Images | Setting], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
