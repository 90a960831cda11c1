"""The network of a fine-tuning: a private copy of the body, a new head, and the images on their device."""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from empirical.data.images import Images
from empirical.devices import memory
from empirical.networks import frozen, passes, subsets
from empirical.networks.bodies import Classifier, features_of, scale_of
from empirical.networks.check import check_passes
from empirical.networks.checked import Checked
from empirical.networks.pictures import Pictures
from empirical.networks.private import make_private
from empirical.recipe import Recipe, Subset
from empirical.train.gradients import trial
from empirical.train.streams import Streams

# samples at once, at most
AT_ONCE = 4096
# the number of a stage that prototypes draw their noise from
_PROTOTYPES = 2**32


class Network:
    """A classifier made of a body that is fit for DP-SGD and a new head, with the images that it sees.

    Parameters
    ----------
    task : Images
    body : nn.Module
        Not changed.
    recipe : Recipe
    device : torch.device
    mixed : bool
        Whether features are computed in bfloat16.
    checked : Checked
        Results of tests of ``body``.

    Attributes
    ----------
    model : Classifier
    mean, std : ndarray, shape (channels,)
        Scale of the images: ``(x - mean) / std``.
    data : dict
        Images, which are normalised as they are taken, and labels of "train" and "test".
    kept_of_one : int
        Bytes that a forward pass keeps of one image.
    adapted : bool
        Whether the body has low-rank adapters.
    body_version : int
        Number of times that the body may have changed.
    """

    def __init__(
        self,
        task: Images,
        body: nn.Module,
        recipe: Recipe,
        device: torch.device,
        *,
        mixed: bool,
        checked: Checked,
    ) -> None:
        self.device, self._mixed, self._recipe = device, mixed, recipe
        tried = trial.images(task, body)
        private = _prepared(body, recipe).to(device)
        # features are computed in evaluation mode, training uses training mode
        for training in (True, False) if recipe.trains_body else (False,):
            about = "passes", training, recipe.trains_body, self.about(tried)
            test = functools.partial(check_passes, private, tried.to(device), training=training)
            checked.once(body, about, test)
        # copies of some modules, such as torch.fx's, lack it
        private.features = features_of(body)  # type: ignore[assignment]
        memory.require(private, task.train.shape, len(task.train) + len(task.test), device)
        self.kept_of_one = memory.kept(private, task.train.shape)
        self.model = Classifier(private, len(task.train.classes)).to(device)
        self._frozen = not recipe.trains_body
        self._may = [p for p in self.model.parameters() if p.requires_grad]
        self.adapted = False
        self.body_version = 0
        self.mean, self.std = scale_of(body, task)
        self.data = {
            name: (
                Pictures(part.images, self.mean, self.std, device),
                torch.tensor(part.labels, device=device),
            )
            for name, part in (("train", task.train), ("test", task.test))
        }
        # features of parts of the data, for as long as the body is as it is
        self._known: dict[str, Tensor] = {}

    def about(self, tried: Tensor) -> Hashable:
        """What tests of the body on the images ``tried`` depend on, besides body and recipe."""
        return str(self.device), tried.numpy().tobytes()

    def autocast(self, safe: bool = True) -> AbstractContextManager[Any]:
        """Work in bfloat16 in mixed precision, where that is safe."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self._mixed and safe)

    def features(self, part: str) -> Tensor:
        """Return the features of a part, computed once while no step changes the body.

        Those of the body as it was given, and of one that never trains, are kept for other runs.
        """
        if part not in self._known:
            images = self.data[part][0]
            if self._frozen or not self.body_version:
                about, body = f"mixed={self._mixed}", self.model.body
                found = frozen.features(body, images, self._features, kept=self.kept_of_one, about=about)
            else:
                found = self._features(images)
            self._known[part] = found
        return self._known[part]

    def _features(self, images: Tensor | Pictures) -> Tensor:
        self.model.eval()

        def features(at_once: int) -> Tensor:
            with torch.no_grad(), self.autocast():
                return torch.cat([self.model.body(part).float() for part in images.split(at_once)])

        at_once = memory.for_features(self.kept_of_one, AT_ONCE, self.device)
        return memory.fitting(features, at_once, self.device)[0]

    def forget_features(self) -> None:
        """Invalidate cached features: the body is about to change."""
        self._known.clear()
        self.body_version += 1

    def train_only(self, subset: Subset, streams: Streams) -> None:
        """Set what trains; add the adapters where they are what trains."""
        if subset == "lora" and not self.adapted:
            seed = int(streams.key[0]) % 2**62
            self.model.body = subsets.adapt(self.model.body, self._recipe.rank, seed).to(self.device)
            self.adapted = True
        subsets.train_only(self.model, self.model.head, subset, self._may)

    @torch.no_grad()
    def initial_head(self, streams: Streams, multiplier: float) -> None:
        """Set the head that training starts from; ``multiplier`` is of the noise of prototypes."""
        weight, recipe = self.model.head.weight, self._recipe
        if recipe.head == "prototype":
            weight.copy_(self._prototypes(streams, multiplier))
        else:
            scale = recipe.head_scale / math.sqrt(weight.shape[1]) if recipe.head == "gaussian" else 0.0
            draws = torch.from_numpy(streams.draws(0, weight.numel()))
            weight.copy_((scale * draws).view_as(weight))

    def _prototypes(self, streams: Streams, multiplier: float) -> Tensor:
        """Sums of the unit features of each class, with noise, scaled to one norm."""
        units = nn.functional.normalize(self.features("train"))
        sums = torch.zeros_like(self.model.head.weight).index_add_(0, self.data["train"][1], units)
        noise = streams.noise(_PROTOTYPES, 0, sums.numel(), sums.dtype)
        return self._recipe.head_scale * nn.functional.normalize(sums + multiplier * noise.view_as(sums))


def _prepared(body: nn.Module, recipe: Recipe) -> nn.Module:
    """Return a copy of a body in the form that DP-SGD can train."""
    for name, value in body.state_dict().items():
        if value.is_floating_point() and value.dtype != torch.float32:
            raise ValueError(f"body must be in single precision, got {value.dtype} in {name!r}: call float()")
    copied = passes.copied(body)
    if not recipe.trains_body:
        copied.requires_grad_(False)
    return make_private(copied)
