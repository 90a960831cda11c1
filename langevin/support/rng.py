"""Random generators: one stream for each purpose, so that equal seeds do not make equal numbers."""

from __future__ import annotations

import operator
import zlib

import numpy as np

RNG = int | np.random.Generator | np.random.SeedSequence | np.random.BitGenerator | None


def generator(rng: RNG, purpose: str) -> np.random.Generator:
    """Return ``rng`` if it is a Generator; otherwise one seeded by it and by ``purpose`` (SPEC 7).

    Raises
    ------
    ValueError
        If ``rng`` is no seed and no generator.
    """
    if isinstance(rng, np.random.Generator | np.random.SeedSequence | np.random.BitGenerator):
        return np.random.default_rng(rng)
    try:
        seed = None if rng is None else operator.index(rng)
        sequence = np.random.SeedSequence(seed, spawn_key=(zlib.crc32(purpose.encode()),))
    except (TypeError, ValueError):
        raise ValueError(
            f"rng must be a seed, a whole number from 0, or a numpy Generator; got {rng!r}"
        ) from None
    return np.random.default_rng(sequence)
