"""Make the tasks that no plan was designed on: ``python -m figures.study.held_out``, three minutes.

Each is a file of features in runs/held-out, which `empirical.finetune` and `figures.study.study_planner`
read. They are not kept in the repository: those of ELPV must not be redistributed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.output import ROOT
from langevin.support import streams

if TYPE_CHECKING:
    from empirical import Images

FOLDER = "runs/held-out"
# of Fashion-MNIST: largest number of training images, and of test images
_TRAIN, _TEST = 6000, 2000
# images at once
_BATCH = 64

Arrays = dict[str, np.ndarray]


def fashion(samples: int) -> Arrays:
    """Inputs of the last layer of Lite0 for images of Fashion-MNIST at 96 pixels, and that layer."""
    from empirical import fashion_mnist
    from empirical.networks.last_layer import last_layer
    from empirical.networks.lite0 import lite0

    every = fashion_mnist(train=_TRAIN)
    found = last_layer(body := lite0(every.train.shape, size=96, weights="imagenet"))
    rng = np.random.default_rng(0)
    # nested: the smaller task has the first rows of the larger one
    train = every.train.take(rng.permutation(len(every.train))[:samples])
    test = every.test.take(rng.permutation(len(every.test))[:_TEST])
    X, X_test = (found.inputs(seen_by(body, every, part), batch=_BATCH) for part in (train, test))
    return dict(X=X, y=train.labels, X_test=X_test, y_test=test.labels, W=found.W)


def elpv_cells(public: Any) -> Arrays:
    """Inputs of the last layer of Lite0 for photographs of solar cells, that layer trained on ``public``.

    Private are the cells of the other type, all of them: each seed has a split of its own.
    """
    import torch

    from empirical import elpv, pretrain
    from empirical.data.images import Images
    from empirical.data.rows import Rows
    from empirical.networks.bodies import layer
    from empirical.networks.last_layer import last_layer
    from empirical.networks.lite0 import lite0

    cells = elpv(128, public=public)
    assert cells.public is not None
    found = last_layer(body := lite0(cells.train.shape, size=128, weights="imagenet"))
    known, train, test = (
        Rows(found.inputs(seen_by(body, cells, part), batch=_BATCH)[:, None, None, :], part.labels, part.classes)
        for part in (cells.public, cells.train, cells.test)
    )
    top = layer(train.shape, found.W)
    pretrain(top, Images(train, test, known), rng=0)
    (W,) = (part.weight.detach().numpy() for part in top if isinstance(part, torch.nn.Linear))
    private = [np.concatenate(pair) for pair in ((train.images, test.images), (train.labels, test.labels))]
    X, source = (images[:, 0, 0] for images in (private[0], known.images))
    return dict(X=X, y=private[1], W=W, X_source=source, y_source=known.labels)


def wine() -> Arrays:
    """Wine, its thirteen columns standardised by all rows."""
    from sklearn.datasets import load_wine

    X, y = load_wine(return_X_y=True)
    return dict(X=(X - X.mean(0)) / X.std(0), y=y)


def digits_plain() -> Arrays:
    """Intensities of the ten digits, without pixels that are always equal."""
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    return dict(X=X[:, np.ptp(X, axis=0) > 0] / 16, y=y)


TASKS: dict[str, Callable[[], Arrays]] = {
    "fashion-1500": lambda: fashion(1500),
    "fashion-6000": lambda: fashion(6000),
    "elpv-poly": lambda: elpv_cells("mono"),
    "elpv-mono": lambda: elpv_cells("poly"),
    "wine": wine,
    "digits-plain": digits_plain,
}


def seen_by(body: Any, task: Images, part: Any) -> np.ndarray:
    """A part's images, normalised as the body was pre-trained."""
    from empirical.data.images import normalised
    from empirical.networks.bodies import scale_of

    return normalised(part.images, *scale_of(body, task))


def main(argv: list[str] | None = None) -> int:
    """Make the files that are missing."""
    parser = argparse.ArgumentParser(
        prog="python -m figures.study.held_out", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    for task in parser.parse_args(argv).tasks:
        path = Path(ROOT, FOLDER, f"{task}.npz")
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # half precision holds the features well enough, and travels at half the size
        arrays = {
            name: values.astype(np.int64 if name.startswith("y") else np.float16)
            for name, values in TASKS[task]().items()
        }
        np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
        print(path, f"{path.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    streams.run(main)
