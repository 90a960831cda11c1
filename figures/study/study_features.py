"""Measure features during fine-tuning: ``python -m figures.study.study_features``, 15 minutes.

It takes the task, the body and the tuned learning rates from a committed grid. For glyphs it writes
docs/study/features.nc, which `figures.study.fig_features` reads; for another grid, for example::

    python -m figures.study.study_features --tuned docs/study/lite0.nc --device cuda --seeds 5 --epsilons .3 3

Finished runs are kept in a file: the same command resumes, also after ``--time-limit``. ``--known`` takes
them from an earlier result instead, to which more seeds or budgets are added.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from figures.output import ROOT
from langevin.support import streams
from langevin.support.machine import processor

if TYPE_CHECKING:
    import xarray as xr

    from empirical import Images, Setting
    from empirical.recipe import Recipe

FILE = "docs/study/features.nc"
TUNED = "docs/study/glyphs.nc"
EPSILONS = (0.3, 1.0)
SEEDS, EVALUATIONS, TESTED = 20, 10, 2000
# of the pre-training on glyphs, after which features are not as good as they get
EPOCHS = 3
LARGE = 4.0
COLLAPSE = ("nc1", "nc2_norms", "nc2_angles", "nc3", "nc4")
MEASURES = ("knn_accuracy", "cka", *COLLAPSE, "test_accuracy")
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


@dataclass(frozen=True)
class Run:
    """One fine-tuning of the study: what its measures are stored by.

    Parameters
    ----------
    setting : Setting
    recipe : Recipe
    seed : int
        Of head, batches, noise, and where they depend on one split, glyphs and body: the same for all runs.
    evaluations, tested : int
        Number of evaluations after the first, and most test images that the accuracy is of.
    """

    setting: Setting
    recipe: Recipe
    seed: int
    evaluations: int
    tested: int

    @property
    def about(self) -> dict[str, Any]:
        """What its line in the file of runs says."""
        return {
            "setting": self.setting.as_dict(),
            "recipe": self.recipe.as_dict(),
            "seed": self.seed,
            "evaluations": self.evaluations,
            "tested": self.tested,
        }

    @property
    def key(self) -> str:
        """Digest of everything that the measures depend on."""
        return hashlib.sha256(json.dumps(self.about, sort_keys=True).encode()).hexdigest()[:24]

    def task(self) -> Images:
        """The task, with a part of the test images."""
        task = self.setting.task(self.seed)
        each = self.tested // len(task.test.classes)
        return task if len(task.test) <= self.tested else task.subsample(test=each)


def runs(
    tuned: xr.Dataset, *, epsilons: Sequence[float], seeds: int, device: str, evaluations: int, **changes: Any
) -> dict[tuple[float, str, int], Run]:
    """The runs by budget, name and seed, at the rates of a grid.

    Parameters
    ----------
    tuned : Dataset
        Of `empirical.run_grid`, with the arms "lp", "fft" and "lp-fft 0.5": its setting, its recipe, its
        rates.
    epsilons : sequence of float
    seeds : int
    device : str
    evaluations : int
    **changes
        Of the setting and of the recipe, by their fields; ``tested``, see `Run`.
    """
    from empirical import Recipe, Setting
    from empirical.data.shift import Shift

    recorded = json.loads(tuned.attrs["setting"])
    recorded |= {"shift": Shift(**recorded["shift"]), "device": device}
    recorded["options"] = tuple(map(tuple, recorded["options"]))
    recorded |= {name: value for name, value in changes.items() if name in recorded}
    setting = Setting(**recorded)
    base = Recipe(**json.loads(tuned.attrs["recipe"]) | {"lp_share": None})
    base = replace(base, **{name: value for name, value in changes.items() if hasattr(base, name)})
    found = {}
    for seed in range(seeds):
        for epsilon in epsilons:
            for name, (method, change) in RUNS.items():
                rates = tuned.sel(epsilon=epsilon, arm="lp-fft 0.5" if method == "lp-fft" else method)
                probing = float(rates.lp_lr) if method == "lp-fft" else None
                rate = {"lr": float(rates.lr), "lp_lr": probing, "epsilon": epsilon}
                recipe = replace(base, method=method, lp_share=None, **(rate | change))
                run = Run(setting, recipe, seed, evaluations, changes.get("tested", TESTED))
                found[epsilon, name, seed] = run
    return found


def measure(
    wanted: dict[tuple[float, str, int], Run],
    *,
    cells: str | Path | None = None,
    time_limit: float | None = None,
    known: xr.Dataset | None = None,
) -> xr.Dataset:
    """Fine-tune in every way of `RUNS`, and measure features.

    Parameters
    ----------
    wanted : dict
        From `runs`.
    cells : path, optional
        File of finished runs, read and appended to.
    time_limit : float, optional
        Seconds after which no run is started.
    known : Dataset, optional
        An earlier result, whose runs are not repeated.

    Returns
    -------
    xarray.Dataset
        `MEASURES` over ``epsilon``, ``run``, ``seed`` and ``step``, ``baseline`` over ``kind`` and ``seed``;
        NaN where a run is missing, of which the attribute ``left`` has the number.
    """
    from tqdm import tqdm

    from empirical.studies.cells import Records

    began = time.monotonic()
    found = {} if known is None else finished(known, wanted)
    with Records(cells) as records:
        todo = [run for place, run in wanted.items() if place not in found and not records.done(run)]
        # of one seed after the other, which share task, body and baselines
        for run in tqdm(todo, disable=None, unit="run"):
            if time_limit is not None and time.monotonic() - began > time_limit:
                break
            records.add(run, (_measured(run), None))
        return _dataset(wanted, {place: records.get(run) for place, run in wanted.items()} | found)


def finished(
    known: xr.Dataset, wanted: dict[tuple[float, str, int], Run]
) -> dict[tuple[float, str, int], dict[str, float]]:
    """Measures of the wanted runs that a result of `measure` has.

    Raises
    ------
    ValueError
        If its setting, its recipe or its steps differ from the wanted ones.
    """
    first = next(iter(wanted.values()))
    steps = known.step.values.tolist()
    same = {
        "setting": _portable(json.loads(known.attrs["setting"])) == _portable(first.setting.as_dict()),
        "recipe": json.loads(known.attrs["recipe"])
        in (_plain(run.recipe.as_dict()) for run in wanted.values()),
        "steps": (len(steps), steps[-1]) == (first.evaluations + 1, first.recipe.steps),
    }
    if other := [name for name, is_same in same.items() if not is_same]:
        raise ValueError(
            f"known must be of the wanted runs, got a result with another {other[0]}: leave it out, or ask "
            "for runs like those"
        )
    found = {}
    for place in wanted:
        at = dict(zip(("epsilon", "run", "seed"), place, strict=True))
        if any(value not in known[axis].values for axis, value in at.items()):
            continue
        one = known[list(MEASURES)].sel(at)
        # some others are undefined, such as the collapse of a zero head
        if bool(one.test_accuracy.notnull().all()):
            found[place] = {
                f"{name} {step}": float(one[name].sel(step=step)) for name in MEASURES for step in steps
            }
            found[place] |= {
                f"baseline {kind}": float(known.baseline.sel(seed=place[2], kind=kind)) for kind in BASELINES
            }
    return found


def _portable(setting: dict[str, Any]) -> dict[str, Any]:
    """A setting without what differs between machines."""
    return {name: value for name, value in _plain(setting).items() if name not in ("folder", "device")}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON returns them."""
    return json.loads(json.dumps(values))


