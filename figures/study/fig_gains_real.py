"""What probing first gains over full fine-tuning from the start, on real images.

Test accuracy of real DP-SGD less that of full fine-tuning, paired by seed: EfficientNet-Lite0 with ImageNet
weights, which trains as a whole; means of {seeds} seeds with two standard errors. With so many seeds, one
difference alone is significant from {needed} standard errors on. LP is probing alone, and LP-FFT probing with
a share of the budget before full fine-tuning. The most that probing alone gains is {most} points ({most_at}),
and the most that it loses {least} ({least_at}). The protocol and all other methods are in docs/study/real.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from figures import output, wording
from figures.study import fig_gains, regret, studies
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

STUDIES = ("lite0", "lite0-60k", "elpv", "elpv-shift")


def compute(quick: bool = False) -> xr.Dataset:
    """Compute gains over full fine-tuning by task, share of probing and budget; NaN if not measured."""
    import xarray as xr

    parts = [fig_gains.gains(regret.measured(study)) for study in STUDIES]
    data = xr.concat(parts, "task", join="outer", combine_attrs="override")
    return data.assign_coords(task=list(STUDIES))


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    from scipy import stats

    seeds = dict.fromkeys(int(seeds) for seeds in data.seeds.values)
    # of a paired t-test at 5 %
    needed = [f"{stats.t.ppf(0.975, count - 1):.1f}" for count in seeds]
    return {"seeds": wording.listed(seeds), "needed": wording.listed(needed), **fig_gains.extremes(data)}


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        fig_gains.draw,
        size=(7.2, 4.4),
        panels=(2, 2),
        reads=studies.paths(STUDIES),
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
