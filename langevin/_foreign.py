"""Files that anybody may have made: what they unpack to, and where they lead."""

from __future__ import annotations

import contextlib
import mmap
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

try:
    import resource
except ImportError:  # no limits on this system
    resource = None

# address space of threads and caches that a library starts as it reads
_LIBRARIES = 2**30
# the limit is the process's: two threads must not restore each other's
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def bounded(needed: float = 0.0) -> Iterator[None]:
    """Let no file unpack to more than was foreseen, or to half of the memory that is free.

    A chunk says how large it will be, and need not: what decompresses it believes the bytes. On systems
    without limits of a process this does nothing.

    Parameters
    ----------
    needed : float
        Bytes that were foreseen.

    Raises
    ------
    ValueError
        Or what the library that reads makes of it.
    """
    if resource is None:
        yield
        return
    import psutil

    with _ONE_AT_A_TIME:
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        room = max(needed, psutil.virtual_memory().available / 2) + _LIBRARIES
        most = int(psutil.Process().memory_info().vms + room)
        limits = [most, *(limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY)]
        try:
            resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
            yield
        except MemoryError:
            raise ValueError("it unpacks to more than it declares") from None
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def refuse_links(folder: Path) -> None:
    """Refuse a folder that holds symbolic links.

    Raises
    ------
    ValueError
    """
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise ValueError("it holds links to other places")


def check_hdf5(file: Path) -> None:
    """Refuse an HDF5 file, as netCDF is, that takes data from other files or on which the library hangs.

    Raises
    ------
    ValueError
    OSError
        If the file is damaged.
    """
    import h5py

    if not h5py.is_hdf5(file):  # netCDF of the classic formats
        return

    def leads_away(name: str, link: h5py.HardLink | h5py.SoftLink | h5py.ExternalLink) -> bool | None:
        if not isinstance(link, h5py.HardLink):
            return True
        found = root[name]
        return (isinstance(found, h5py.Dataset) and bool(found.external or found.is_virtual)) or None

    with file.open("rb") as raw, mmap.mmap(raw.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if _broken(data):
            raise ValueError("it is damaged in a heap")
    with h5py.File(file, "r") as root:
        if root.visititems_links(leads_away):
            raise ValueError("it refers to other files")


def _broken(data: mmap.mmap) -> bool:
    """Whether objects of a global heap of an HDF5 file do not follow each other to its end.

    The library adds up their lengths without a look, and never arrives if one is 0, or wraps.
    """
    heap = -1
    while (heap := data.find(b"GCOL\x01\0\0\0", heap + 1)) >= 0:
        (length,) = struct.unpack("<Q", data[heap + 8 : heap + 16].ljust(8, b"\0"))
        at, end = heap + 16, heap + length
        if end > len(data):
            return True
        while at + 16 <= end:
            number, size = struct.unpack_from("<H6xQ", data, at)
            # free space counts its own head
            step = size if number == 0 else 16 + -(-size // 8) * 8
            if not 0 < step <= end - at:
                return True
            at += step
    return False
