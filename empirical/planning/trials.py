"""Simulated runs, each made once: by what they are of, in memory and in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from empirical.planning.comparison import Outcomes
from empirical.planning.hedge import World
from empirical.planning.stand_in import Settings, Split, StandIn
from empirical.recipe import Head
from langevin.engine.record import versions
from langevin.sweeps.records import Records


@dataclass(frozen=True)
class _Job:
    """Some draws of some runs."""

    key: str
    about: dict[str, Any]


class Trials:
    """Runs of the worlds that a plan is made for, by head, split and draw.

    Parameters
    ----------
    worlds : sequence of World
        That agree in probing.
    hows : mapping of str to Settings
        By head.
    root : int
        Seed of the draws, which worlds, heads and splits have in common.
    kept : Records or None
        Where finished runs are found and kept.
    progress : callable or None
        Called with the number of runs done.
    """

    def __init__(
        self,
        worlds: Sequence[World],
        hows: Mapping[Head, Settings],
        root: int,
        kept: Records | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.worlds = [world.net for world in worlds]
        self.weights = np.array([world.weight for world in worlds])
        self.hows, self.root, self.progress = hows, root, progress
        self._kept = Records() if kept is None else kept
        self._names = [_digest(net) for net in self.worlds]
        self._versions = versions()
        self._known: dict[tuple[int, Head, Split], np.ndarray] = {}
        self.done = 0

    @property
    def steps(self) -> int:
        """Steps of a run, both phases together."""
        return next(iter(self.hows.values())).steps

    def run(self, head: Head, splits: Sequence[Split], draws: int) -> Outcomes:
        """Ends of the first draws, shape (splits, draws): weighted means over the worlds."""
        found = self.by_world(head, splits, draws)
        return Outcomes(*(np.tensordot(self.weights, values, 1) for values in found))

    def by_world(self, head: Head, splits: Sequence[Split], draws: int) -> Outcomes:
        """Ends of the first draws, shape (worlds, splits, draws)."""
        places = [[self._place(world, split) for split in splits] for world in range(len(self.worlds))]
        for world in range(len(self.worlds)):
            self._fill(
                world, head, [s for s, at in zip(splits, places[world], strict=True) if at == world], draws
            )
        ends = np.array(
            [
                [self._known[at, head, s][:, :draws] for at, s in zip(row, splits, strict=True)]
                for row in places
            ]
        )
        return Outcomes(ends[:, :, 0], ends[:, :, 1])

    def _place(self, world: int, split: Split) -> int:
        """The world whose runs these are: probing throughout is the same in all."""
        return 0 if split.lp_steps == self.steps else world

    def _fill(self, world: int, head: Head, splits: Sequence[Split], draws: int) -> None:
        """Make the runs that are missing."""
        lacking: dict[int, list[Split]] = {}
        for split in dict.fromkeys(splits):
            known = self._known.setdefault((world, head, split), np.empty((2, 0)))
            if known.shape[1] < draws:
                lacking.setdefault(known.shape[1], []).append(split)
        for first, group in lacking.items():
            ends = self._ends(world, head, group, range(first, draws))
            for place, split in enumerate(group):
                at = world, head, split
                self._known[at] = np.hstack([self._known[at], ends[:, place]])
            self.done += len(group) * (draws - first)
            if self.progress is not None:
                self.progress(self.done)

    def _ends(self, world: int, head: Head, splits: list[Split], draws: range) -> np.ndarray:
        """Accuracy and loss, shape (2, splits, draws): from the records, or run and recorded."""
        how, shape = self.hows[head], (2, len(splits), len(draws))
        about = [
            self._versions,
            self._names[world],
            self.root,
            astuple(how),
            splits,
            [draws.start, draws.stop],
        ]
        text = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:24]
        job = _Job(text, {"head": head, "splits": [list(split) for split in splits]})
        kept = self._kept.get(job)
        if kept is not None and len(kept) == np.prod(shape):
            return np.array([kept[str(i)] for i in range(len(kept))]).reshape(shape)
        found = np.array(self.worlds[world].run(how, splits, streams(self.root, draws)))
        self._kept.add(job, ({str(i): x for i, x in enumerate(found.ravel().tolist())}, ""))
        return found


def streams(root: int, draws: range) -> list[np.random.SeedSequence]:
    """Seeds of draws."""
    return [np.random.SeedSequence(root, spawn_key=(0, i)) for i in draws]


def _digest(world: StandIn) -> str:
    """Of everything that a world's runs depend on, besides seeds and settings."""
    found = hashlib.sha256()
    for name in ("X", "labels", "X_test", "labels_test", "W", "v"):
        value = getattr(world, name)
        found.update(f"{name} {None if value is None else value.shape}".encode())
        if value is not None:
            found.update(np.ascontiguousarray(value).tobytes())
    found.update(f"{world.classes} {world.activation} {world.device.partition(':')[0]}".encode())
    return found.hexdigest()