class _Shared:
    """What the runs of a seed share."""

    def __init__(self, run: Run) -> None:
        import copy

        from empirical import FeatureWatch
        from empirical.networks.checked import Checked

        self.task, self.body, device = run.task(), run.setting.network(run.seed), run.setting.device
        # weights of another seed than that of the body
        fresh = run.setting.untrained(run.seed + 10_000)
        assert fresh is not None
        self.watch = FeatureWatch(
            self.task, copy.deepcopy(self.body).to(device), random=fresh.to(device), rng=run.seed
        )
        self.checked = Checked()


_shared: dict[tuple[Any, int], _Shared] = {}


def _measured(run: Run) -> dict[str, float]:
    """Measures of one run, by name and step."""
    import torch

    from empirical.train.fine_tuning import finetune

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    place = run.setting, run.seed
    if place not in _shared:
        _shared.clear()
        _shared[place] = _Shared(run)
    shared = _shared[place]
    try:
        found = finetune(
            shared.task,
            shared.body,
            run.recipe,
            rng=run.seed,
            device=run.setting.device,
            precision=run.setting.precision,
            evaluations=run.evaluations,
            watch=shared.watch,
            checked=shared.checked,
        )
    finally:
        torch.set_num_threads(threads)
    measures = {
        f"{name} {step}": float(value)
        for name in MEASURES
        for step, value in zip(found.step.values, found[name].values, strict=True)
    }
    return measures | {f"baseline {kind}": shared.watch.baselines[kind] for kind in BASELINES}


