"""Batches and noise as functions of only a key, the stage and the step."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from langevin.support.rng import RNG, generator

_BATCH, _NOISE, _DRAWS = range(3)


class Streams:
    """Random draws of one fine-tuning, which do not depend on interruptions.

    What a step draws depends on the key, the number of its stage and its own number in it, through a
    counter-based generator (Philox 4x64-10): nothing is kept between steps, so nothing has to be saved. Two
    runs from one seed see the same batches and, where the same parameters train, the same noise.

    Pseudo-random numbers in floating point: sound for research, not hardened against an adversary who sees
    the last bits of the weights.

    Parameters
    ----------
    rng : int, Generator or None
        See SPEC 7; None: fresh entropy from the operating system.
    device : torch.device
        Where the noise is drawn. Its bits depend on the kind of device.
    """

    def __init__(self, rng: RNG, device: torch.device | str = "cpu") -> None:
        words = generator(rng, "dp-sgd").integers(0, 2**64, size=2, dtype=np.uint64)
        self.key: NDArray[np.uint64] = words
        self.device = torch.device(device)
        self._generator = torch.Generator(self.device) if self.device.type != "cpu" else None

    def _philox(self, purpose: int, stage: int, step: int) -> np.random.Generator:
        # the lowest word of the counter counts the draws
        counter = np.array([0, purpose, step, stage], np.uint64)
        return np.random.Generator(np.random.Philox(key=self.key, counter=counter))

    def batch(self, stage: int, step: int, samples: int, rate: float) -> NDArray[np.intp]:
        """Indices of a step's batch: each sample is drawn with probability ``rate``, independently."""
        if rate == 1.0:
            return np.arange(samples)
        return np.flatnonzero(self._philox(_BATCH, stage, step).random(samples) < rate)

    def noise(self, stage: int, step: int, size: int, dtype: torch.dtype) -> Tensor:
        """Standard normals of a step, shape (size,)."""
        random = self._philox(_NOISE, stage, step)
        if self._generator is None:
            kind = np.float64 if dtype == torch.float64 else np.float32
            return torch.from_numpy(random.standard_normal(size, dtype=kind))
        self._generator.manual_seed(int(random.integers(0, 2**63)))
        return torch.randn(size, generator=self._generator, device=self.device, dtype=dtype)

    def draws(self, place: int, size: int) -> NDArray[np.float64]:
        """Standard normals for other purposes, such as a head, numbered by ``place``; shape (size,)."""
        return self._philox(_DRAWS, 0, place).standard_normal(size)
