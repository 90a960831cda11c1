"""What a fine-tuning records: evaluations, figures of each step, and the dataset of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from empirical.features.watch import MEASURES
from empirical.train.by_class import ByClass
from empirical.train.losses import Loss
from empirical.train.network import Network
from empirical.train.run_options import Watch
from empirical.train.stage import Slot
from empirical.train.step import Release

if TYPE_CHECKING:
    import xarray as xr

# of an evaluation, over `step`
EVALUATIONS = {
    "test_accuracy": ("share of test images classified correctly", "1"),
    "test_loss": ("mean cross-entropy over the test images", "nat"),
    "train_accuracy": ("share of private training images classified correctly; not private", "1"),
    "train_loss": ("mean cross-entropy over the private training images; not private", "nat"),
}
# of a training step, over `update`
UPDATES = {
    "batch": ("samples drawn", "1"),
    "clip_rate": ("share of the batch with a gradient norm above the clipping norm; not private", "1"),
    "gradient_norm": ("mean per-sample gradient norm of the batch; not private", "gradient"),
    "signal_to_noise": ("norm of the clipped sum over the expected norm of its noise; not private", "1"),
}


class Record:
    """Evaluations and figures of steps.

    Parameters
    ----------
    stops : sequence of int
        Steps done before each evaluation.
    slots : sequence of Slot
        Of each step.
    classes : sequence of str
    device : torch.device
        Where the figures of steps are kept until they are asked for.
    """

    def __init__(
        self, stops: np.ndarray, slots: Sequence[Slot], classes: Sequence[str], device: torch.device
    ) -> None:
        self._stops, self._stages = stops, [slot.stage.name for slot in slots]
        self._names: list[str] = []
        self._evaluated = np.zeros((len(stops), 0))
        self._by_class = ByClass(classes, len(stops))
        self._updates = torch.full((len(slots), len(UPDATES)), math.nan, device=device)
        # the version of the body that was last watched
        self._watched: int | None = None

    @property
    def begun(self) -> bool:
        """Whether there is an evaluation."""
        return bool(self._evaluated.size)

    @torch.no_grad()
    def evaluate(self, step: int, network: Network, loss: Loss, watch: Watch | None) -> None:
        """Evaluate the network after ``step`` steps."""
        values = {}
        network.model.eval()
        body, head = network.model.body, network.model.head
        place = int(np.searchsorted(self._stops, step))
        for part, (_, labels) in network.data.items():
            outputs = head(network.features(part))
            values[f"{part}_accuracy"] = loss.correct(outputs, labels).float().mean().item()
            values[f"{part}_loss"] = loss.value(outputs, labels).mean().item()
            if part == "test":
                self._by_class.add(place, labels, outputs.argmax(1))
        if watch is not None:
            again = getattr(watch, "again", None) if self._watched == network.body_version else None
            values |= watch(body, head) if again is None else again(head)
            self._watched = network.body_version
        self._names = list(values)
        row = list(values.values())
        if not self.begun:
            self._evaluated = np.full((len(self._stops), len(row)), np.nan)
        self._evaluated[place] = row
        network.model.train()

    def log(self, number: int, release: Release, clip: bool) -> None:
        """Record the figures of step ``number``; without ``clip`` there are no norms."""
        row = self._updates[number]
        row[0] = release.batch
        if release.batch and clip:
            row[1], row[2] = release.clipped / release.batch, release.norms / release.batch
        row[3] = release.signal_to_noise

    def dataset(self, attributes: Mapping[str, Any]) -> xr.Dataset:
        """Return the record so far; NaN where nothing is recorded yet."""
        import xarray as xr

        about = EVALUATIONS | {name: (m.meaning, m.units) for name, m in MEASURES.items()}
        variables: dict[str, Any] = {}
        for i, name in enumerate(self._names[: self._evaluated.shape[1]]):
            meaning, units = about.get(name, (name, "1"))
            variables[name] = ("step", self._evaluated[:, i], {"long_name": meaning, "units": units})
        variables |= self._by_class.variables()
        updates = self._updates.cpu().double().numpy()
        variables |= {
            name: ("update", updates[:, i], {"long_name": meaning, "units": units})
            for i, (name, (meaning, units)) in enumerate(UPDATES.items())
        }
        return xr.Dataset(
            variables,
            {
                **self._by_class.coordinates(),
                "step": ("step", self._stops, {"long_name": "steps done", "units": "1"}),
                "update": ("update", np.arange(len(updates)), {"long_name": "number of a step"}),
                "stage": ("update", self._stages, {"long_name": "what trains"}),
            },
            {"title": "private fine-tuning by DP-SGD", "source": "empirical", **attributes},
        )

    def arrays(self) -> dict[str, np.ndarray]:
        """State, for a checkpoint."""
        return {
            **self._by_class.arrays(),
            "updates": self._updates.cpu().numpy(),
            "evaluated": self._evaluated,
            "names": np.array(self._names, dtype=np.str_),
        }

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state from a checkpoint."""
        self._by_class.restore(arrays)
        self._updates.copy_(torch.from_numpy(arrays["updates"]))
        self._evaluated, self._names = arrays["evaluated"], arrays["names"].tolist()
