"""The Zarr store of a sweep, written region by region by one process; a kill leaves it consistent.

Of a region the data are written first, then the status: what is marked finished is there. A chunk is replaced
by renaming a whole one, which zarr's local store does and a test asserts. Each chunk has a checksum.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from langevin.engine.record import versions
from langevin.store import atomic, locks, untrusted
from langevin.store.errors import StoreError
from langevin.store.files import check_target
from langevin.support import validate
from langevin.sweeps.grid import Grid, Layout

if TYPE_CHECKING:
    import xarray as xr
    import zarr

LEFT, FINISHED, FAILED = 0, 1, 2
# a chunk of a variable holds so many bytes of cells, or one cell
CHUNK_BYTES = 2**20
_FORMAT = 1
_STATUS = {
    "long_name": "state of the cell",
    "flag_values": [LEFT, FINISHED, FAILED],
    "flag_meanings": "left finished failed",
}

Place = tuple[int, ...]
# variables of a cell, and what went wrong
Outcome = tuple[dict[str, np.ndarray], str | None]


class SweepStore:
    """A sweep on disk, new or resumed; locked against other writers while it is open.

    Parameters
    ----------
    path : path
        Ends in ``.zarr``.
    grid : Grid
        If the store is there, it must be of this grid, or of one with fewer values: then it grows.

    Attributes
    ----------
    grid : Grid
        With values in the order of the store.
    status : ndarray of uint8
        Of each cell: `LEFT`, `FINISHED`, `FAILED`.

    Raises
    ------
    StoreError
        If the store is in use, of another sweep, damaged, or cannot be written.
    """

    def __init__(self, path: str | Path, grid: Grid) -> None:
        self.path = check_target(path)
        if self.path.suffix != ".zarr":
            raise StoreError(f"out must end in .zarr for a sweep, got {str(path)!r}")
        self._lock = _locked(self.path)
        try:
            atomic.clear(self.path)
            if self.path.exists():
                grid, self._chunk = matching(self.path, grid)
            else:
                self._chunk = _chunk(grid, grid.kind.layout(grid))
            self.grid, self.layout = grid, grid.kind.layout(grid)
            about = _json(grid.as_dict())
            if not self.path.exists():
                self._create(about)
            self._grow(about)
            self._consolidate()
            self.status = _status(self.path)
        except BaseException:
            self.close()
            raise

    # --- opening -----------------------------------------------------------------------------

    def _create(self, about: dict[str, Any]) -> None:
        import zarr

        try:
            with atomic.replacing(self.path) as new:
                group = zarr.create_group(new, attributes=self._attrs(about))
                for name in self._expected():
                    self._add(group, name)
        except OSError as error:
            raise self._unwritten(error) from error

    def _grow(self, about: dict[str, Any]) -> None:
        """Resize every array to the grid, or refuse arrays that do not belong to it.

        The attributes say first what the size is to be, so that a store that was left half-way is mended.
        """
        import zarr

        try:
            for left in self.path.glob("*/*.partial"):
                left.unlink(missing_ok=True)
            # what is consolidated may be older, after a kill
            group = zarr.open_group(self.path, mode="r+", use_consolidated=False)
            before: dict[str, Any] = group.attrs.asdict()
            attrs = self._attrs(about, before.get("versions"))
            if attrs != before:
                group.attrs.put(attrs)
            for name, (shape, chunks, dtype, dims, _, _) in self._expected().items():
                array = group[name]
                assert isinstance(array, zarr.Array)
                named = getattr(array.metadata, "dimension_names", None)
                same = (array.chunks, array.dtype, named) == (chunks, np.dtype(dtype), dims)
                if not same or any(a > s for a, s in zip(array.shape, shape, strict=True)):
                    raise _other(self.path, f"{name} is {array.dtype}{array.shape} over {named} there")
                if array.shape != shape:
                    array.resize(shape)
            for name, values in self._coordinates().items():
                zarr.open_array(self.path / name, mode="r+")[...] = values
        except OSError as error:
            raise self._unwritten(error) from error
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise _damaged(self.path, error) from error

    def _consolidate(self) -> None:
        """Note the metadata of all arrays in one file, from which readers open the store at once."""
        import zarr

        try:
            with warnings.catch_warnings():
                # that the standard does not have it yet; readers without it read what they always did
                warnings.filterwarnings("ignore", "Consolidated metadata", UserWarning)
                zarr.consolidate_metadata(self.path)
        except OSError as error:
            raise self._unwritten(error) from error

    def _attrs(self, about: dict[str, Any], known: list[dict[str, str]] | None = None) -> dict[str, Any]:
        """Attributes of the store; of versions, all that computed cells."""
        here = versions(*self.grid.kind.packages)
        found = known or []
        return {
            "title": f"sweep of {self.grid.kind.name} over {', '.join(self.grid.dims)}",
            "sweep": about,
            "chunk": list(self._chunk),
            "versions": found if here in found else [*found, here],
        }

    def _expected(self) -> dict[str, tuple[Any, ...]]:
        """Of every array: shape, chunks, dtype, dimensions, fill value, attributes."""
        dims, shape, chunk = self.grid.dims, self.grid.shape, self._chunk
        arrays: dict[str, tuple[Any, ...]] = {
            name: (shape + v.shape, chunk + v.shape, "float64", dims + v.dims, np.nan, v.attrs)
            for name, v in self.layout.variables.items()
        }
        arrays["status"] = (shape, chunk, "uint8", dims, LEFT, _STATUS)
        arrays["error"] = (
            shape,
            chunk,
            np.dtypes.StringDType(),
            dims,
            "",
            {"long_name": "why the cell failed"},
        )
        for dim, name in zip(dims, self.grid.sweep, strict=True):
            values = self.grid.labels(name)
            kind = np.dtypes.StringDType() if values.dtype == object else values.dtype
            fill: Any = "" if values.dtype == object else values.dtype.type(0)
            arrays[dim] = (values.shape, (2**16,), kind, (dim,), fill, {})
        for name, (within, values, attrs) in self.layout.coords.items():
            chunks = tuple(
                2**16 if dim in dims else size for dim, size in zip(within, values.shape, strict=True)
            )
            arrays[name] = (values.shape, chunks, values.dtype, within, values.dtype.type(0), attrs)
        return arrays

    def _coordinates(self) -> dict[str, np.ndarray]:
        swept = {
            dim: self.grid.labels(name) for dim, name in zip(self.grid.dims, self.grid.sweep, strict=True)
        }
        return swept | {name: values for name, (_, values, _) in self.layout.coords.items()}

    def _add(self, group: zarr.Group, name: str) -> None:
        from zarr.codecs import Crc32cCodec, ZstdCodec

        shape, chunks, dtype, dims, fill, attrs = self._expected()[name]
        group.create_array(
            name,
            shape=shape,
            chunks=chunks,
            dtype=dtype,
            dimension_names=dims,
            fill_value=fill,
            attributes=attrs,
            compressors=[ZstdCodec(), Crc32cCodec()],
            # all chunks of an array in one folder
            chunk_key_encoding={"name": "default", "separator": "."},
        )

    # --- writing -----------------------------------------------------------------------------

    def left(self) -> np.ndarray:
        """Flat indices of the cells to compute, chunk after chunk; those that failed are tried again."""
        todo = np.argwhere(self.status != FINISHED)
        order = np.lexsort((todo // self._chunk).T[::-1])
        return np.asarray(np.ravel_multi_index(tuple(todo[order].T), self.grid.shape))

    def write(self, outcomes: Mapping[Place, Outcome]) -> None:
        """Record cells: first the data of a chunk, then their status."""
        import xarray as xr

        by_chunk: dict[Place, list[Place]] = defaultdict(list)
        for place in outcomes:
            by_chunk[tuple(i // c for i, c in zip(place, self._chunk, strict=True))].append(place)
        dims = self.grid.dims
        for number, places in by_chunk.items():
            edges = zip(number, self._chunk, self.grid.shape, strict=True)
            region = {d: slice(i * c, min((i + 1) * c, n)) for d, (i, c, n) in zip(dims, edges, strict=True)}
            corner = [s.start for s in region.values()]
            within = [tuple(i - first for i, first in zip(place, corner, strict=True)) for place in places]
            try:
                with xr.open_zarr(self.path, chunks=None, consolidated=False) as whole:
                    chunk = whole.isel(region)[[*self.layout.variables, "error", "status"]].load()
                chunk = chunk.drop_vars(chunk.coords).copy(deep=True)
                for place, inside in zip(places, within, strict=True):
                    values, error = outcomes[place]
                    for name, value in values.items():
                        chunk[name].values[inside] = value
                    chunk["error"].values[inside] = error or ""
                    chunk["status"].values[inside] = FAILED if error else FINISHED
                self._write(chunk[[*self.layout.variables, "error"]], region)
                self._write(chunk[["status"]], region)
            except OSError as error:
                raise self._unwritten(error) from error
            except ValueError as error:
                raise StoreError(f"out {str(self.path)!r} is damaged in {region} ({error})") from error
            for place in places:
                self.status[place] = FAILED if outcomes[place][1] else FINISHED

    def _write(self, part: xr.Dataset, region: dict[str, slice]) -> None:
        inner = {str(dim): slice(None) for dim in part.dims if dim not in region}
        part.to_zarr(self.path, region=region | inner, consolidated=False)

    def _unwritten(self, error: OSError) -> StoreError:
        return StoreError(
            f"out {str(self.path)!r} could not be written: {error.strerror or error}; "
            "what is finished is kept, repeat the command to go on"
        )

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()


def matching(path: Path, grid: Grid) -> tuple[Grid, Place]:
    """The grid in the order of the store, and the store's chunks.

    Raises
    ------
    StoreError
        If it is the store of another sweep, or none.
    """
    about = _json(grid.as_dict())
    try:
        untrusted.refuse_links(path)
        attrs = json.loads((path / "zarr.json").read_text())["attributes"]
        stored, chunk = attrs["sweep"], tuple(attrs["chunk"])
        pairs = [(name, stored[name], about[name]) for name in ("format", "kind")]
        axes, files = dict(stored["sweep"]), dict(stored["files"])
        tables = {table: dict(stored[table]) for table in ("fixed", "record")}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(
            f"out must be a sweep or not be there, but {str(path)!r} is none: take another ({error!r})"
        ) from None
    _require_equal(path, pairs)
    try:
        grid = grid.extended(axes)
    except ValueError as error:
        raise _other(path, str(error)) from None
    for table, there in tables.items():
        here = about[table]
        _require_equal(
            path, [(f"{table}.{n}", there.get(n), here.get(n)) for n in dict.fromkeys([*there, *here])]
        )
    _require_equal(path, [(f"the file {name!r}", files[name], about["files"].get(name)) for name in files])
    return grid, chunk


def _require_equal(path: Path, pairs: list[tuple[str, Any, Any]]) -> None:
    for name, there, here in pairs:
        if there != here:
            raise _other(path, f"{name} is {there!r} there and {here!r} here")


def _other(path: Path, difference: str) -> StoreError:
    return StoreError(f"out {str(path)!r} belongs to another sweep: {difference}; take another out")


def _damaged(path: Path, error: Exception) -> StoreError:
    return StoreError(f"out {str(path)!r} is damaged ({error}): take another, or remove it to start again")


def _json(about: dict[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({"format": _FORMAT, **about}))


def _chunk(grid: Grid, layout: Layout) -> Place:
    """Return the cells of a chunk: as many as fit, along the last dimensions first."""
    room = max(1, CHUNK_BYTES // max(variable.nbytes for variable in layout.variables.values()))
    sizes = []
    for size in reversed(grid.shape):
        sizes.append(min(size, room))
        room = max(1, room // sizes[-1])
    return tuple(reversed(sizes))


def _locked(path: Path) -> TextIO:
    """Lock a file next to the store."""
    beside = path.with_name(f".{path.name}.lock")
    try:
        file = beside.open("a")
        if locks.lock(file):
            return file
        file.close()
    except OSError as error:
        raise StoreError(f"out must be writable, got {str(path)!r}: {error.strerror}") from None
    raise StoreError(f"out {str(path)!r} is in use by another sweep: wait for it, or take another out")


def unfinished(path: str | Path, grid: Grid) -> int:
    """Return the unfinished cells of a grid, without changing the store.

    Raises
    ------
    StoreError
        As `SweepStore`, except for what only a writer can find.
    """
    if not Path(path).exists():
        return grid.cells
    matched, _ = matching(Path(path), grid)
    return matched.cells - int((_status(Path(path)) == FINISHED).sum())


def _status(path: Path) -> np.ndarray:
    import zarr

    try:
        array = zarr.open_array(path / "status", mode="r", zarr_format=3)
        validate.memory(2.0 * array.nbytes, f"status of {path}", "take fewer cells")
        return np.asarray(array[...])
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(path, error) from error


def cells_bytes(cells: int, layout: Layout) -> int:
    """Bytes of so many cells on disk, before compression."""
    return cells * (layout.cell_bytes + 1)


def require_room(path: Path, cells: int, layout: Layout) -> None:
    """Refuse a grid that exceeds the free disk space, before anything is computed."""
    # folders that are not there yet are made on the same disk
    there = next(folder for folder in path.absolute().parents if folder.exists())
    needed, free = cells_bytes(cells, layout), shutil.disk_usage(there).free
    if needed > free:
        raise StoreError(
            f"out {str(path)!r} needs {needed / 2**30:.3g} GiB for {cells} cells before compression, "
            f"{free / 2**30:.3g} GiB are free: record less of each cell, or take another disk"
        )
