"""Features of bodies that do not train, kept in the user's cache folder."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from langevin.store import atomic, cache, npz

if TYPE_CHECKING:
    from empirical.networks.pictures import Pictures

    Images = Tensor | Pictures

_FORMAT = 1
# images whose digests are made at once
_BLOCK = 4096
# bytes that the forward passes go through from which on results are kept: some seconds on a processor
_WORTH = 2**32
# relative difference that another machine's rounding explains
_ROUNDING = 1e-3


def features(
    body: nn.Module,
    images: Images,
    compute: Callable[[Any], Tensor],
    *,
    kept: int,
    about: str = "",
    write: bool = True,
) -> Tensor:
    """Features of images, of which those that were computed before come from the cache.

    An entry of the cache is a file for a body: its name is a digest of the weights, the layers and the shape
    of an image, and it holds the features of images by the digests of these. So it serves every split of a
    data set. A damaged entry is computed again, and so is one whose features are not the body's. Work of less
    than some seconds is not kept.

    Parameters
    ----------
    body : nn.Module
    images : Tensor or Pictures, shape (n, channels, height, width)
        As the body sees them.
    compute : callable
        From images, of either kind, to their features, of ``body`` in evaluation mode.
    kept : int
        Bytes that a forward pass goes through for one image, see `empirical.devices.memory.kept`.
    about : str
        What else the numbers depend on, such as the precision.
    write : bool
        Whether what was computed is added to the cache.

    Returns
    -------
    Tensor, shape (n, features)
        On the device of ``images``.

    Notes
    -----
    Features that were computed with other images may differ in their last bits.

    Features of private images are as private as the images: the folder is readable for its owner alone.
    """
    folder = cache.folder()
    if folder is None or not len(images) or len(images) * kept < _WORTH:
        return compute(images)
    path = folder / "features" / f"{_key(body, images, about)}.npz"
    names, probe = _names(images), _probe(images, compute)
    entry = _usable(path, probe)
    place = {name: i for i, name in enumerate(entry.names.tolist())}
    new = [i for i, name in enumerate(names) if name not in place]
    if new:
        some = images if len(new) == len(images) else images[torch.tensor(new, device=images.device)]
        found = compute(some).float().cpu().numpy()
        place |= {names[i]: len(entry.names) + j for j, i in enumerate(new)}
        rows = np.concatenate([entry.rows, found]) if len(entry.rows) else found
        entry = _Entry(np.concatenate([entry.names, np.array([names[i] for i in new])]), rows)
        if write:
            _write(path, entry, probe)
    return torch.from_numpy(entry.rows[[place[name] for name in names]]).to(images.device)


class _Entry(NamedTuple):
    """Digests of images, shape (n,), and their features, shape (n, p)."""

    names: NDArray[np.bytes_]
    rows: NDArray[np.float32]

    def digest(self, probe: NDArray[np.float32]) -> NDArray[np.uint8]:
        total = hashlib.sha256()
        for array in (self.names, self.rows, probe):
            total.update(np.ascontiguousarray(array).data)
        return np.frombuffer(total.digest(), np.uint8)


_NONE = _Entry(np.zeros(0, "S32"), np.zeros((0, 0), np.float32))


def _key(body: nn.Module, images: Images, about: str) -> str:
    """Digest of everything that features depend on apart from the image."""
    where = images.device.type, torch.get_num_threads(), torch.__version__
    total = hashlib.sha256(repr((_FORMAT, tuple(images.shape[1:]), about, where, body)).encode())
    for name, value in body.state_dict().items():
        total.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        total.update(value.detach().cpu().contiguous().numpy().data)
    return total.hexdigest()[:32]


def _names(images: Images) -> list[bytes]:
    """Digest of each image."""
    blocks = (np.ascontiguousarray(block.cpu().numpy()) for block in images.split(_BLOCK))
    return [hashlib.blake2b(row.data, digest_size=16).hexdigest().encode() for rows in blocks for row in rows]


def _probe(images: Images, compute: Callable[[Any], Tensor]) -> NDArray[np.float32]:
    """Features of a fixed image, which reveal an entry of another network."""
    shape = images.shape[1:]
    image = torch.sin(1 + torch.arange(shape.numel(), dtype=torch.float32)).view(1, *shape)
    return compute(image.to(images.device)).float().cpu().numpy()


def _usable(path: Path, probe: NDArray[np.float32]) -> _Entry:
    """The entry of a body; an empty one where there is none, or none that can be used."""
    try:
        about = path.stat()
    except OSError:
        return _NONE
    try:
        entry, stored = _read(path, about.st_mtime_ns, about.st_size)
    except (OSError, KeyError, TypeError, ValueError, npz.Damaged):
        warnings.warn(f"features in {str(path)!r} are damaged: computing them again", stacklevel=4)
        return _NONE
    same = stored.shape == probe.shape and np.allclose(
        stored, probe, rtol=_ROUNDING, atol=_ROUNDING * float(abs(probe).max())
    )
    return entry if same else _NONE


@functools.lru_cache(maxsize=1)
def _read(path: Path, modified: int, size: int) -> tuple[_Entry, NDArray[np.float32]]:
    """A file's entry and its features of the fixed image; kept, as runs of a grid read the same."""
    found = npz.read(path)
    entry, stored = _Entry(found["names"], found["rows"]), found["probe"]
    if not (entry.digest(stored) == found["digest"]).all():
        raise ValueError("another digest")
    return entry, stored


def _write(path: Path, entry: _Entry, probe: NDArray[np.float32]) -> None:
    arrays = {"names": entry.names, "rows": entry.rows, "probe": probe, "digest": entry.digest(probe)}
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with atomic.replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
    except OSError as error:
        # a cache that cannot be written is no reason to fail
        warnings.warn(
            f"features are not kept, as {str(path.parent)!r} cannot be written "
            f"({error.strerror or error}): name a folder that can be in XDG_CACHE_HOME",
            stacklevel=4,
        )
