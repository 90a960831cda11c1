"""Compare the forecast of private probing with DP-SGD: ``python -m figures.study.study_forecast``.

It writes docs/study/forecast.nc, which `figures.study.fig_forecast` reads. Digits come with scikit-learn. For
others, ``--features NAME=FILE.npz`` names a file with ``X_train``, ``y_train``, ``X_test`` and ``y_test``.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.output import ROOT
from langevin.support import streams
from langevin.support.machine import processor

if TYPE_CHECKING:
    import xarray as xr

    from bounds import ProbingForecast

FILE = "docs/study/forecast.nc"
EPSILONS = (0.1, 0.3, 1.0, 3.0, 8.0)
DELTA, SEEDS = 1e-5, 20
MEANINGS = {
    "test_loss": "loss per held-out sample",
    "test_accuracy": "held-out accuracy",
    "clipped": "share of clipped gradients over all steps",
}

CHOSEN = ("learning_rate", "noise_multiplier", "clip", "steps")

Parts = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def digits(width: int = 256, samples: int = 1400) -> Parts:
    """Random ReLU features of the ten digits and their labels, for training and held out."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    X, y = digits.data, digits.target
    rng = np.random.default_rng(0)
    A = np.maximum(X / 16 @ rng.standard_normal((X.shape[1], width)) / 8, 0.0)
    order = rng.permutation(len(y))
    train, test = order[:samples], order[samples:]
    return A[train], y[train], A[test], y[test]


def dpsgd(found: ProbingForecast, seed: int) -> tuple[float, float, float]:
    """Run the forecast's settings as DP-SGD through Opacus, with its ghost clipping.

    Returns
    -------
    float, float, float
        `MEANINGS`, in this order.
    """
    import torch
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPTensorFastGradientClipping

    how, problem = found.dpsgd, found.problem
    X, Y, X_test, Y_test = (
        torch.tensor(part, dtype=torch.float32)
        for part in (problem.X, problem.targets, problem.X_test, problem.y_test)
    )
    rng, rate = np.random.default_rng(seed), how.sample_rate or 1.0
    linear = torch.nn.Linear(X.shape[1], Y.shape[1], bias=False)
    torch.nn.init.zeros_(linear.weight)
    options: dict[str, Any] = {"max_grad_norm": how.clip, "loss_reduction": "mean"}
    size: Any = rate * len(X)  # a float will do
    head = GradSampleModuleFastGradientClipping(linear, **options)
    optimizer = DPOptimizerFastGradientClipping(
        torch.optim.SGD(head.parameters(), lr=how.learning_rate),
        noise_multiplier=how.noise_multiplier,
        expected_batch_size=size,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
    norms, clipped = X.norm(dim=1), 0.0
    for _ in range(how.steps):
        rows = np.flatnonzero(rng.random(len(X)) < rate)
        optimizer.zero_grad()
        # Opacus's hooks warn if no input requires gradients
        residuals = head(X[rows].requires_grad_()) - Y[rows]
        clipped += float((residuals.detach().norm(dim=1) * norms[rows] > how.clip * (1 + 1e-6)).sum())
        losses = 0.5 * (residuals**2).sum(1)
        DPTensorFastGradientClipping(head, optimizer, losses, loss_reduction="mean").backward()
        optimizer.step()
    with torch.no_grad():
        outputs = head(X_test)
    loss = 0.5 * ((outputs - Y_test) ** 2).sum(1).mean()
    right = (outputs.argmax(1) == Y_test.argmax(1)).float().mean()
    return float(loss), float(right), clipped / (how.steps * rate * len(X))


def measure(features: Parts, *, seeds: int = SEEDS, epsilons: tuple[float, ...] = EPSILONS) -> xr.Dataset:
    """Forecast and run private probing at each budget.

    Parameters
    ----------
    features : tuple of ndarray
        As `digits` returns them.
    seeds : int
        Runs of DP-SGD.
    epsilons : tuple of float

    Returns
    -------
    xarray.Dataset
        `MEANINGS` over ``epsilon`` and ``seed``, the same as forecast, with the prefix ``forecast_``, and the
        settings.
    """
    import time

    import xarray as xr

    import bounds

    rows = []
    for epsilon in epsilons:
        began = time.perf_counter()
        found = bounds.probing_forecast(*features, epsilon, DELTA)
        took = time.perf_counter() - began
        expected = found.test_loss / len(features[2]), found.test_accuracy, found.clipped
        runs = np.array([dpsgd(found, seed) for seed in range(seeds)])
        values: dict[str, Any] = {name: ("seed", runs[:, k]) for k, name in enumerate(MEANINGS)}
        values |= {f"forecast_{name}": value for name, value in zip(MEANINGS, expected, strict=True)}
        how = found.dpsgd
        values |= {
            name: getattr(how, name) for name in ("learning_rate", "noise_multiplier", "clip", "steps")
        }
        values |= {"sample_rate": how.sample_rate or 1.0, "valid": found.valid, "seconds": took}
        rows.append(xr.Dataset(values))
    data: Any = xr.concat(rows, "epsilon").assign_coords(epsilon=list(epsilons), seed=np.arange(seeds))
    for name, meaning in MEANINGS.items():
        data[name].attrs = {"long_name": f"{meaning}, DP-SGD", "units": "1"}
        data[f"forecast_{name}"].attrs = {"long_name": f"{meaning}, forecast", "units": "1"}
    return data


def main(argv: list[str] | None = None) -> int:
    """Compute and save."""
    import xarray as xr

    from langevin.store import files

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", action="append", default=[], metavar="NAME=FILE.npz")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    given = parser.parse_args(argv)
    sources = {"digits, random ReLU features": digits()}
    for item in given.features:
        name, _, path = item.partition("=")
        with np.load(path, allow_pickle=False) as file:
            sources[name] = tuple(file[key] for key in ("X_train", "y_train", "X_test", "y_test"))
    parts = []
    for name, features in sources.items():
        print(name, flush=True)
        data = measure(features, seeds=given.seeds)
        data["samples"], data["features"] = features[0].shape
        parts.append(data.expand_dims(source=[name]))
    data: Any = xr.concat(parts, "source", combine_attrs="drop_conflicts")
    data.attrs |= {"machine": processor(), "command": "python -m figures.study.study_forecast"}
    files.save(data, ROOT / FILE)
    print(ROOT / FILE)
    return 0


if __name__ == "__main__":
    streams.run(main)
