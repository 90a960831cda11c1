"""Simulate private fine-tuning on real features, next to DP-SGD: ``python -m figures.study.study_real``.

The theory's two-layer network stands on frozen features of EfficientNet-Lite0: its first layer is the last
1 x 1 convolution with its batch normalisation, on means over positions. It is tuned and run twice by one
protocol, by the engine of the simulations and by torch; the forecast of probing needs no run. It writes
docs/study/real.nc, which `figures.study.fig_real` reads. Finished runs are kept: the same command resumes.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.output import ROOT
from langevin.store import atomic
from langevin.support import streams
from langevin.support.machine import processor

if TYPE_CHECKING:
    import xarray as xr

    from empirical import Recipe, Setting

FILE = "docs/study/real.nc"
EPSILONS, SHARES = (0.3, 1.0, 3.0, 8.0), (0.25, 0.5, 0.75)
SEEDS, TRIALS = 10, 5
STEPS, BATCH, DELTA = 60, 300, 1e-5
RATES, PROBING_RATES = (0.03, 3.0), (0.2, 10.0)
# private images, test images, and pixels at which the network works
IMAGES, TESTED, SIZE = 6000, 2000, 96


def extract(path: Path, *, images: int = IMAGES, tested: int = TESTED, size: int = SIZE) -> float:
    """Write inputs ``X`` of the last layer of Fashion-MNIST, that layer ``W``, and labels, to an .npz file.

    Returns
    -------
    float
        `empirical.LastLayer.departure`: how far ``phi(W x)`` is from the network's own features.
    """
    from empirical import fashion_mnist, last_layer, lite0
    from empirical.data.images import normalised
    from empirical.networks.bodies import scale_of

    task = fashion_mnist(train=images).subsample(test=tested // 10)
    body = lite0(task.train.shape, size=size, weights="imagenet").eval()
    found, scale = last_layer(body), scale_of(body, task)
    parts: dict[str, Any] = {"W": found.W}
    for end, part in (("", task.train), ("_test", task.test)):
        seen = normalised(part.images, *scale)
        parts |= {f"X{end}": found.inputs(seen, batch=64), f"y{end}": part.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **parts)
    return found.departure(body, normalised(task.test.images[:200], *scale))


def simulate(setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
    """Simulate one fine-tuning of the two-layer network: what `empirical.run_grid` asks of a cell."""
    from empirical.planning.stand_in import Settings, Split
    from empirical.studies.arms import TUNING

    net = _stand_in(setting, seed if seed >= TUNING else 0, seed >= TUNING)
    mechanism = recipe.history(len(net.X)).mechanisms[0]
    noise, clip = mechanism.noise_multiplier or 0.0, mechanism.clip or 0.0
    stages = {stage.subset: stage for stage in recipe.stages}
    probing, full = stages.get("head"), stages.get("all")
    split = Split(probing.steps if probing else 0, probing.lr if probing else 1.0, full.lr if full else 1.0)
    found = net.run(
        Settings(recipe.steps, recipe.batch, noise, clip), [split], [np.random.SeedSequence(seed)]
    )
    return {"test_accuracy": float(found.accuracy[0, 0]), "train_loss": float(found.loss[0, 0])}


@functools.lru_cache(maxsize=1)
def _stand_in(setting: Setting, seed: int, tuning: bool) -> Any:
    from empirical.data.rows import first_layer
    from empirical.planning.stand_in import StandIn

    task = setting.task(seed, tuning=tuning)
    train, test = (part.images.reshape(len(part), -1).astype(float) for part in (task.train, task.test))
    W = np.asarray(first_layer(setting.data), dtype=float)
    classes = len(task.train.classes)
    return StandIn(train, task.train.labels, test, task.test.labels, W, None, classes)


def forecasts(path: Path, epsilons: Sequence[float]) -> xr.Dataset:
    """Forecasts of probing on the network's features from moments, new (8'(c)), without a run."""
    import xarray as xr

    import bounds

    with np.load(path, allow_pickle=False) as file:
        parts = {name: file[name] for name in ("X", "y", "X_test", "y_test")}
        W = file["W"]
    train, test = (np.maximum(parts[name] @ W.T, 0) for name in ("X", "X_test"))
    found = [
        bounds.probing_forecast(train, parts["y"], test, parts["y_test"], epsilon, DELTA)
        for epsilon in epsilons
    ]
    return xr.Dataset(
        {
            "forecast": ("epsilon", [f.test_accuracy for f in found]),
            "forecast_valid": ("epsilon", [bool(f.valid) for f in found]),
        },
        {"epsilon": list(epsilons)},
    )


def measure(
    path: Path,
    *,
    cells: str = "runs/real",
    time_limit: float | None = None,
    epsilons: Sequence[float] = EPSILONS,
    seeds: int = SEEDS,
    trials: int = TRIALS,
    steps: int = STEPS,
    batch: float = BATCH,
) -> xr.Dataset:
    """Simulate and train the network of a file that `extract` wrote.

    Parameters
    ----------
    path : Path
    cells : str
        Start of the names of the two files of finished runs.
    time_limit : float, optional
        Seconds for each of the two, after which no run is started.
    epsilons, seeds, trials, steps, batch
        Of the grid.

    Returns
    -------
    Dataset
        What `empirical.run_grid` returns, over ``how`` too: "simulation" and "DP-SGD"; `forecasts`.
    """
    import xarray as xr

    from empirical import Grid, Recipe, Setting, run_grid

    setting = Setting(str(path), body="layer")
    recipe = Recipe("fft", steps=steps, batch=batch, delta=DELTA)
    grid = Grid(
        setting,
        recipe,
        methods=("lp", "fft", "lp-fft"),
        epsilons=epsilons,
        shares=SHARES,
        seeds=seeds,
        trials=trials,
        tuning_seeds=1,
        lowest=RATES[0],
        highest=RATES[1],
        lp_lowest=PROBING_RATES[0],
        lp_highest=PROBING_RATES[1],
    )
    hows = {"simulation": simulate, "DP-SGD": None}
    found = [
        run_grid(
            grid, cells=f"{cells}-{name.lower()}.jsonl", time_limit=time_limit, compute=compute
        ).expand_dims(how=[name])
        for name, compute in hows.items()
    ]
    kept = ["test_accuracy", "lr", "lp_lr", "tuning_accuracy", "edge"]
    data: Any = xr.concat([run[kept] for run in found], "how", combine_attrs="drop_conflicts")
    data = data.merge(forecasts(path, epsilons))
    data.attrs["left"] = sum(int(run.attrs["left"]) for run in found)
    data.test_accuracy.attrs = {"long_name": "share of test images classified correctly", "units": "1"}
    data.forecast.attrs = {"long_name": "forecast of the test accuracy of probing", "units": "1"}
    return data


def main(argv: list[str] | None = None) -> int:
    """Compute and save."""
    from langevin.store import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", default="runs/real.npz", metavar="FILE", help="made if it is missing")
    parser.add_argument("--cells", default="runs/real", metavar="START")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS")
    parser.add_argument("--out", default=str(ROOT / FILE), metavar="FILE")
    given = parser.parse_args(argv)
    path = Path(given.features)
    if not path.exists():
        print(f"departure of the two-layer network's features: {extract(path):.3f}", flush=True)
    data = measure(path, cells=given.cells, time_limit=given.time_limit)
    data.attrs |= {"machine": processor(), "command": "python -m figures.study.study_real"}
    files.save(data, given.out)
    print(given.out, f"{data.attrs['left']} runs left" if data.attrs["left"] else "")
    return 0


if __name__ == "__main__":
    streams.run(main)
