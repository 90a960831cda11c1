"""CIFAR-10 in its published format, with few images, and the images of a part as a set."""

from pathlib import Path

import numpy as np

from empirical import Part

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


def rows(part: Part | None) -> set[bytes]:
    assert part is not None
    return {image.tobytes() for image in part.images}
