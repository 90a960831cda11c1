"""Numbers in words, for captions and pages: every number that a text quotes comes from data through these."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, SupportsFloat

if TYPE_CHECKING:
    import xarray as xr


def counts(data: xr.Dataset) -> dict[str, int]:
    """Return the counts that the data were computed with, by their names in ``SETTINGS``.

    Examples
    --------
    >>> import xarray as xr
    >>> counts(xr.Dataset(attrs={"drawn": '{"paths": 128}'}))
    {'paths': 128}
    """
    return json.loads(data.attrs["drawn"])


def measured(mean: SupportsFloat, error: SupportsFloat, *, digits: int = 1, signed: bool = False) -> str:
    """Return a mean with its standard error.

    Examples
    --------
    >>> measured(3.04, 0.96), measured(0.2, 0.1, signed=True)
    ('3.0 ± 1.0', '+0.2 ± 0.1')
    """
    # zero has no sign of its own
    value = round(float(mean), digits) + 0.0
    return f"{value:{'+' if signed else ''}.{digits}f} ± {float(error):.{digits}f}"


def points(mean: SupportsFloat, error: SupportsFloat, *, signed: bool = False) -> str:
    """Return a share and its standard error in points of a hundred.

    Examples
    --------
    >>> points(0.03, 0.01)
    '3.0 ± 1.0'
    """
    return measured(100 * float(mean), 100 * float(error), signed=signed)


def between(values: xr.DataArray) -> str:
    """Return the range of shares, in percent.

    Examples
    --------
    >>> import xarray as xr
    >>> between(xr.DataArray([0.25, 0.3, 0.451])), between(xr.DataArray([1.0, 1.0]))
    ('25 to 45 %', '100 %')
    """
    low, high = (f"{100 * float(value):.0f}" for value in (values.min(), values.max()))
    return f"{high} %" if low == high else f"{low} to {high} %"


def listed(values: Iterable[object]) -> str:
    """Return values in words.

    Examples
    --------
    >>> listed([0.1, 0.3, 8.0]), listed(["a", "b"]), listed([])
    ('0.1, 0.3 and 8', 'a and b', 'none')
    """
    texts: Sequence[str] = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    if len(texts) < 2:
        return texts[0] if texts else "none"
    return f"{', '.join(texts[:-1])} and {texts[-1]}"
