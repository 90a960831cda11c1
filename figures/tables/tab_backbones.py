"""Accuracy by method and budget: larger pre-trained networks.

Mean test accuracy with its standard error over the seeds, after DP-SGD with one budget epsilon per column. A
star marks a mean that differs from that of full fine-tuning (fft), paired by seed. With few seeds, only the
order of magnitude is meaningful. The networks are pre-trained on public glyphs and fine-tuned on new classes,
under a shift; the tables in the paper are for other data.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output
from figures.study import studies
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("resnet18", "mobilenet", "vit")


def compute(quick: bool = False) -> xr.Dataset:
    """Collect means and standard errors of the committed studies."""
    return studies.collect(STUDIES)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, studies.tabulate, reads=studies.paths(STUDIES), argv=argv)


if __name__ == "__main__":
    streams.run(main)
