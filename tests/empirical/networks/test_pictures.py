"""Images that stay bytes until a network sees them: the same numbers, and the same run."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from empirical import Recipe, glyphs, mlp  # noqa: E402
from empirical.data.images import Part, normalised  # noqa: E402
from empirical.networks import frozen  # noqa: E402
from empirical.networks.pictures import Pictures  # noqa: E402
from empirical.train.fine_tuning import finetune  # noqa: E402

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_what_is_taken_is_normalised(dtype):
    images = np.random.default_rng(0).integers(0, 256, (9, 2, 3, 3), dtype=np.uint8)
    if dtype == np.float32:
        images = images / np.float32(255)
    mean, std = np.array([0.25, 0.5]), np.array([0.5, 0.3])
    pictures, expected = Pictures(images, mean, std, CPU), torch.from_numpy(normalised(images, mean, std))
    assert torch.equal(pictures[torch.tensor([4, 0])], expected[[4, 0]])
    assert torch.equal(torch.cat(list(pictures.split(4))), expected)
    assert frozen._names(pictures) == frozen._names(expected)
    assert (len(pictures), pictures.shape, pictures.device) == (9, expected.shape, CPU)


@pytest.mark.parametrize("method", ["fft", "lp-fft"])
def test_a_run_on_bytes_is_that_on_floats(method):
    task = glyphs(8, train=60).subsample(test=2)
    body = mlp(task.train.shape, (8,))

    def stored(part: Part, as_bytes: bool) -> Part:
        pixels = np.rint(255 * part.images).astype(np.uint8)
        return Part(pixels if as_bytes else pixels / np.float32(255), part.labels, part.classes)

    runs = [
        finetune(
            replace(task, train=stored(task.train, flag), test=stored(task.test, flag), public=None),
            body,
            Recipe(method, steps=4, batch=20, epsilon=8, lr=0.5),
            evaluations=2,
        )
        for flag in (True, False)
    ]
    assert runs[0].drop_attrs().equals(runs[1].drop_attrs())
