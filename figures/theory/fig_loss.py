"""The simulated loss between its bounds.

The panels differ in what is trained; the appendix (loss spreads) varies the spread within a class, which is
{spread:g} here. The sandwich bounds (4b, new here, replace Theorems 4.2 and 4.3 of the paper) enclose the
zeroth-order loss under clipping. They end where their proof does: where a misaligned neuron may have left its
cone, which probing first prevents, or where a margin may have reached 1, beyond which the residual of the
square loss changes sign. They do not cover the noise: in full fine-tuning the loss of the diffusion drops
below that of its approximation. The certified interval (1d, new) holds for the expected loss of the diffusion
itself. It is useful for some time in probing and says almost nothing once full fine-tuning has begun, because
the underlying distance bound grows like ``2 n C t``.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from langevin.model.schedule import Schedule
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

SAMPLES, DIM, WIDTH, HEAD = 32, 8, 64, 0.05
SIGMA, CLIP = 0.15, 0.5
SPREAD = 0.3
QUANTILES = (0.05, 0.5, 0.95)
SETTINGS: output.Settings = {"paths": (48, 200), "steps": (100, 500)}
LIMITS = (2e-2, 120.0)


def cases() -> dict[str, tuple[Any, Schedule]]:
    """Return loss and schedule by name; the square loss reaches its minimum in less time."""
    noise = {"sigma": SIGMA, "clip": CLIP}
    return {
        "LP": ("logistic", Schedule.lp(time=1.0, **noise)),
        "FFT": ("logistic", Schedule.fft(time=1.0, **noise)),
        "LP-FFT": ("logistic", Schedule.lp_fft(lp_time=0.3, fft_time=0.7, **noise)),
        "LP-FFT, square loss": ("square", Schedule.lp_fft(lp_time=0.15, fft_time=0.15, **noise)),
    }


def compute(quick: bool = False) -> xr.Dataset:
    """Compute losses of the diffusion and of its zeroth-order approximation, and their bounds."""
    return losses((SPREAD,), quick)


def losses(spreads: Sequence[float], quick: bool) -> xr.Dataset:
    """Return the losses and bounds of each case with each spread within a class."""
    import xarray as xr

    rows = [
        xr.concat([_panel(loss, schedule, spread, quick) for loss, schedule in cases().values()], "case")
        for spread in spreads
    ]
    data = xr.concat(rows, "spread").assign_coords(
        case=list(cases()),
        spread=("spread", list(spreads), {"long_name": "spread within a class", "units": "1"}),
        side=["lower", "upper"],
        start=("case", [schedule.starts[-1] for _, schedule in cases().values()]),
    )
    data.start.attrs = {"long_name": "start of the last phase", "units": "diffusion time"}
    return data


def _panel(loss: Any, schedule: Schedule, spread: float, quick: bool) -> xr.Dataset:
    import xarray as xr

    import bounds
    from langevin import collapsed_features, euler_maruyama, orthogonally_separable, zeroth_order

    paths, steps = output.chosen(SETTINGS, quick).values()
    problem = orthogonally_separable(SAMPLES, DIM, spread=spread, angle=180, loss=loss, rng=0)
    weights = collapsed_features(problem, WIDTH, head_scale=HEAD, rng=0)
    dt = schedule.duration / steps
    run = euler_maruyama(problem, weights, schedule, dt=dt, paths=paths, rng=1)
    times = run.time.values
    ode = zeroth_order(problem, weights, schedule, times=times)
    sandwich = bounds.sandwich(problem, weights, schedule, times)
    certified = bounds.certified_loss(problem, weights, schedule, times)
    mean = run.loss.mean("path").values

    def of(what: str) -> dict[str, str]:
        return {"long_name": what, "units": "loss"}

    return xr.Dataset(
        {
            "time": ("record", times, {"long_name": "diffusion time", "units": "diffusion time"}),
            "loss": (
                ("quantile", "record"),
                run.loss.quantile(QUANTILES, "path").values,
                of("diffusion's loss"),
            ),
            "mean": ("record", mean, of("diffusion's loss, mean")),
            "error": (
                "record",
                run.loss.std("path", ddof=1).values / paths**0.5,
                of("standard error of the mean"),
            ),
            "zeroth": ("record", ode.loss.values, of("zeroth-order loss")),
            "sandwich": (("side", "record"), [sandwich.lower, sandwich.upper], of("sandwich (4b)")),
            "certified": (
                ("side", "record"),
                [certified.lower, certified.upper],
                of("interval of the expected loss (1d)"),
            ),
            "end": ((), times[np.flatnonzero(sandwich.valid)[-1]], {"long_name": "end of the sandwich"}),
            "reason": ((), sandwich.reason, {"long_name": "why the sandwich ends"}),
        },
        {"quantile": list(QUANTILES)},
    )


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    return {"spread": float(data.spread[0])}


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot one panel per case."""
    for k, a in enumerate(ax.flat):
        draw_panel(a, data.isel(spread=0, case=k))
    draw_key(ax.flat[0].figure)
    for a in ax[:, 0]:
        a.set_ylabel("loss (sum over samples)")
    for a in ax[1]:
        a.set_xlabel("diffusion time")


def draw_panel(a: Any, panel: xr.Dataset) -> None:
    """Plot the loss of one case and one spread, in the colour of its method, with its bounds."""
    case = str(panel.case.values)
    colour, t = plots.method_colour(case.partition(",")[0]), panel.time
    low, high = panel.sandwich
    a.fill_between(t, low, high, color="0.6", alpha=0.5, linewidth=0)
    a.fill_between(t, panel.loss[0], panel.loss[2], color=colour, alpha=0.3, linewidth=0)
    a.plot(t, panel.loss[1], color=colour)
    a.plot(t, panel.zeroth, "k--", linewidth=1)
    for side in panel.certified:
        a.plot(t, side.where(side > LIMITS[0] / 10, LIMITS[0] / 10), color=plots.PURPLE, linestyle=":")
    if panel.start > 0:
        a.axvline(panel.start, color="0.7", linewidth=0.7)
    note = rf"upper $\leq$ {float((high / low).max()):.3g} $\times$ lower"
    if str(panel.reason.values):
        a.axvline(panel.end, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
        reason = str(panel.reason.values).partition(" (")[0]
        note += "\n" + textwrap.fill(f"ends: {reason}", 20)
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
    a.text(0.99, 0.99, note, transform=a.transAxes, fontsize=6.5, ha="right", va="top", bbox=box)
    a.set(yscale="log", ylim=LIMITS, xlim=(0, float(t[-1])), title=case)


def draw_key(figure: Any) -> None:
    """Explain lines and shades below the panels."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    solid = (Patch(color=plots.OTHER, alpha=0.3, linewidth=0), Line2D([], [], color=plots.OTHER))
    entries = {
        "diffusion: median, 90 % of paths": solid,
        "zeroth order": Line2D([], [], color="black", linestyle="--", linewidth=1),
        "sandwich (4b) of zeroth order": Patch(color="0.6", alpha=0.5, linewidth=0),
        "certified (1d) for the diffusion's mean": Line2D([], [], color=plots.PURPLE, linestyle=":"),
        "full fine-tuning begins": Line2D([], [], color="0.7", linewidth=0.7),
        "the sandwich ends": Line2D([], [], color="black", linewidth=0.8, linestyle=(0, (1, 1))),
    }
    figure.legend(list(entries.values()), list(entries), loc="outside lower center", ncols=3)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(6.6, 5.0),
        panels=(2, 2),
        thumbnail=2,
        settings=SETTINGS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