def _dataset(
    wanted: dict[tuple[float, str, int], Run], found: dict[tuple[float, str, int], dict[str, float] | None]
) -> xr.Dataset:
    import numpy as np
    import xarray as xr

    from empirical import MEASURES as MEANINGS
    from empirical.train.fine_tuning import EVALUATIONS as MEANT

    done = {place: values for place, values in found.items() if values is not None}
    if not done:
        raise RuntimeError("no run is finished yet: repeat the command, with a longer --time-limit")
    some = next(iter(done.values()))
    steps = sorted(int(name.split()[1]) for name in some if name.startswith("cka "))
    epsilons, seeds = (sorted({place[i] for place in wanted}) for i in (0, 2))  # type: ignore[type-var]
    axes = {"epsilon": epsilons, "run": list(RUNS), "seed": seeds, "step": steps}
    data = xr.Dataset(coords=axes | {"kind": list(BASELINES)})
    for name in MEASURES:
        meaning, units = MEANT.get(name) or (MEANINGS[name].meaning, MEANINGS[name].units)
        data[name] = xr.DataArray(np.nan, axes, list(axes), attrs={"long_name": meaning, "units": units})
    attributes = {"long_name": MEANINGS["knn_accuracy"].meaning, "units": "1"}
    data["baseline"] = (("seed", "kind"), np.full((len(seeds), len(BASELINES)), np.nan), attributes)
    for (epsilon, run, seed), values in done.items():
        at = {"epsilon": epsilon, "run": run, "seed": seed}
        for name in MEASURES:
            data[name].loc[at] = [values[f"{name} {step}"] for step in steps]
        data.baseline.loc[{"seed": seed}] = [values[f"baseline {kind}"] for kind in BASELINES]
    data.step.attrs = {"long_name": "steps of DP-SGD", "units": "1"}
    one = next(iter(wanted.values()))
    data.attrs |= {"setting": json.dumps(one.setting.as_dict()), "recipe": json.dumps(one.recipe.as_dict())}
    data.attrs["left"] = len(wanted) - len(done)
    return data


def main(argv: list[str] | None = None) -> int:
    """Compute and save."""
    from langevin.store import files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tuned", default=str(ROOT / TUNED), metavar="FILE", help="grid to take all from")
    parser.add_argument("--epsilons", type=float, nargs="+", default=EPSILONS, metavar="EPSILON")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--evaluations", type=int, default=EVALUATIONS)
    parser.add_argument("--tested", type=int, default=TESTED, help="test images, at most")
    parser.add_argument("--data-folder", metavar="FOLDER", help="of the images, if not where the grid's were")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cells", metavar="FILE", help="finished runs, read and added to")
    parser.add_argument("--known", metavar="FILE", help="earlier result, whose runs are not repeated")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="after which no run is started")
    parser.add_argument("--out", default=str(ROOT / FILE), metavar="FILE")
    given = parser.parse_args(argv)
    tuned = files.load(given.tuned)
    options: dict[str, Any] = {"epochs": EPOCHS} if Path(given.tuned).name == Path(TUNED).name else {}
    if given.data_folder is not None:
        options["folder"] = given.data_folder
    names = ("epsilons", "seeds", "evaluations", "device", "tested")
    wanted = runs(tuned, **{name: getattr(given, name) for name in names}, **options)
    known = None if given.known is None else files.load(given.known)
    data = measure(wanted, cells=given.cells, time_limit=given.time_limit, known=known)
    data.attrs |= {"machine": processor(), "command": "python -m figures.study.study_features"}
    files.save(data, given.out)
    print(given.out, f"{data.attrs['left']} runs left" if data.attrs["left"] else "")
    return 0


if __name__ == "__main__":
    streams.run(main)
