"""Accuracy by method and budget: a real backbone on real images.

Mean test accuracy with its standard error over the seeds, after DP-SGD with one budget epsilon per column, of
EfficientNet-Lite0 with ImageNet weights, which trains as a whole. A star marks a mean that differs from that
of full fine-tuning (fft), paired by seed. On a tenth of Fashion-MNIST probing alone (lp) leads at epsilon
{low:g}, by {ahead:.1f} points; on all of it full fine-tuning leads, by {behind:.1f} there, which three seeds
cannot tell from zero; on photographs of solar cells probing leads at epsilon {cells:g}, by {cells_ahead:.1f},
and where cells of another kind are public no method differs with significance. Probing before full
fine-tuning (lp-fft, with its share) exceeds both of them with significance nowhere. The protocol is in
docs/study/real.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output
from figures.study import studies
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("lite0", "lite0-60k", "elpv", "elpv-shift")


def compute(quick: bool = False) -> xr.Dataset:
    """Collect means and standard errors of the committed studies."""
    return studies.collect(STUDIES)


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    ahead = 100 * (data["mean"].sel(arm="lp") - data["mean"].sel(arm="fft"))
    low = {study: ahead.sel(study=study).dropna("epsilon").isel(epsilon=0) for study in STUDIES}
    return {
        "low": float(low["lite0"].epsilon),
        "ahead": float(low["lite0"]),
        "behind": -float(low["lite0-60k"]),
        "cells": float(low["elpv"].epsilon),
        "cells_ahead": float(low["elpv"]),
    }


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(
        __file__, compute, studies.tabulate, reads=studies.paths(STUDIES), caption=caption, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
