"""Files that anybody may have made: where they lead."""

from __future__ import annotations

from pathlib import Path


def refuse_links(folder: Path) -> None:
    """Refuse a folder that holds symbolic links.

    Raises
    ------
    ValueError
    """
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise ValueError("it holds links to other places")


def check_hdf5(file: Path) -> None:
    """Refuse an HDF5 file, such as netCDF, that takes data from other files.

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

    with h5py.File(file, "r") as root:
        if root.visititems_links(leads_away):
            raise ValueError("it refers to other files")
