"""Read named arrays from ``.npz`` files of any origin, without unpickling and within memory."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from langevin.support import validate


class Damaged(Exception):
    """The file is not a readable file of plain arrays; the message says why."""


def read(
    path: Path, names: Iterable[str] | None = None, *, copies: int = 1, what: str = "file"
) -> dict[str, np.ndarray]:
    """Read arrays by name, all of them by default; missing ones are skipped.

    Parameters
    ----------
    path : Path
    names : iterable of str, optional
    copies : int
        How many times the arrays will be in memory.
    what : str
        How the message calls the file.

    Raises
    ------
    Damaged
        If the file is no archive of plain arrays, or is damaged; FileNotFoundError stays.
    MemoryError
        If the arrays do not fit into memory, before they are unpacked.
    """
    with _damage(), zipfile.ZipFile(path) as archive:
        found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        for member in archive.infolist():
            # refuses a member whose name differs from the one stored with its data
            archive.open(member).close()
    wanted = [name for name in (found if names is None else names) if name in found]
    unpacked = sum(found[name].file_size for name in wanted)
    validate.memory(float(copies * unpacked), f"{what} {path}", "take fewer or smaller arrays")
    with _damage(), np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in wanted}
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise Damaged("it holds something other than arrays")
    return arrays


@contextlib.contextmanager
def _damage() -> Iterator[None]:
    """Turn what libraries raise for damaged archives, almost anything, into `Damaged`."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        raise Damaged(f"{type(error).__name__}: {error}") from error


def names(path: Path) -> tuple[str, ...]:
    """Return the names of the arrays in a file; none if the file is not an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return ()
