"""Named arrays from ``.npz`` files of any origin: nothing is unpickled, nothing unpacks beyond memory."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from langevin import _validate

# bytes that may stand behind a member, of its sizes, if they were not known before
_DESCRIPTOR = 24


class Damaged(Exception):
    """No readable file of plain arrays; the message says why."""


def read(
    path: Path, names: Iterable[str] | None = None, *, copies: int = 1, what: str = "file"
) -> dict[str, np.ndarray]:
    """Read arrays by name, all of them by default; those that are not there are left out.

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
    try:
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            found = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            for member in archive.infolist():
                # which refuses a name that is not the one beside its data
                archive.open(member).close()
            if not _gapless(archive, raw):
                raise Damaged("its list of arrays leaves some out")
            wanted = [name for name in (found if names is None else names) if name in found]
            unpacked = sum(found[name].file_size for name in wanted)
            _validate.memory(float(copies * unpacked), f"{what} {path}", "take fewer or smaller arrays")
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: _plain(file[name], found[name].file_size) for name in wanted}
    except (FileNotFoundError, Damaged):
        raise
    except MemoryError as error:
        if "are free" in str(error):
            raise
        # an array that declares itself larger than its bytes
        raise Damaged(str(error)) from error
    except Exception as error:  # damaged archives raise almost anything
        raise Damaged(f"{type(error).__name__}: {error}") from error


def names(path: Path) -> tuple[str, ...]:
    """Names of the arrays in a file, whatever they are; none of a file that is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(name.removesuffix(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return ()


def _gapless(archive: zipfile.ZipFile, raw: BinaryIO) -> bool:
    """Whether the members that are listed are all there are, from the first one to the list."""
    members = sorted(archive.infolist(), key=lambda member: member.header_offset)
    ends = [0]
    for member in members:
        # the length of the second name and of what follows it, which the list may have otherwise
        raw.seek(member.header_offset + 26)
        rest = sum(struct.unpack("<HH", raw.read(4)))
        ends.append(member.header_offset + 30 + rest + member.compress_size)
    starts = [*(member.header_offset for member in members), archive.start_dir]
    return all(0 <= start - end <= _DESCRIPTOR for start, end in zip(starts, ends, strict=True))


def _plain(array: object, size: int) -> np.ndarray:
    if not isinstance(array, np.ndarray) or array.nbytes > size:
        raise Damaged("it holds something else than arrays")
    return array
