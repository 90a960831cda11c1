"""What the adaptive solver did, as attributes of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

# steps per phase, at least
FEWEST_STEPS = 50


@dataclass
class Report:
    """Report of the methods and events of a run.

    Attributes
    ----------
    error : float
        Estimated error of the weights, over their norm: while the drift is smooth, the tolerances that each
        step has kept, summed; after that, the largest distance to a second solution with twice the step.
    loss_error : float
        Largest difference between the losses of these two solutions.
    crossings, slides : int
        Hyperplanes that neurons have crossed, and those along which they have begun to slide, while this was
        followed event by event.
    shared : bool
        Whether several neurons were on hyperplanes of one clipped sample, where Filippov's definition leaves
        a choice.
    origins : int
        Number of times that a neuron passed through the origin, where all hyperplanes meet.
    methods : list of str
    """

    error: float = 0.0
    loss_error: float = 0.0
    crossings: int = 0
    slides: int = 0
    shared: bool = False
    origins: int = 0
    methods: list[str] | None = None

    def used(self, method: str) -> None:
        """Note a method."""
        self.methods = [*dict.fromkeys([*(self.methods or []), method])]

    def attributes(self) -> dict[str, Any]:
        """Return the report as attributes of a run."""
        return {
            "method": ", ".join(self.methods or []),
            "estimated_error": float(self.error),
            "estimated_loss_error": self.loss_error,
            "crossings": self.crossings,
            "slides": self.slides,
            "shared_slides": int(self.shared),
            "origin_passes": self.origins,
        }
