"""Saving a run where it was asked for, or elsewhere if that fails."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr


def save(run: xr.Dataset, out: Path) -> tuple[Path, str | None]:
    """Save a run; if that fails, save it in the folder for temporary files.

    Returns
    -------
    tuple of Path and (str or None)
        Where it is, and what failed.
    """
    from langevin.store import errors, files

    try:
        return files.save(run, out), None
    except errors.StoreError as error:
        rescue = Path(tempfile.mkdtemp(prefix="run-")) / out.name
        return files.save(run, rescue), f"{error}; the run is kept in {rescue}"
