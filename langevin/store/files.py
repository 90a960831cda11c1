"""Save and load runs (netCDF or Zarr by suffix, atomic, without pickle) and checkpoints."""

from __future__ import annotations

import hashlib
import json
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from langevin.store import atomic, untrusted
from langevin.support import validate

if TYPE_CHECKING:
    import xarray as xr
from langevin.store.errors import StoreError

SUFFIXES = (".nc", ".zarr")
# the attribute by which damage is found
_DIGEST = "digest"
# what follows the end of an HDF5 file, which libraries ignore, before the digest of its bytes
_SEAL = b"\nsha256 "
_CHANGED = "it is not what was written: restore it, or compute it again"


def check_target(path: str | Path) -> Path:
    """Refuse a target that cannot be written, before any work is done.

    Returns
    -------
    Path
        With a suffix of `SUFFIXES` and an existing, writable folder.
    """
    target = validate.path("out", path)
    if target.suffix not in SUFFIXES:
        raise StoreError(f"out must end in .nc (netCDF) or .zarr, got {str(path)!r}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # without a name, where the system can
        with tempfile.TemporaryFile(dir=target.parent):
            pass
    except OSError as error:
        raise StoreError(f"out must be writable, got {str(path)!r}: {error.strerror}") from None
    if target.suffix == ".nc" and target.is_dir():
        raise StoreError(f"out must be a file, but {str(path)!r} is a folder")
    return target


def save(run: xr.Dataset, path: str | Path) -> Path:
    """Write a run under a temporary name and rename it."""
    target = check_target(path)
    run = run.assign_attrs({_DIGEST: digest(run)})
    try:
        with atomic.replacing(target) as temporary:
            if target.suffix == ".nc":
                compressed = {name: {"zlib": True, "complevel": 1} for name in run.data_vars}
                run.to_netcdf(temporary, engine="netcdf4", encoding=compressed)
                with temporary.open("ab") as raw:
                    raw.write(_SEAL + _sha256(np.memmap(temporary, np.uint8, "r")))
            else:
                with warnings.catch_warnings():
                    # that the standard does not have it yet; readers without it read what they always did
                    warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
                    _with_texts(run, np.dtypes.StringDType()).to_zarr(temporary, mode="w", consolidated=True)
    except Exception as error:  # netCDF and Zarr raise errors of many kinds
        raise StoreError(f"{target} could not be written: {error}") from error
    return target


def _with_texts(run: xr.Dataset, kind: Any) -> xr.Dataset:
    """Return the run with text of one type: variable-length text for Zarr, as its standard requires."""
    texts = {name: v for name, v in run.variables.items() if v.dtype.kind in "UT"}
    # without the encoding of the file that it was read from
    return run.assign(
        {
            name: (v.dims, np.array(v.values.tolist(), kind).reshape(v.shape), v.attrs)
            for name, v in texts.items()
        }
    )


def digest(run: xr.Dataset) -> str:
    """Return a digest of a run's values and attributes, independent of the file format."""
    total = hashlib.sha256(_text(run.attrs))
    for name in sorted(map(str, run.variables)):
        variable = run.variables[name]
        total.update(f"{name} {variable.dims} {variable.shape} ".encode() + _text(variable.attrs))
        values = np.asarray(variable.values)
        if values.dtype.kind == "f":
            # files keep no sign of what is not a number
            values = np.where(np.isnan(values), values.dtype.type(np.nan), values)
        plain = values.dtype.kind in "fiub"
        total.update(np.ascontiguousarray(values).data if plain else _text(values.tolist()))
    return total.hexdigest()


def _sha256(content: np.ndarray) -> bytes:
    return hashlib.sha256(content.data).hexdigest().encode()


def _check_seal(file: Path) -> None:
    """Refuse a damaged file before HDF5 reads it, which may not return from a damaged heap."""
    content = np.memmap(file, np.uint8, "r")
    length = len(_SEAL) + 64
    seal = content[-length:].tobytes()
    # files of earlier versions have none
    if seal.startswith(_SEAL) and seal != _SEAL + _sha256(content[:-length]):
        raise ValueError(_CHANGED)


def _text(value: Any) -> bytes:
    def plain(x: Any) -> Any:
        return x.tolist() if isinstance(x, np.ndarray | np.generic) else str(x)

    return json.dumps(value, sort_keys=True, default=plain).encode()


def load(path: str | Path) -> xr.Dataset:
    """Read a run into memory without unpickling; refuse a run that differs from what was written.

    Raises
    ------
    StoreError
        If there is no such run, or it is damaged.
    MemoryError
        If it does not fit into memory, before it is read.
    """
    import xarray as xr

    source = validate.path("path", path)
    if source.suffix not in SUFFIXES:
        raise StoreError(f"a run ends in .nc or .zarr, got {str(path)!r}")
    if not source.exists():
        # a folder may have been about to be replaced
        atomic.clear(source)
    if not source.exists():
        raise StoreError(f"there is no run {str(path)!r}")
    how: dict[str, Any] = {"engine": "netcdf4"}
    if source.suffix == ".zarr":
        # the second version of Zarr knows codecs that unpickle
        how = {"engine": "zarr", "consolidated": False, "zarr_format": 3}
    try:
        if source.is_dir():
            untrusted.refuse_links(source)
        else:
            _check_seal(source)
            untrusted.check_hdf5(source)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # without indexes, which would be read at once, whatever their size
            with xr.open_dataset(source, chunks=None, create_default_indexes=False, **how) as run:
                validate.memory(2.0 * run.nbytes, f"run {source}", "read what you need of it with xarray")
                found = run.load()
        found = _with_texts(found, np.str_)
        found = found.assign_coords({name: found[name] for name in found.coords if name in found.dims})
        # runs of earlier versions have none
        if found.attrs.pop(_DIGEST, None) not in (None, digest(found)):
            raise ValueError(_CHANGED)
    except MemoryError:
        raise
    except Exception as error:  # netCDF and Zarr raise errors of many kinds
        raise StoreError(f"{source} is no readable run: {error}") from error
    return found
