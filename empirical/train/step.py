"""One step of DP-SGD: clipped sums of gradients, the release of their noisy total, the update of weights."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from empirical.devices import memory
from empirical.devices.parallel import Group
from empirical.privacy.history import History
from empirical.recipe import Recipe
from empirical.train.gradients.engine import Ghost, PerSample
from empirical.train.gradients.plain import Loop, Plain, factors
from empirical.train.network import Network
from empirical.train.stage import Active
from empirical.train.streams import Streams

# significant bits of a batch's size on a GPU
_BITS = 5


class Release(NamedTuple):
    """What a step computes of its batch; only ``sums`` is differentially private.

    Attributes
    ----------
    sums : list of Tensor
        The clipped, noisy sum of gradients, by parameters.
    batch : int
        Samples drawn.
    clipped, norms, lost : Tensor
        Number of gradients above the clip, the sum of their norms, and how many were not finite.
    signal_to_noise : Tensor or float
        Norm of the clipped sum over the expected norm of its noise.
    """

    sums: list[Tensor]
    batch: int
    clipped: Tensor
    norms: Tensor
    lost: Tensor
    signal_to_noise: Tensor | float


class Stepper:
    """Makes steps: all that training learns of private data goes through `release`.

    Parameters
    ----------
    network : Network
    recipe : Recipe
    history : History
        Noise multiplier and sample rate of each stage, by its name.
    streams : Streams
    group : Group
    """

    def __init__(
        self, network: Network, recipe: Recipe, history: History, streams: Streams, group: Group
    ) -> None:
        self._network, self._recipe, self._history = network, recipe, history
        self._streams, self._group = streams, group

    def release(self, active: Active, number: int) -> Release:
        """Draw the batch of step ``number``, sum its clipped gradients, and add noise."""
        place, stage, first = active.slot
        mechanism = self._history[stage.name]
        chosen = self._streams.batch(place, number - first, len(active.labels), mechanism.sample_rate)
        mine = torch.from_numpy(chosen[self._group.rank :: self._group.size]).to(self._network.device)
        sums, counts = self.sums(active, mine)
        flat = torch.cat([*(s.reshape(-1) for s in sums), counts])
        self._group.add(flat)
        total, (clipped, norms, lost) = flat[:-3], flat[-3:]
        spread = (mechanism.noise_multiplier or 0.0) * (self._recipe.clip or 0.0)
        ratio = math.inf
        if spread:
            ratio = total.norm() / (spread * math.sqrt(active.entries))
            noise = spread * self._streams.noise(place, number - first, len(total), total.dtype)
            total = total + _masked(noise, active)
        shapes = [p.shape for p in active.gradients.params]
        parts = total.split([shape.numel() for shape in shapes])
        noisy = [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return Release(noisy, len(chosen), clipped, norms, lost, ratio)

    def update(self, active: Active, number: int, sums: list[Tensor]) -> None:
        """Descend along the released sums over the expected batch."""
        for p, sum_ in zip(active.gradients.params, sums, strict=True):
            p.grad = sum_ / self._recipe.batch
        _, stage, first = active.slot
        active.optimizer.param_groups[0]["lr"] = stage.rate(number - first)
        active.optimizer.step()
        active.optimizer.zero_grad()

    def sums(self, active: Active, batch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return sums of the batch's clipped gradients, and counts as in `_summed`, in chunks that fit."""
        at_once = max(1, min(active.chunk, len(batch)))
        found, fits = memory.fitting(
            lambda size: self._summed(active, batch, size), at_once, self._network.device, active.renew
        )
        if fits < at_once:
            active.chunk = fits
        return found

    def _summed(self, active: Active, batch: Tensor, at_once: int) -> tuple[list[Tensor], Tensor]:
        """Return sums, the count of clipped gradients, the sum of norms, and the count of infinite ones."""
        recipe = self._recipe
        sums: list[Tensor] = []
        clipped = norms = lost = torch.zeros((), device=self._network.device)
        # an empty batch has no part
        for part in batch.split(at_once) if len(batch) else ():
            with _exact_convolutions(self._network.device, isinstance(active.gradients, Ghost)):
                found, kept = self._norms(active, part)
                if not kept:
                    lost = lost + len(part)
                    continue
                weights = None
                if recipe.clip is not None:
                    assert found is not None
                    weights = factors(found, recipe.clip, recipe.clipping, recipe.stabiliser)
                    weights[kept:] = 0
                    clipped = clipped + (found[:kept] > recipe.clip).sum()
                    norms = norms + found[:kept].sum()
                    lost = lost + len(part) - kept
                # a rounded sum may change by more than the clip for one sample
                more = active.gradients.total(weights)
            sums = more if not sums else [a + b for a, b in zip(sums, more, strict=True)]
        zeros = [torch.zeros_like(p) for p in active.gradients.params]
        return sums or zeros, torch.stack([clipped, norms, lost])

    def _norms(self, active: Active, part: Tensor) -> tuple[Tensor | None, int]:
        """Norms of a part's gradients, and the number of samples: those whose gradients are finite.

        A sample whose gradient is not finite would leave a sum that is not finite, however it is clipped.
        Norms behind that number are of samples that fill the part up, and must get the factor 0.
        """
        gradients = active.gradients
        filled = part if self._recipe.clip is None else _filled(part)
        # where norms and sum come from the same numbers, those may be rounded
        safe = isinstance(gradients, PerSample | Loop | Plain)
        with self._network.autocast(safe):
            found = gradients.norms(active.data[filled], active.labels[filled])
            if self._recipe.clip is None or found is None or bool((finite := found.isfinite()).all()):
                return found, len(part)
            gradients.total(torch.zeros_like(found))
            kept = part[finite[: len(part)]]
            if not len(kept):
                return found, 0
            return gradients.norms(active.data[kept], active.labels[kept]), len(kept)


def _filled(part: Tensor) -> Tensor:
    """Repeat the last of a part's samples, on a GPU, up to one of few sizes.

    cuDNN plans each convolution again for each new size of a batch, and those of Poisson batches rarely
    repeat.
    """
    if not part.is_cuda:
        return part
    return torch.cat([part, part[-1:].expand(_round_size(len(part)) - len(part))])


def _round_size(size: int) -> int:
    """The next of 16 sizes between two powers of two.

    Examples
    --------
    >>> [_round_size(size) for size in (1, 31, 290, 1000, 1025)]
    [1, 31, 304, 1024, 1088]
    """
    grain = 1 << max(0, size.bit_length() - _BITS)
    return -(-size // grain) * grain


def _masked(noise: Tensor, active: Active) -> Tensor:
    """Noise on the entries that train alone."""
    if not active.masks:
        return noise
    params = active.gradients.params
    return noise * torch.cat([active.masks.get(p, torch.ones_like(p)).reshape(-1) for p in params])


def _exact_convolutions(device: torch.device, needed: bool) -> AbstractContextManager[Any]:
    """Convolutions in full single precision, so that two passes agree."""
    if not needed or device.type != "cuda":
        return nullcontext()
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
