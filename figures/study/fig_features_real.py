"""Feature quality during private fine-tuning of a real backbone, and what changes it.

All of EfficientNet-Lite0 with ImageNet weights, on {images:,} images of Fashion-MNIST at {size} pixels, and
{steps} steps of DP-SGD at the learning rates tuned in docs/study/real.md; means of {seeds} seeds, bands of
one standard error. Above: nearest-neighbour accuracy of the features, with that of raw pixels and of random
weights, and similarity to the pre-trained features. DP-FFT changes the accuracy by {fft_low} points at
epsilon {low:g} and by {fft_high} at epsilon {high:g}. Below: the change by cause. Training alone (a zero
head, no noise) changes it by {training} points; noise and head are differences to it. At epsilon {low:g} the
noise costs {noise}. The random head costs {early} after {soon} steps and {late} at the end: the sign is that
of the paper's account, in which a random head first distorts the features and training then repairs them,
but it is not significant. A head of {scale:g} times the scale costs {large_early} and then {large_late}, of
which training hides the most. DP-LP-FFT, with half the steps of full fine-tuning, loses nothing.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from figures import output, wording
from figures.study import fig_features
from figures.study.fig_features import draw
from figures.study.study_features import LARGE
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

FILE, TUNED = "docs/study/features-lite0.nc", "docs/study/lite0.nc"
NEITHER = "fft, zero head, no noise"


def compute(quick: bool = False) -> xr.Dataset:
    """Compute the same as `fig_features`, and what training does without noise and head."""
    from langevin.store import files

    data = fig_features.compute(quick, file=FILE, tuned=TUNED, neither=NEITHER)
    return data.assign_attrs(setting=files.load(output.ROOT / FILE).attrs["setting"])


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes; a cost is a change with the opposite sign."""
    setting = json.loads(data.attrs["setting"])
    low, high = data.epsilon.values[[0, -1]]
    # an evaluation a third of the way
    soon, end = int(data.step[data.sizes["step"] // 3]), int(data.step[-1])

    def change(epsilon: float, step: int, name: str = "change", sign: int = 1, **at: Any) -> str:
        part = data.sel(epsilon=epsilon, step=step, **at)
        return wording.points(sign * part[name], part[f"{name}_error"], signed=sign > 0)

    def cost(name: str, step: int, head: str = "default") -> str:
        return change(low, step, name, -1, head=head)

    return {
        "images": setting["images"],
        "size": dict(setting["options"])["size"],
        "steps": end,
        "seeds": data.attrs["seeds"],
        "low": float(low),
        "high": float(high),
        "soon": soon,
        "fft_low": change(low, end, run="fft"),
        "fft_high": change(high, end, run="fft"),
        "training": change(low, end, "from_training", head="default"),
        "noise": cost("from_noise", end),
        "early": cost("from_head", soon),
        "late": cost("from_head", end),
        "scale": LARGE,
        "large_early": cost("from_head", soon, "large"),
        "large_late": cost("from_head", end, "large"),
    }


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(7.2, 4.8),
        panels=(2, 3),
        reads=[FILE, TUNED],
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
