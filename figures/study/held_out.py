"""Make the tasks that no plan was designed on: ``python -m figures.study.held_out``, three minutes.

Each is a file of features in runs/held-out, which `empirical.finetune` and `figures.study.study_planner`
read. They are not kept in the repository: those of ELPV must not be redistributed.
"""

from __future__ import annotations

import argparse
import functools
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from figures.output import ROOT
from langevin.store import atomic
from langevin.support import streams

if TYPE_CHECKING:
    from empirical import Images
    from empirical.data.images import Part

FOLDER, MEASURED = "runs/held-out", "runs/measured"
# of Fashion-MNIST: largest number of training images, and of test images
_TRAIN, _TEST = 6000, 2000
# images at once
_BATCH = 64
# of Lite0's inputs, whose norms then are about 4, as those of the plain tables
_SCALE = 0.1

Arrays = dict[str, np.ndarray]


def fashion(samples: int) -> Arrays:
    """Inputs of the last layer of Lite0 for images of Fashion-MNIST at 96 pixels, and that layer.

    The smaller task has the first rows of the larger one.
    """
    found = _fashion()
    return found | {name: found[name][:samples] for name in ("X", "y")}


@functools.cache
def _fashion() -> Arrays:
    import torch

    from empirical import fashion_mnist
    from empirical.networks.last_layer import last_layer
    from empirical.networks.lite0 import lite0

    every = fashion_mnist(train=_TRAIN)
    body: Any = lite0(every.train.shape, size=96, weights="imagenet")
    found = last_layer(body.to(memory_format=torch.channels_last))
    rng = np.random.default_rng(0)
    train = every.train.take(rng.permutation(len(every.train)))
    test = every.test.take(rng.permutation(len(every.test))[:_TEST])
    X, X_test = (found.inputs(seen_by(body, every, part), batch=_BATCH) for part in (train, test))
    return dict(X=_SCALE * X, y=train.labels, X_test=_SCALE * X_test, y_test=test.labels, W=found.W)


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
        Rows(
            found.inputs(seen_by(body, cells, part), batch=_BATCH)[:, None, None, :],
            part.labels,
            part.classes,
        )
        for part in (cells.public, cells.train, cells.test)
    )
    top = layer(train.shape, found.W)
    pretrain(top, Images(train, test, known), rng=0)
    (W,) = (part.weight.detach().numpy() for part in top if isinstance(part, torch.nn.Linear))
    private = [np.concatenate(pair) for pair in ((train.images, test.images), (train.labels, test.labels))]
    X, source = (images[:, 0, 0] for images in (private[0], known.images))
    return dict(X=_SCALE * X, y=private[1], W=W, X_source=_SCALE * source, y_source=known.labels)


def wine() -> Arrays:
    """Wine, its thirteen columns standardised by all rows."""
    from sklearn.datasets import load_wine

    X, y = map(np.asarray, load_wine(return_X_y=True))
    return dict(X=(X - X.mean(0)) / X.std(0), y=y)


def digits_plain() -> Arrays:
    """Intensities of the ten digits, without pixels that are always equal."""
    from sklearn.datasets import load_digits

    X, y = map(np.asarray, load_digits(return_X_y=True))
    return dict(X=X[:, np.ptp(X, axis=0) > 0] / 16, y=y)


@dataclass(frozen=True)
class Task:
    """A task that no plan was designed on, and how it is measured.

    Parameters
    ----------
    make : callable
        Returns the arrays of its file.
    batch : float
        Expected batch, a tenth of the training rows.
    delta : float
    activation : {"relu", "linear"}
        Of the layer that is trained.
    """

    make: Callable[[], Arrays]
    batch: float
    delta: float = 1e-4
    activation: Literal["relu", "linear"] = "relu"

    @property
    def recipe(self) -> dict[str, float]:
        """What plans and measurements have in common."""
        return {"delta": self.delta, "clip": 1.0, "steps": 100, "batch": self.batch}


TASKS = {
    "fashion-1500": Task(lambda: fashion(1500), batch=150),
    "fashion-6000": Task(lambda: fashion(6000), batch=600),
    "elpv-poly": Task(lambda: elpv_cells("mono"), batch=124),
    "elpv-mono": Task(lambda: elpv_cells("poly"), batch=86),
    "wine": Task(wine, batch=14, delta=1e-3, activation="linear"),
    "digits-plain": Task(digits_plain, batch=144),
}


def path_of(task: str) -> str:
    """The file of a task, relative to the project's folder."""
    return f"{FOLDER}/{task}.npz"


def command(task: str, workers: int = 1) -> list[str]:
    """The command that measures a task, resumed if it is repeated."""
    about = TASKS[task]
    recipe = [word for name, value in about.recipe.items() for word in (f"--{name}", f"{value:g}")]
    grid = "--methods lp fft lp-fft --shares .25 .5 .75 --epsilons .1 .3 1 3 8 --seeds 20 --trials 9"
    rest = f"--tuning-seeds 2 --lr-range .02 8 --workers {workers}"
    body = ["--body", "layer", "--body-options", f"activation={about.activation}"]
    kept = ["--cells", f"{MEASURED}/{task}.jsonl", "--out", f"{MEASURED}/{task}.nc"]
    words = ["python", "-m", "empirical.finetune", "--data", path_of(task), *body]
    return [*words, *grid.split(), *rest.split(), *recipe, *kept]


def seen_by(body: Any, task: Images, part: Part) -> np.ndarray:
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
    parser.add_argument(
        "--commands", type=int, metavar="WORKERS", help="print the commands that measure them, instead"
    )
    args = parser.parse_args(argv)
    for task in args.tasks:
        if args.commands:
            print(shlex.join(command(task, args.commands)))
            continue
        path = Path(ROOT, path_of(task))
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        # half precision holds the features well enough, and travels at half the size
        arrays = {
            name: values.astype(np.int64 if name.startswith("y") else np.float16)
            for name, values in TASKS[task].make().items()
        }
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        print(path, f"{path.stat().st_size / 2**20:.1f} MiB")
    return 0


if __name__ == "__main__":
    streams.run(main)
