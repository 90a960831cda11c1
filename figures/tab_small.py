"""Accuracy by method and budget: small networks on digits and glyphs.

Mean test accuracy with its standard error over the seeds, after DP-SGD on one budget epsilon at each
column; a star marks a mean that differs from full fine-tuning's (fft), paired by seed. In all three
tasks probing alone (lp) is ahead of full fine-tuning at epsilon 0.1 and 0.3, and by 8 it is behind or
level. Probing first (lp-fft, with its share of the budget) is nowhere ahead of both with significance,
unlike what the paper reports of larger networks, whose tables these do not reproduce. The protocol is in
docs/study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output, studies
from langevin import _streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("digits-rotated", "digits-dimmed", "glyphs")


def compute(quick: bool = False) -> xr.Dataset:
    """Means and standard errors of the committed studies."""
    return studies.collect(STUDIES)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, studies.tabulate, reads=studies.paths(STUDIES), argv=argv)


if __name__ == "__main__":
    _streams.run(main)
