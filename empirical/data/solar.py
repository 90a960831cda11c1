"""ELPV, photographs of solar cells, from the package that publishes them."""

from __future__ import annotations

import csv
import functools
import importlib.util
from pathlib import Path
from typing import Literal

import numpy as np

from empirical.data.folders import read_image
from empirical.data.images import Images, Part
from empirical.data.shift import Pixels, Shift
from empirical.data.splits import or_default, stratified
from langevin.support import validate
from langevin.support.rng import RNG, generator

ELPV_TYPES = ("mono", "poly")
_PACKAGE = "elpv_dataset"
_REMEDY = "pip install --no-deps elpv-dataset==1.0.0.post1, or the extra 'elpv'"
_CLASSES = ("intact", "defective")
_SIDE = 300
# from this probability on, a cell counts as defective
_DEFECTIVE = 0.5


def elpv(
    size: int = 128,
    *,
    public: Literal["mono", "poly"] | None = None,
    test: float = 0.2,
    shift: Shift | None = None,
    rng: RNG = 0,
) -> Images:
    """Defects in electroluminescence photographs of solar cells (ELPV [1]_), grey, two classes.

    The images are licensed CC BY-NC-SA 4.0, for non-commercial use, and are read from the installed package;
    nothing of them is part of this toolkit.

    Parameters
    ----------
    size : int
        Height and width of the images to return, at most 300.
    public : {"mono", "poly"}, optional
        Type of cells, mono- or polycrystalline, whose images all become the public part; the private task is
        of the other type, a natural shift. By default both types are private, and nothing is public.
    test : float
        Share of the private images to hold out, of each class alike, in (0, 1).
    shift : Shift, optional
        Shift of the private images; none by default.
    rng : int, Generator or None
        Draws the split (SPEC 7).

    Returns
    -------
    Images
        The classes are "intact" and "defective", a probability of a defect above one half.

    Raises
    ------
    ImportError
        If the package is not installed.
    ValueError
        If its files are not as published.

    References
    ----------
    .. [1] Buerhop-Lutz et al., "A benchmark for visual identification of defective solar cells in
       electroluminescence imagery", EU PVSEC 2018.
    """
    if validate.integer("size", size, 1) > _SIDE:
        raise ValueError(f"size must be at most {_SIDE}, that of the photographs, got {size}")
    if not 0 < validate.number("test", test) < 1:
        raise ValueError(f"test must lie in (0, 1), got {test!r}")
    if public is not None:
        validate.choice("public", public, ELPV_TYPES)
    shift, rows = or_default("shift", shift, Shift), _table()
    validate.memory(4.0 * len(rows) * size**2, f"{len(rows)} images of elpv", "use a smaller size")
    images = _photographs(tuple(path for path, _, _ in rows), size)
    defective = np.array([probability > _DEFECTIVE for _, probability, _ in rows])
    known = np.array([kind == public for _, _, kind in rows])
    own = Part(images[~known], defective[~known].astype(int), _CLASSES)
    held_out, rest = stratified(own.labels, [round(test * len(own))], generator(rng, "elpv"))
    return Images(
        own.take(np.sort(rest)).shifted(shift),
        own.take(np.sort(held_out)).shifted(shift),
        Part(images[known], defective[known].astype(int), _CLASSES) if public else None,
        shift,
        "elpv",
    )


@functools.lru_cache(maxsize=1)
def _photographs(paths: tuple[Path, ...], size: int) -> Pixels:
    """Every image; kept, as seeds differ only in the split."""
    return np.stack([read_image(path, size, 1, _SIDE**2) for path in paths])


def _table() -> list[tuple[Path, float, str]]:
    """File, probability of a defect and type of each cell."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise ImportError(f"data='elpv' needs the package elpv-dataset, which is not installed: {_REMEDY}")
    path = Path(found.submodule_search_locations[0], "data", "labels.csv")
    try:
        with path.open(newline="", encoding="utf8") as text:
            rows = list(csv.reader(text, delimiter=" ", skipinitialspace=True))
        cells = [(path.parent / name, float(probability), kind) for name, probability, kind in rows]
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is not the published table ({error}): {_REMEDY} again") from None
    odd = [kind for _, _, kind in cells if kind not in ELPV_TYPES]
    if odd or not cells:
        raise ValueError(f"{str(path)!r} must tell mono from poly, got {odd[:1]}: {_REMEDY} again")
    return cells
