"""The committed grids of fine-tunings in docs/study, in one table."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from figures.output import ROOT

if TYPE_CHECKING:
    import xarray as xr

    from empirical.studies.tables import Table

FOLDER = "docs/study"
REFERENCE = "fft"
# titles of studies, where the file's name does not say it all
_TITLES = {
    "digits-rotated": "digits, rotated 20°",
    "digits-turned": "digits, rotated 40°",
    "glyphs-rotated": "glyphs, rotated 30°",
    "lite0": "Fashion-MNIST, 6,000 images",
    "lite0-60k": "Fashion-MNIST, 60,000 images",
    "elpv": "ELPV, 2,099 images",
    "elpv-shift": "ELPV, mono to poly",
}
_DEVICES = {"cpu": "a processor", "cuda": "a GPU"}


def paths(names: Iterable[str]) -> list[str]:
    """Return the files of studies, relative to the project's folder."""
    return [f"{FOLDER}/{name}.nc" for name in names]


def title(name: object) -> str:
    """Return the title of a study in figures.

    Examples
    --------
    >>> title("digits-turned"), title("digits-dimmed"), title("wine")
    ('digits, rotated 40°', 'digits, dimmed', 'wine')
    """
    return _TITLES.get(str(name), str(name).replace("-", ", "))


def collect(names: Iterable[str]) -> xr.Dataset:
    """Mean and standard error of each study's test accuracy, by arm and budget; NaN if missing.

    Parameters
    ----------
    names : iterable of str
        Files in docs/study without their suffix, each from `empirical.run_grid`.

    Returns
    -------
    xarray.Dataset
        Over ``study``, ``arm`` and ``epsilon``: ``mean``, ``standard_error``, ``seeds``, and ``differs``,
        whether the mean differs from that of full fine-tuning by `empirical.paired`. Coordinates of
        ``study``: ``data`` and ``body`` as text, and the ``device``.
    """
    import xarray as xr

    from empirical.studies.tables import paired, summary
    from langevin.store import files

    parts = []
    for name in names:
        run = files.load(ROOT / FOLDER / f"{name}.nc")
        setting = json.loads(run.attrs["setting"])
        found = summary(run).drop_vars(("method", "share")).rename(count="seeds")
        found["differs"] = paired(run, REFERENCE).significant.astype(float)
        device = str(setting["device"]).partition(":")[0]
        place = run.attrs.get("machine", _DEVICES.get(device, device))
        about = {"data": _data(setting), "body": _body(setting), "device": place}
        coordinates = {key: ("study", [value]) for key, value in about.items()}
        parts.append(found.expand_dims(study=[name]).assign_coords(coordinates))
    data = xr.concat(parts, "study", join="outer", compat="no_conflicts", coords="different")
    # in the order of the studies instead of the alphabet
    arms = list(dict.fromkeys(str(arm) for part in parts for arm in part.arm.values))
    data = data.reindex(arm=arms)
    meanings = {
        "mean": "mean test accuracy over the seeds",
        "standard_error": "standard error of the mean",
        "seeds": "number of seeds",
        "differs": f"1: the mean differs from that of {REFERENCE} (paired t-test at 5 % for the study, Holm)",
    }
    for name, meaning in meanings.items():
        data[name].attrs = {"long_name": meaning, "units": "1"}
    data.epsilon.attrs = {"long_name": "privacy budget epsilon", "units": "1"}
    places: dict[str, list[str]] = {}
    for study, device in zip(data.study.values, data.device.values, strict=True):
        places.setdefault(str(device), []).append(str(study))
    data.attrs["machine"] = "; ".join(f"{', '.join(studies)} on {place}" for place, studies in places.items())
    return data


def tabulate(data: xr.Dataset) -> Table:
    """One row per arm of each study, one column per budget; a star where ``differs``."""
    from empirical.studies.tables import Table, number

    rows = []
    for study in data.study.values:
        part = data.sel(study=study)
        words = [f"{part.data.item()}; {int(part.seeds.max())} seeds", str(part.body.item())]
        for arm in part.arm.values:
            cells = [
                number(float(at["mean"]), float(at.standard_error)) + ("*" if at.differs == 1 else "")
                for at in (part.sel(arm=arm, epsilon=epsilon) for epsilon in part.epsilon.values)
            ]
            if any(cell != "-" for cell in cells):
                rows.append([*words, str(arm), *cells])
                words = ["", ""]
    header = ["data", "body", "method", *(f"ε = {epsilon:g}" for epsilon in data.epsilon.values)]
    return Table(header, rows, labels=3)


def _data(setting: dict[str, Any]) -> str:
    words = [setting["data"]]
    if setting["data"] == "glyphs":
        words = [f"glyphs, {setting.get('size') or 24} px"]
    elif setting.get("images"):
        words.append(f"{setting['images']:,} images")
    if setting.get("public_classes"):
        words.append(f"public: {' '.join(setting['public_classes'])}")
    shift = setting["shift"]
    if shift["rotation"]:
        words.append(f"rotated by {shift['rotation']:g}°")
    if (shift["gain"], shift["offset"]) != (1, 0):
        words.append(f"dimmed to {shift['gain']:g} x + {shift['offset']:g}")
    return ", ".join(words)


def _body(setting: dict[str, Any]) -> str:
    name = str(setting["body"]).rpartition(":")[2]
    widths = setting.get("widths")
    return f"{name} {'-'.join(str(width) for width in widths)}" if widths else name
