"""Measure features during fine-tuning: ``python -m figures.study.study_features``, 15 minutes.

It writes docs/study/features.nc, which `figures.study.fig_features` reads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures.output import ROOT
from langevin.support import streams
from langevin.support.machine import processor

if TYPE_CHECKING:
    import xarray as xr

FILE = "docs/study/features.nc"
# source of the tuned learning rates and of the rest of the recipe
TUNED = "docs/study/glyphs.nc"
EPSILONS = (0.3, 1.0)
SEEDS, EPOCHS = 20, 3
LARGE = 4.0
MEASURES = ("knn_accuracy", "cka", "test_accuracy")
BASELINES = ("pixels", "random", "pretrained")
# method and changes of the recipe; epsilon = inf means without noise
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "lp": ("lp", {}),
    "fft": ("fft", {}),
    "lp-fft": ("lp-fft", {}),
    "fft, zero head": ("fft", {"head": "zero"}),
    "fft, no noise": ("fft", {"epsilon": float("inf")}),
    "fft, zero head, no noise": ("fft", {"head": "zero", "epsilon": float("inf")}),
    "fft, large head": ("fft", {"head_scale": LARGE}),
    "lp-fft, large head": ("lp-fft", {"head_scale": LARGE}),
    "fft, large head, no noise": ("fft", {"head_scale": LARGE, "epsilon": float("inf")}),
    "lp-fft, large head, no noise": ("lp-fft", {"head_scale": LARGE, "epsilon": float("inf")}),
}


def measure(seeds: int = SEEDS, *, steps: int = 100, evaluations: int = 10, **setting: Any) -> xr.Dataset:
    """Fine-tune glyphs in every way of `RUNS`, and measure features.

    Parameters
    ----------
    seeds : int
        Each has its own glyphs, body, head, batches and noise, which all runs of the seed share.
    steps, evaluations : int
    **setting
        Of `empirical.Setting`, in addition to glyphs and the epochs of pre-training.

    Returns
    -------
    xarray.Dataset
        `MEASURES` over ``epsilon``, ``run``, ``seed`` and ``step``, ``baseline`` over ``kind`` and ``seed``.
    """
    import json
    from dataclasses import replace

    import torch
    import xarray as xr
    from tqdm import tqdm

    from empirical import MEASURES as MEANINGS
    from empirical import FeatureWatch, Recipe, Setting, body
    from empirical.train.fine_tuning import EVALUATIONS, finetune
    from langevin.store import files

    torch.set_num_threads(1)
    tuned = files.load(ROOT / TUNED)
    base = Recipe(**json.loads(tuned.attrs["recipe"]) | {"lp_share": None, "steps": steps})
    options: dict[str, Any] = {"body": "mlp", "epochs": EPOCHS, "features": True} | setting
    about = Setting("glyphs", **options)
    assert about.body is not None
    parts, baselines = [], []
    bar = tqdm(total=seeds * len(EPSILONS) * len(RUNS), disable=None, unit="run")
    for seed in range(seeds):
        task, pretrained = about.task(seed), about.network(seed)
        # weights of another seed than that of the body
        fresh = body(about.body, task.train.shape, widths=about.widths, rng=seed + 10_000)
        watch = FeatureWatch(task, pretrained, random=fresh, rng=seed)
        baselines.append([watch.baselines[kind] for kind in BASELINES])
        for epsilon in EPSILONS:
            for name, (method, changes) in RUNS.items():
                rates = tuned.sel(epsilon=epsilon, arm="lp-fft 0.5" if method == "lp-fft" else method)
                probing = float(rates.lp_lr) if method == "lp-fft" else None
                tuning = {"lr": float(rates.lr), "lp_lr": probing, "epsilon": epsilon}
                recipe = replace(base, method=method, lp_share=None, **(tuning | changes))
                run = finetune(task, pretrained, recipe, rng=seed, evaluations=evaluations, watch=watch)
                place = {"epsilon": [epsilon], "run": [name], "seed": [seed]}
                parts.append(run[list(MEASURES)].drop_attrs().expand_dims(place))
                bar.update()
    bar.close()
    data: Any = xr.combine_by_coords(parts, combine_attrs="drop").reindex(run=list(RUNS))
    data["baseline"] = (("seed", "kind"), baselines)
    data = data.assign_coords(kind=list(BASELINES))
    for name in MEASURES:
        meaning, units = EVALUATIONS.get(name) or (MEANINGS[name].meaning, MEANINGS[name].units)
        data[name].attrs = {"long_name": meaning, "units": units}
    data.baseline.attrs = {"long_name": MEANINGS["knn_accuracy"].meaning, "units": "1"}
    data.step.attrs = {"long_name": "steps of DP-SGD", "units": "1"}
    data.attrs |= {"machine": processor(), "setting": json.dumps(about.as_dict())}
    data.attrs["recipe"] = json.dumps(base.as_dict())
    data.attrs["command"] = "python -m figures.study.study_features"
    return data


def main() -> int:
    """Compute and save."""
    from langevin.store import files

    files.save(measure(), ROOT / FILE)
    print(ROOT / FILE)
    return 0


if __name__ == "__main__":
    streams.run(main)
