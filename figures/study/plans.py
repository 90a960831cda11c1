"""Plans for the tasks of the study and the held-out ones, each from what a user may have."""

from __future__ import annotations

import functools
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from figures.output import ROOT
from figures.study import held_out
from langevin.store import atomic
from langevin.support.threads import at_most
from langevin.sweeps.jobs import Outcome

if TYPE_CHECKING:
    from empirical import Images, Setting
    from empirical.networks.last_layer import LastLayer

# increased when plans are made in another way: those of another format are made again
FORMAT = 2
# arrays that plans are made from
KEPT = "runs/planner-inputs"
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Source:
    """What a plan is made from: private features, and more.

    Parameters
    ----------
    layer : bool
        The body's last layer is given, and the features are its inputs.
    origin : bool
        The public features are given, too, as ``X_source``.
    hedge : bool
    """

    layer: bool = False
    origin: bool = False
    hedge: bool = True


SOURCES = {
    "private features": Source(),
    "private, no hedge": Source(hedge=False),
    "private, public source": Source(origin=True),
    "private, last layer": Source(layer=True),
}


@dataclass(frozen=True)
class Plan:
    """A plan to make."""

    source: str
    task: str
    seed: int
    epsilon: float

    @property
    def key(self) -> str:
        """Digest of what the plan is of."""
        text = json.dumps([FORMAT, self.source, self.task, self.seed, self.epsilon])
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def about(self) -> dict[str, Any]:
        """What its line in the records says."""
        return dict(vars(self))


def setting_of(task: str) -> Setting:
    """The setting in which a task is measured."""
    from empirical import Setting, Shift
    from langevin.store import files

    if task in held_out.TASKS:
        return Setting(str(ROOT / held_out.path_of(task)))
    fields = json.loads(files.load(ROOT / f"docs/study/{task}.nc").attrs["setting"])
    lists = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Setting(**fields | lists | {"shift": Shift(**fields["shift"])})


def recipe_of(task: str) -> dict[str, Any]:
    """What a task's plans have in common with its measurements."""
    from langevin.store import files

    if task in held_out.TASKS:
        about = held_out.TASKS[task]
        return about.recipe | {"activation": about.activation}
    recipe = json.loads(files.load(ROOT / f"docs/study/{task}.nc").attrs["recipe"])
    return {name: recipe[name] for name in ("delta", "clip", "steps", "batch")}


def inputs(task: str, seed: int, source: str) -> dict[str, Any]:
    """Arrays for the planner.

    Only training images are used: the study measures on the test images.
    """
    arrays, what = _arrays(task, seed), SOURCES[source]
    X, y, W = arrays["X_train"], arrays["y_train"], arrays["W"]
    if what.layer:
        return {"X": X, "y": y, "W": W}
    features = _features(X, W)
    # neurons that are never active tell nothing, and are refused
    active = np.ptp(features, axis=0) > 0
    found = {"X": features[:, active], "y": y}
    if what.origin:
        found |= {"X_source": _features(arrays["X_public"], W)[:, active], "y_source": arrays["y_public"]}
    return found


def _features(X: np.ndarray, W: np.ndarray) -> np.ndarray:
    """The layer's outputs, those of no layer for the identity."""
    return X if W.size == 0 else np.maximum(X @ W.T, 0)


@functools.lru_cache(maxsize=1)
def _arrays(task: str, seed: int) -> dict[str, np.ndarray]:
    """Inputs of a body's last layer and labels, training and public, and that layer; empty: there is none.

    Those of a body are kept in files, as its pre-training takes as long as several plans.
    """
    setting, kept = setting_of(task), kept_at(task, seed)
    if setting.is_file:
        return _of_file(setting, setting.task(seed))
    if not kept.exists():
        found = _of_body(setting, setting.task(seed), seed)
        kept.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(kept) as temporary, temporary.open("wb") as file:
            np.savez(file, **found)  # type: ignore[arg-type]
    with np.load(kept, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def kept_at(task: str, seed: int) -> Path:
    """The file that holds the arrays of a task and seed."""
    return ROOT / KEPT / f"{task}-{seed}.npz"


def possible(task: str, source: str) -> bool:
    """Tell whether a task has what a plan is to be made from."""
    if task not in held_out.TASKS:
        return True
    with np.load(ROOT / held_out.path_of(task), allow_pickle=False) as file:
        names, what = set(file.files), SOURCES[source]
    return what.layer <= ("W" in names) and what.origin <= ("X_source" in names)


def prepare(of: tuple[str, int]) -> Outcome:
    """Make the arrays of a task and seed."""
    import torch

    torch.set_num_threads(1)
    _arrays(*of)
    return {}, None


def _of_file(setting: Setting, images: Images) -> dict[str, np.ndarray]:
    """Those of a file of features."""
    with np.load(setting.data, allow_pickle=False) as file:
        kept = {name: np.array(file[name]) for name in ("W", "X_source", "y_source") if name in file}
    X = images.train.images[:, 0, 0].astype(float)
    found = {"X_train": X, "y_train": images.train.labels, "W": kept.get("W", np.empty((0, 0))).astype(float)}
    if "X_source" in kept:
        found |= {"X_public": kept["X_source"].astype(float), "y_public": kept["y_source"]}
    return found


def _of_body(setting: Setting, images: Images, seed: int) -> dict[str, np.ndarray]:
    """The same of a body that is pre-trained for this, with a column of ones for the bias."""
    from empirical.networks.last_layer import last_layer

    assert images.public is not None
    found: LastLayer = last_layer(setting.network(seed))
    parts = {"train": images.train, "public": images.public}
    X = {f"X_{name}": found.inputs(images.normalised(part)) for name, part in parts.items()}
    return X | {f"y_{name}": part.labels for name, part in parts.items()} | {"W": found.W}


def make(plan: Plan) -> Outcome:
    """Make a plan, on one thread: planned share, and by share what was simulated."""
    import torch

    from empirical import plan_share

    torch.set_num_threads(1)
    arrays, settings = inputs(plan.task, plan.seed, plan.source), recipe_of(plan.task)
    # the study's head
    settings |= {"heads": ["gaussian"], "hedge": SOURCES[plan.source].hedge, "theory": False}
    settings |= {"shares": SHARES, "rng": plan.seed}
    began = time.process_time()
    with at_most(1):
        found = plan_share(**arrays, epsilon=plan.epsilon, **settings)
    values = {"share": found.share, "seconds": time.process_time() - began}
    (runs,) = found.runs.values()
    means = {
        "accuracy": runs.accuracy,
        "as_good": np.isin(found.shares, found.as_good)[:, None],
        **runs.worlds,
    }
    for name, by_draw in means.items():
        values |= {f"{name} {k}": float(mean) for k, mean in enumerate(by_draw.mean(1))}
    return values, None
