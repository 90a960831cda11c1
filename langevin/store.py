"""Runs on disk: netCDF or Zarr by the suffix, atomic, without pickle; and unfinished runs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import xarray as xr

SUFFIXES = (".nc", ".zarr")
_FORMAT = 1


class StoreError(Exception):
    """A file that cannot be read or written; the message says which, why, and what to do."""


def check_target(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any work is done.

    Returns
    -------
    Path
        With a suffix of `SUFFIXES` and an existing, writable folder.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise StoreError(f"out must end in .nc (netCDF) or .zarr, got {str(path)!r}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}."):
            pass
    except OSError as error:
        raise StoreError(f"out must be writable, got {str(path)!r}: {error.strerror}") from None
    if target.suffix == ".nc" and target.is_dir():
        raise StoreError(f"out must be a file, but {str(path)!r} is a folder")
    return target


def save(run: xr.Dataset, path: str | Path) -> Path:
    """Write a run under a temporary name and rename it."""
    target = check_target(path)
    folder = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    temporary = folder / target.name
    try:
        if target.suffix == ".nc":
            compressed = {name: {"zlib": True, "complevel": 1} for name in run.data_vars}
            run.to_netcdf(temporary, engine="netcdf4", encoding=compressed)
            os.replace(temporary, target)
        else:
            run.to_zarr(temporary, mode="w", consolidated=False)
            if target.exists():
                os.replace(target, folder / "replaced")
            os.replace(temporary, target)
    except Exception as error:  # netCDF and Zarr raise errors of many kinds
        raise StoreError(f"{target} could not be written: {error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return target


def load(path: str | Path) -> xr.Dataset:
    """Read a run into memory."""
    import xarray as xr

    source = Path(path)
    if source.suffix not in SUFFIXES:
        raise StoreError(f"a run ends in .nc or .zarr, got {str(path)!r}")
    if not source.exists():
        raise StoreError(f"there is no run {str(path)!r}")
    how: dict[str, Any] = (
        {"engine": "netcdf4"} if source.suffix == ".nc" else {"engine": "zarr", "consolidated": False}
    )
    try:
        with xr.open_dataset(source, chunks=None, **how) as run:
            return run.load()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise StoreError(f"{source} is no readable run: {error}") from error


def save_checkpoint(path: Path, config: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write an unfinished run, atomically."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StoreError(f"checkpoint {path} could not be written: {error}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(file, allow_pickle=False, config=_encode({"format": _FORMAT, **config}), **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise StoreError(f"checkpoint {path} could not be written: {error}") from error
    finally:
        Path(temporary).unlink(missing_ok=True)


def load_checkpoint(
    path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None
) -> dict[str, np.ndarray]:
    """Read an unfinished run of exactly this configuration.

    Parameters
    ----------
    shapes : dict, optional
        Shape that each array must have, -1 where any length will do. By default all arrays are read, of any
        shape.

    Raises
    ------
    StoreError
        If the file is damaged, or belongs to another run; the message names what differs.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            stored = json.loads(file["config"].tobytes())
            for name, value in {"format": _FORMAT, **config}.items():
                if stored.get(name) != value:
                    raise StoreError(
                        f"checkpoint {path} belongs to another run: {name} is {stored.get(name)!r} there "
                        f"and {value!r} here; repeat the first command, or remove the file to start anew"
                    )
            names = shapes if shapes is not None else [name for name in file.files if name != "config"]
            arrays = {name: file[name] for name in names}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise StoreError(f"checkpoint {path} is damaged ({error}): remove it to start anew") from error
    for name, shape in (shapes or {}).items():
        actual = arrays[name].shape
        if len(actual) != len(shape) or any(w not in (-1, a) for a, w in zip(actual, shape, strict=True)):
            raise StoreError(
                f"checkpoint {path} is damaged ({name} has shape {actual}): remove it to start anew"
            )
    return arrays


def _encode(config: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(json.dumps(config).encode(), np.uint8)
