"""How a run ends early."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr


class Diverged(ArithmeticError):
    """A path diverged: it is no longer finite.

    Attributes
    ----------
    run : xarray.Dataset
        All that was computed; NaN from the divergence on.
    """

    def __init__(self, message: str, run: xr.Dataset) -> None:
        super().__init__(message)
        self.run = run


class Interrupted(KeyboardInterrupt):
    """A KeyboardInterrupt that arrived during a run.

    Attributes
    ----------
    run : xarray.Dataset
        All that was computed; NaN elsewhere.
    checkpoint : Path or None
        Where the run goes on from.
    """

    def __init__(self, message: str, run: xr.Dataset, checkpoint: Path | None) -> None:
        super().__init__(message)
        self.run = run
        self.checkpoint = checkpoint
