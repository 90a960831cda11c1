"""What each stage of a fine-tuning sets up: trained subset, gradient engine, optimiser, samples at once."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from empirical.devices import memory
from empirical.networks import subsets
from empirical.networks.pictures import Pictures
from empirical.recipe import Engine, Recipe, Stage
from empirical.train.gradients.engine import Ghost, PerSample, engine
from empirical.train.gradients.plain import Gradients, Loop
from empirical.train.losses import Loss
from empirical.train.network import AT_ONCE, Network
from empirical.train.streams import Streams

# samples at once with per-sample gradients on a processor, whose cache holds few
_AT_ONCE_PER_SAMPLE = 256


class Slot(NamedTuple):
    """The stage of a step: its number, what it is, and its first step."""

    place: int
    stage: Stage
    first: int


def slots(recipe: Recipe) -> list[Slot]:
    """The slot of each step of a recipe."""
    starts = itertools.accumulate((stage.steps for stage in recipe.phases), initial=0)
    return [
        Slot(place, stage, first)
        for place, (stage, first) in enumerate(zip(recipe.phases, starts, strict=False))
        for _ in range(stage.steps)
    ]


@dataclass
class Active:
    """A stage that is set up for training.

    Attributes
    ----------
    slot : Slot
    make : callable
        Makes ``gradients`` again, if memory ran out in them.
    gradients : Gradients
    optimizer : torch.optim.SGD
    masks : dict
        Ones and zeros for parameters of which a part trains.
    data : Tensor or Pictures
    labels : Tensor
        What the trained part of the network sees: images, or features while probing.
    chunk : int
        Samples at once.
    """

    slot: Slot
    make: Callable[[], Gradients]
    masks: subsets.Mask
    data: Tensor | Pictures
    labels: Tensor
    gradients: Gradients = field(init=False)
    optimizer: torch.optim.SGD = field(init=False)
    chunk: int = field(init=False)

    def __post_init__(self) -> None:
        self.gradients = self.make()

    def renew(self) -> None:
        """Drop what a pass that was cut short left behind."""
        self.gradients.close()
        self.gradients = self.make()

    @functools.cached_property
    def entries(self) -> int:
        """Number of the entries of parameters that train."""
        params = self.gradients.params
        return sum(int(self.masks[p].sum()) if p in self.masks else p.numel() for p in params)


class Stages:
    """The stages of a fine-tuning, of which one at a time is set up.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    streams : Streams
    engines : dict of str to str
        Engine of each stage with clipping, by the stage's name.
    loss : Loss
    chunk : int or None
        Samples at once; None: by memory.

    Attributes
    ----------
    slots : list of Slot
        Of each step.
    active : Active or None
    masks : dict of str to Tensor
        The sparse subset, by names of the model's parameters; empty until it is chosen.
    """

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        streams: Streams,
        *,
        engines: Mapping[str, Engine],
        loss: Loss,
        chunk: int | None,
    ) -> None:
        self._network, self._recipe, self._streams = network, recipe, streams
        self._engines, self._loss, self._chunk = engines, loss, chunk
        self.slots = slots(recipe)
        self.active: Active | None = None
        self.masks: dict[str, Tensor] = {}

    def enter(self, number: int) -> Active:
        """Set up the stage of step ``number``, unless it is set up."""
        slot = self.slots[number]
        if self.active is not None and self.active.slot.place == slot.place:
            return self.active
        self.leave()
        network, recipe, stage = self._network, self._recipe, slot.stage
        network.train_only(stage.subset, self._streams)
        if stage.subset == "sparse" and not self.masks:
            self.select(None)
        named = dict(network.model.named_parameters())
        masks = {named[name]: mask for name, mask in self.masks.items()} if stage.subset == "sparse" else {}
        probing = stage.subset == "head"
        images, labels = network.data["train"]
        data = network.features("train") if probing else images
        trained = network.model.head if probing else network.model
        trained.train()
        clip = recipe.clip is not None
        kind = self._engines[stage.name] if clip else "closed" if probing else recipe.engine
        make = functools.partial(engine, trained, self._loss, kind, masks=masks, clip=clip)
        active = self.active = Active(slot, make, masks, data, labels)
        active.chunk = self._chunk or _chunk(
            active.gradients, 0 if probing else network.kept_of_one, network.device
        )
        active.optimizer = torch.optim.SGD(active.gradients.params, lr=stage.lr, momentum=recipe.momentum)
        return active

    def leave(self) -> None:
        """Close the stage that is set up, if there is one."""
        if self.active is not None:
            self.active.gradients.close()
            self.active = None

    def select(self, gradient: list[Tensor] | None) -> None:
        """Choose the sparse subset of the body; the gradient is over body and head, in their order."""
        named = [(name, p) for name, p in self._network.model.body.named_parameters() if p.requires_grad]
        own = None if gradient is None else gradient[: len(named)]
        scores = subsets.scores(self._recipe.selection, [p for _, p in named], own)
        chosen = subsets.largest(scores, self._recipe.density)
        self.masks = {f"body.{name}": mask for (name, _), mask in zip(named, chosen, strict=True)}

    def arrays(self) -> dict[str, np.ndarray]:
        """State, for a checkpoint."""
        arrays = {f"mask:{name}": mask.cpu().numpy() for name, mask in self.masks.items()}
        if self.active is not None and self._recipe.momentum:
            state = self.active.optimizer.state
            for place, p in enumerate(self.active.gradients.params):
                arrays[f"momentum:{place}"] = state[p]["momentum_buffer"].cpu().numpy()
        return arrays

    def restore(self, done: int, masks: Mapping[str, np.ndarray], momentum: Mapping[str, np.ndarray]) -> None:
        """Take the state after ``done`` steps, at least one, from the arrays of a checkpoint."""
        self.masks = {name: torch.from_numpy(array).to(self._network.device) for name, array in masks.items()}
        if self.slots[done - 1].stage.selects:
            return
        # the stage that the last step was in, of which the momentum is needed if it goes on
        active = self.enter(done - 1)
        for place, buffer in momentum.items():
            p = active.gradients.params[int(place)]
            active.optimizer.state[p]["momentum_buffer"] = torch.from_numpy(buffer).to(self._network.device)


def _chunk(gradients: Gradients, kept: int, device: torch.device) -> int:
    """Return the number of samples at once, limited by the memory of activations and gradients."""
    sizes = [4 * p.numel() for p in gradients.params]
    own = 0
    if isinstance(gradients, PerSample | Loop):
        own = sum(sizes)
    elif isinstance(gradients, Ghost):
        own = max(sizes)
    most = _AT_ONCE_PER_SAMPLE if own and device.type == "cpu" else AT_ONCE
    return memory.chunk(own + 2 * kept, most, device)
