"""Neighbouring data sets, and how far their drifts may differ."""

from __future__ import annotations

from typing import Literal

from langevin.model.schedule import Phase
from langevin.support import validate

Neighbours = Literal["add-remove", "replace"]
NEIGHBOURS = ("add-remove", "replace")


def sensitivity(phase: Phase, neighbours: Neighbours = "add-remove") -> float:
    """Largest distance between the drifts of two neighbouring data sets.

    ``C`` if neighbours differ by one sample more or less, ``2C`` if one sample is replaced; every form of
    clipping bounds a sample's part by ``C``.

    Raises
    ------
    ValueError
        Without clipping: the sensitivity is infinite, no noise gives privacy. Or with a sample rate below 1:
        the diffusion's guarantee understates the loss of the subsampled chain.
    """
    validate.choice("neighbours", neighbours, NEIGHBOURS)
    clip = require_clip(phase)
    if phase.sample_rate < 1:
        raise ValueError(
            f"sample_rate must be 1 for the privacy of the path, got {phase.sample_rate:g} in the phase "
            f"'{phase}': use bounds.epsilon, bounds.delta or bounds.calibrate with dt, by an accountant"
        )
    return clip if neighbours == "add-remove" else 2 * clip


def require_clip(phase: Phase) -> float:
    """Return ``C``; refuse a phase that does not clip."""
    if phase.clip is None:
        raise ValueError(
            f"clip must be positive for privacy, got None in the phase '{phase}': "
            "without clipping one sample can move the drift without limit"
        )
    return phase.clip
