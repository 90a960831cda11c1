"""`Band`: what a bound returns."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin.support import html, validate
from langevin.support.validate import FloatArray


@dataclass(frozen=True, eq=False)
class Band:
    """Lower and upper bounds of a curve, and where they hold.

    Where ``valid`` is False the bounds are NaN: a number is there only where it is proved.

    Parameters
    ----------
    times : array_like, shape (m,)
        Times, in units of diffusion time.
    lower, upper : array_like, shape (m,) or scalar
        The bounds; overwritten with NaN where not valid.
    valid : array_like of bool, shape (m,) or scalar
        Where the statement's conditions hold.
    reason : str
        Why it does not hold elsewhere; empty if ``valid`` throughout.
    source : str
        The statement, and whose it is.

    Raises
    ------
    ValueError
        If a bound is not finite where it is said to be valid, or an invalid one has no reason.

    Examples
    --------
    >>> band = Band([0.0, 1.0, 2.0], 0.0, [1.0, 2.0, 5.0], [True, True, False], "beyond", "new")
    >>> band.upper
    array([ 1.,  2., nan])
    >>> band
    Band(valid at 2 of 3 times; last, at time 1, in [0, 2]; reason: beyond; source: new)
    >>> band.contains([0.5, 1.5, 9.0]), band.contains([0.5, 2.5, 0.0])
    (True, False)
    """

    times: FloatArray
    lower: FloatArray
    upper: FloatArray
    valid: NDArray[np.bool_]
    reason: str
    source: str

    def __init__(
        self,
        times: ArrayLike,
        lower: ArrayLike,
        upper: ArrayLike,
        valid: ArrayLike,
        reason: str,
        source: str,
    ) -> None:
        t = np.array(validate.array("times", times, 1))
        valid = _along("valid", valid, t, bool)
        fields = {"times": t, "valid": valid}
        for name, values in (("lower", lower), ("upper", upper)):
            values = _along(name, values, t)
            if not np.isfinite(values[valid]).all():
                raise ValueError(f"{name} must be finite where valid: mark the rest as not valid")
            fields[name] = np.where(valid, values, np.nan)
        if not valid.all() and not reason:
            raise ValueError("reason must say why the bound does not hold everywhere, got ''")
        for name, values in fields.items():
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        object.__setattr__(self, "reason", "" if valid.all() else reason)
        object.__setattr__(self, "source", source)

    def __repr__(self) -> str:
        return f"Band({'; '.join(f'{name} {value}' for name, value in self._said().items())})"

    def _repr_html_(self) -> str:
        return html.table("Band", self._said())

    def _said(self) -> dict[str, str]:
        """Say where the band holds, its last value, and whose it is."""
        count, valid = len(self.times), int(self.valid.sum())
        said = {"valid at": f"{valid} of {count} times"}
        if valid:
            last = int(np.flatnonzero(self.valid)[-1])
            where = f"last, at time {self.times[last]:.4g},"
            said[where] = f"in [{self.lower[last]:.4g}, {self.upper[last]:.4g}]"
        return said | ({"reason:": self.reason} if self.reason else {}) | {"source:": self.source}

    def plot(self, ax: Any = None, **style: Any) -> Any:
        """Shade the band where it holds, and mark the time at which it ends.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            A new figure's by default.
        **style
            For `matplotlib.axes.Axes.fill_between`, such as ``color`` and ``label``.

        Returns
        -------
        matplotlib.axes.Axes

        Examples
        --------
        >>> band = Band([0.0, 1.0, 2.0], 0.0, [1.0, 2.0, 5.0], [True, True, False], "beyond", "new")
        >>> band.plot().get_title()
        'holds until time 1: beyond'
        """
        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(layout="constrained")
            ax.set(xlabel="diffusion time")
        how = {"color": "0.5", "alpha": 0.3, "linewidth": 0} | style
        ax.fill_between(self.times, self.lower, self.upper, **how)
        if self.reason:
            held = self.times[self.valid]
            until = f"holds until time {held[-1]:.4g}" if held.size else "holds nowhere"
            ax.set_title(textwrap.fill(f"{until}: {self.reason}", 60), fontsize="small")
        return ax

    def contains(self, curve: ArrayLike, slack: ArrayLike = 0.0) -> bool:
        """Whether ``lower - slack <= curve <= upper + slack`` wherever the band is valid.

        Parameters
        ----------
        curve : array_like, shape (m,)
            Values at ``times``.
        slack : array_like, shape (m,) or scalar
            The error of ``curve`` itself, such as that of a discretisation.
        """
        curve, slack = _along("curve", curve, self.times), _along("slack", slack, self.times)
        inside = (self.lower - slack <= curve) & (curve <= self.upper + slack)
        return bool(inside[self.valid].all())


def _along(name: str, values: ArrayLike, times: FloatArray, kind: type = float) -> np.ndarray:
    """Return an array of the shape of ``times``."""
    try:
        given = validate.plain(name, values)
        if given.dtype.kind not in "fiubO":
            raise TypeError(f"got {given.dtype}")
        return np.array(np.broadcast_to(given.astype(kind), times.shape))
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{name} must be a number, or one for each of {len(times)} times: {error}") from None


def nowhere(times: FloatArray, reason: str, source: str) -> Band:
    """Return the band of a statement whose conditions fail at all times."""
    return Band(times, np.nan, np.nan, False, reason, source)
