"""Three ways to spend one privacy budget.

Linear probing trains the new head on frozen features. Full fine-tuning trains both, starting from a random
head. Probing before full fine-tuning starts the second phase with a head that is aligned with the features.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from figures import output
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

SHARE = 0.4
STRATEGIES = {"DP-LP": 1.0, "DP-FFT": 0.0, "DP-LP-FFT": SHARE}
FROZEN, TRAINED, HEAD = "0.85", plots.PURPLE, plots.GOLD


def compute(quick: bool = False) -> xr.Dataset:
    """Return the share of the budget for probing, by strategy."""
    import xarray as xr

    return xr.Dataset(
        {"lp_share": ("strategy", list(STRATEGIES.values()), {"units": "1"})},
        {"strategy": list(STRATEGIES)},
        {"machine": "none, a schematic"},
    )


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot one row per strategy: what trains as the budget is spent."""
    for row, (name, share) in enumerate(zip(data.strategy.values, data.lp_share.values, strict=True)):
        for layer, colours in (("features $W$", (FROZEN, TRAINED)), ("head $v$", (HEAD, HEAD))):
            y = -row + (0.18 if layer[0] == "h" else -0.18)
            for start, width, colour in zip((0, share), (share, 1 - share), colours, strict=True):
                if width > 0:
                    ax.barh(y, width, 0.3, start, color=colour, edgecolor="white", linewidth=1.5)
            ax.text(1.02, y, layer, va="center", fontsize=6.5)
        ax.text(-0.02, -row, name, va="center", ha="right", color=plots.method_colour(name))
    ax.axvline(SHARE, ymin=0.02, ymax=0.3, color="black", linewidth=0.8, linestyle=":")
    for colour, text in ((FROZEN, "frozen"), (TRAINED, "features train"), (HEAD, "head trains")):
        ax.barh(0, 0, color=colour, label=text)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
    ax.set(xlim=(0, 1), xlabel="share of the privacy budget spent", yticks=[], ylim=(-2.5, 0.5))
    ax.spines["left"].set_visible(False)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(__file__, compute, draw, size=(5.0, 2.2), argv=argv)


if __name__ == "__main__":
    streams.run(main)
