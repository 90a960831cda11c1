"""Accuracy by method and budget: small networks on digits and glyphs.

Mean test accuracy with its standard error over the seeds, after DP-SGD with one budget epsilon per column. A
star marks a mean that differs from that of full fine-tuning (fft), paired by seed. In all tasks probing alone
(lp) exceeds full fine-tuning at epsilon {above}; at {below} it is below it, or within a standard error.
Probing before full fine-tuning (lp-fft, with its share of the budget) never exceeds both with significance,
unlike in the paper, which reports on larger networks. These tables do not reproduce those of the paper. The
protocol is in docs/study.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output, wording
from figures.study import studies
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("digits-rotated", "digits-dimmed", "glyphs")


def compute(quick: bool = False) -> xr.Dataset:
    """Collect means and standard errors of the committed studies."""
    return studies.collect(STUDIES)


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    lp, fft = data.sel(arm="lp"), data.sel(arm="fft")
    ahead = lp["mean"] - fft["mean"]
    return {
        "above": wording.listed(data.epsilon.values[(ahead > 0).all("study")].tolist()),
        "below": wording.listed(data.epsilon.values[(ahead < lp.standard_error).all("study")].tolist()),
    }


def main(argv: list[str] | None = None) -> int:
    """Make the table."""
    return output.run_table(
        __file__, compute, studies.tabulate, reads=studies.paths(STUDIES), caption=caption, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
