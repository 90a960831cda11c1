"""`Band`: what a bound returns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from langevin.support import validate
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
