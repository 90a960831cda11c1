"""Measures of features during a fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from torch import nn

from empirical.data.images import Images, normalised
from empirical.data.splits import stratified
from empirical.devices import memory
from empirical.features.collapse import neural_collapse
from empirical.features.measures import cosine_similarity, knn_accuracy, linear_cka
from empirical.networks import frozen
from empirical.networks.bodies import scale_of
from empirical.networks.embed import Features, embed
from langevin.support import validate
from langevin.support.rng import RNG, generator

# images at once, at most
_AT_ONCE = 1024


@dataclass(frozen=True)
class Measure:
    """Description of a measure of features.

    Attributes
    ----------
    meaning : str
        In a line.
    units : str
        "1" for shares, cosines and ratios.
    """

    meaning: str
    units: str = "1"


#: What `FeatureWatch` measures, in the order in which it returns them.
MEASURES = {
    "knn_accuracy": Measure(
        "share of test images classified correctly by their nearest training images in feature space"
    ),
    "cka": Measure("linear centred kernel alignment of test features with those at the start"),
    "cosine": Measure("mean cosine of a test image's features with those at the start"),
    "nc1": Measure("within-class over between-class variation, tr(S_W S_B^+) / C; 0: collapsed"),
    "nc2_norms": Measure("coefficient of variation of the norms of centred class means; 0: collapsed"),
    "nc2_angles": Measure("mean |cos + 1 / (C - 1)| of pairs of centred class means; 0: collapsed"),
    "nc3": Measure("squared distance of head and centred class means, both of norm 1; 0: collapsed"),
    "nc4": Measure("share of images whose nearest class mean is not the head's choice; 0: collapsed"),
}


class FeatureWatch:
    """Measures of a body's features on a fixed part of a private task, against those at the start.

    It reads private images without noise: for study, and never for release or for choosing anything in
    training.

    Parameters
    ----------
    task : Images
        Normalised as `finetune` does.
    body : nn.Module
        As it is before fine-tuning; not kept.
    train, test : int
        Number of images of each part, or all that there are, with the classes' shares of the whole.
    random : nn.Module, optional
        A body of the same architecture with fresh weights, for `baselines`.
    rng : int, Generator or None
        Draws the images (SPEC 7).

    Attributes
    ----------
    baselines : mapping of str to float
        Accuracies by neighbours of "pixels", of "random" if it was given, and at the start, "pretrained".

    Examples
    --------
    >>> from empirical import digits
    >>> body = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    >>> watch = FeatureWatch(digits(), body, train=100, test=50)
    >>> measures = watch(body)
    >>> list(measures) == list(MEASURES), round(measures["cka"], 6)
    (True, 1.0)
    """

    baselines: Mapping[str, float]

    def __init__(
        self,
        task: Images,
        body: nn.Module,
        *,
        train: int = 2000,
        test: int = 1000,
        random: nn.Module | None = None,
        rng: RNG = 0,
    ) -> None:
        streams = generator(rng, "watched images").spawn(2)
        parts, scale = [], scale_of(body, task)
        for part, name, count, stream in zip(
            (task.train, task.test), ("train", "test"), (train, test), streams, strict=True
        ):
            count = min(validate.integer(name, count, len(part.classes)), len(part))
            chosen = part.take(np.sort(stratified(part.labels, [count], stream)[0]))
            parts.append((torch.from_numpy(normalised(chosen.images, *scale)), chosen.labels))
        (self._train, self._train_labels), (self._test, self._test_labels) = parts
        self._kept = memory.kept(body, task.train.shape)
        self._start = self._features(body, self._test)
        accuracies = {"pixels": self._accuracy(*(images.flatten(1).numpy() for images, _ in parts))}
        if random is not None:
            accuracies["random"] = self._accuracy(
                *(self._features(random, x) for x in (self._train, self._test))
            )
        accuracies["pretrained"] = self._accuracy(self._features(body, self._train), self._start)
        self.baselines = MappingProxyType(accuracies)

    def _features(self, body: nn.Module, images: torch.Tensor, *, write: bool = True) -> Features:
        """Features of a body, those of a slow one from the cache; a trained one leaves none there."""

        def compute(some: torch.Tensor) -> torch.Tensor:
            at_once = memory.for_features(self._kept, _AT_ONCE, some.device)
            return torch.from_numpy(embed(body, some, batch=at_once))

        return frozen.features(
            body, images, compute, kept=self._kept, about="mixed=False", write=write
        ).numpy()

    def _accuracy(self, train: Features, test: Features) -> float:
        return knn_accuracy(train, self._train_labels, test, self._test_labels)

    def __call__(self, body: nn.Module, head: nn.Linear | None = None) -> dict[str, float]:
        """Return every measure in `MEASURES` of ``body`` and, for the last two, of ``head``."""
        train, test = (self._features(body, x, write=False) for x in (self._train, self._test))
        measures = {
            "knn_accuracy": self._accuracy(train, test),
            "cka": linear_cka(test, self._start),
            "cosine": cosine_similarity(test, self._start),
        }
        self._last = train, measures
        return self.again(head)

    def again(self, head: nn.Linear | None = None) -> dict[str, float]:
        """Return the measures of the last call's body, which is unchanged, with another head."""
        train, measures = self._last
        return measures | neural_collapse(train, self._train_labels, head)._asdict()
