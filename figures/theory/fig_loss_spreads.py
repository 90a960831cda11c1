"""Appendix: the simulated loss between its bounds, by the spread within a class.

The columns differ in what is trained, the rows in the spread within a class; lines and shades are those of
the figure of the loss. The sandwich bounds (4b, new) are tight for narrow classes, and loose for wide
classes, where full fine-tuning multiplies the uncertainty.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from figures.theory import fig_loss
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

SPREADS = (0.05, 0.3, 0.8)
SETTINGS = fig_loss.SETTINGS


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses of the diffusion and of its zeroth-order approximation, and their bounds."""
    return fig_loss.losses(SPREADS, quick)


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot one row per spread and one column per case."""
    for i, j in np.ndindex(ax.shape):
        a = ax[i, j]
        fig_loss.draw_panel(a, data.isel(spread=i, case=j))
        if j == 0:
            a.set_ylabel(f"spread {float(data.spread[i]):g}\nloss (sum over samples)")
        if i == data.sizes["spread"] - 1:
            a.set_xlabel("diffusion time")
    fig_loss.draw_key(ax[0, 0].figure)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__, compute, draw, size=(9.0, 6.6), panels=(3, 4), thumbnail=6, settings=SETTINGS, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
