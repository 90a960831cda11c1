"""Accuracy by method and budget: a real backbone on real images.

Mean test accuracy with its standard error over the seeds, after DP-SGD with one budget epsilon per column, of
EfficientNet-Lite0 with ImageNet weights, which trains as a whole. A star marks a mean that differs from that
of full fine-tuning (fft), paired by seed. On 6,000 images of Fashion-MNIST probing alone (lp) leads at
epsilon 0.3, by 3.9 points; on 60,000 images full fine-tuning leads, by about 1; on photographs of solar cells
probing leads at epsilon 1. Probing before full fine-tuning (lp-fft, with its share) exceeds both of them
with significance nowhere. The protocol is in docs/study/real.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output
from figures.study import studies
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("lite0", "lite0-60k", "elpv")


def compute(quick: bool = False) -> xr.Dataset:
    """Collect means and standard errors of the committed studies."""
    return studies.collect(STUDIES)


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(__file__, compute, studies.tabulate, reads=studies.paths(STUDIES), argv=argv)


if __name__ == "__main__":
    streams.run(main)
