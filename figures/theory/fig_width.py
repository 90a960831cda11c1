"""Linear networks of any width, and the first order in the noise.

Through its Gram matrix (7c, new) a network of {most} neurons is simulated like one of {fewest}. The first
order in the noise (section 8, new) is an estimate and not a bound. (a) It is accurate while ``sigma^2 h`` is
small; beyond that, noise in so many neurons makes the loss decrease faster, by less than the estimate
predicts. (b) At one width the effect of the noise on the mean loss, divided by ``sigma^2``, approaches the
estimate as the noise decreases. Bars and shades are two standard errors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from figures.theory.fig_linear import SETTINGS, TIME, TIMES, curve, entry, mean_loss, minimum, setting
from langevin.model.schedule import Schedule
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

WIDE_SIGMA, WIDE_TIME = 1e-4, 0.2 * TIME
WIDTHS = np.round(10.0 ** np.arange(4, 11.5, 0.5))
ORDER_WIDTH, ORDER_SIGMAS = 10**4, (0.003, 0.01, 0.03)


def compute(quick: bool = False) -> xr.Dataset:
    """Compute mean losses over widths and over levels of noise, with their first order in the noise."""
    import xarray as xr

    paths, steps = output.chosen(SETTINGS, quick).values()
    coords = {
        "time": ("time", TIMES, {"units": "diffusion time"}),
        "width": WIDTHS,
        "order_sigma": list(ORDER_SIGMAS),
    }
    return xr.Dataset(_wide(paths, steps) | _order(paths, steps), coords)


def _wide(paths: int, steps: int) -> dict[str, Any]:
    import bounds
    from langevin import zeroth_order

    schedule, dt = Schedule.fft(time=WIDE_TIME, sigma=WIDE_SIGMA), WIDE_TIME / steps
    rows = []
    for width in WIDTHS.astype(int).tolist():
        mean, error = mean_loss(width, schedule, [WIDE_TIME], paths, steps)
        # this includes the discretisation error of the simulation
        zeroth = zeroth_order(*setting(width), schedule, times=[WIDE_TIME], dt=dt).loss.values - minimum()
        first = bounds.first_order_loss(*setting(width), schedule, [WIDE_TIME]).correction
        rows.append([mean / zeroth, error / zeroth, 1 + first / zeroth])
    mean, error, first = np.array(rows)[..., 0].T
    return {
        "wide_mean": entry("width", mean, "mean loss over its zeroth order", "1"),
        "wide_error": entry("width", error, "its standard error", "1"),
        "wide_first": entry("width", first, "the same to first order in the noise (section 8)", "1"),
    }


def _order(paths: int, steps: int) -> dict[str, Any]:
    import bounds
    from langevin import zeroth_order

    effects, errors, first = [], [], np.zeros(len(TIMES))
    for sigma in ORDER_SIGMAS:
        schedule = Schedule.fft(time=TIME, sigma=sigma)
        mean, error = mean_loss(ORDER_WIDTH, schedule, TIMES, 4 * paths, steps)
        zeroth = zeroth_order(*setting(ORDER_WIDTH), schedule, times=TIMES, dt=TIME / steps).loss.values
        effects.append((mean + minimum() - zeroth) / sigma**2)
        errors.append(error / sigma**2)
        first = bounds.first_order_loss(*setting(ORDER_WIDTH), schedule, TIMES).correction / sigma**2
    what = "effect of the noise on the mean loss, over sigma^2"
    return {
        "order_mean": entry("order_sigma time", effects, what, "loss / sigma^2"),
        "order_error": entry("order_sigma time", errors, "its standard error", "loss / sigma^2"),
        "order_first": entry("time", first, "its limit (section 8)", "loss / sigma^2"),
    }


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    return {"most": f"{int(data.width.max()):,}", "fewest": f"{int(data.width.min()):,}"}


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot the loss over the width, and the effect of the noise over time."""
    wide, order = axes
    colour = plots.METHODS["fft"]
    wide.errorbar(
        data.width, data.wide_mean, 2 * data.wide_error, color=colour, marker="o", label="FFT, simulated"
    )
    wide.plot(data.width, data.wide_first, "k:", label="first order")
    title = rf"any width, $\sigma=10^{{-4}}$, time {WIDE_TIME:g}"
    wide.set(title=title, xscale="log", xlabel="width $h$", ylim=(0, 1.1), ylabel="loss / its zeroth order")
    for k, sigma in enumerate(ORDER_SIGMAS):
        at = data.isel(order_sigma=k)
        label = rf"$\sigma={sigma:g}$"
        curve(order, data.time, at.order_mean, at.order_error, plots.LEVELS[k], label)
    order.plot(data.time, data.order_first, "k:", label="first order")
    order.set(title=rf"width {ORDER_WIDTH}", ylabel=r"(loss $-$ zeroth order) / $\sigma^2$")
    order.set(xlabel="diffusion time")
    for ax in axes:
        ax.legend(loc="upper left", bbox_to_anchor=(-0.05, -0.22), ncols=4, columnspacing=1.0)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__, compute, draw, size=(6.6, 2.9), panels=(1, 2), settings=SETTINGS, caption=caption, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
