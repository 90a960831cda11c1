"""Feature quality during private fine-tuning of a real backbone, and what changes it.

All of EfficientNet-Lite0 with ImageNet weights, on 6,000 images of Fashion-MNIST at 96 pixels, and 60 steps
of DP-SGD at the learning rates tuned in docs/study/real.md; means of 3 seeds, bands of one standard error.
Above: nearest-neighbour accuracy of the features, with that of raw pixels and of random weights, and
similarity to the pre-trained features. DP-FFT leaves the accuracy unchanged at epsilon 0.3 (+0.1 ± 0.7
points) and raises it at epsilon 3 (+1.9 ± 0.3). Below: the change by cause. Training alone (a zero head, no
noise) raises the accuracy by 1.8 ± 0.4 points; noise and head are differences to it. At epsilon 0.3 the
noise costs 0.8 ± 1.0. The random head costs 1.4 ± 0.3 after 20 steps and 0.2 ± 0.2 at the end: the account of
the paper, in which a random head first distorts the features and training then repairs them. It appears as a
delayed gain and not as a loss. A head of four times the scale costs 2.0 ± 0.2 and then 1.6 ± 0.6, and with
noise DP-FFT loses accuracy. DP-LP-FFT loses none, with half the steps of full fine-tuning and a lower rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output
from figures.study import fig_features
from figures.study.fig_features import draw
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

FILE = "docs/study/features-lite0.nc"
NEITHER = "fft, zero head, no noise"


def compute(quick: bool = False) -> xr.Dataset:
    """Compute the same as `fig_features`, and what training does without noise and head."""
    return fig_features.compute(quick, file=FILE, neither=NEITHER)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(__file__, compute, draw, size=(7.2, 4.4), panels=(2, 3), reads=[FILE], argv=argv)


if __name__ == "__main__":
    streams.run(main)
