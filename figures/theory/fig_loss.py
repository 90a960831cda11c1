"""The simulated loss between its bounds.

The columns differ in what is trained, the rows in the spread within a class. The sandwich bounds (4b, new
here, replace Theorems 4.2 and 4.3 of the paper) enclose the zeroth-order loss under clipping: tightly for
narrow classes, and loosely for wide classes, where full fine-tuning multiplies the uncertainty. They end
where their proof does: where a misaligned neuron may have left its cone, which probing first prevents, or
where a margin may have reached 1, beyond which the residual of the square loss changes sign. They do not
cover the noise: in full fine-tuning the loss of the diffusion drops below that of its approximation. The
certified interval (1d, new) holds for the expected loss of the diffusion itself. It is useful for some time
in probing and says almost nothing once full fine-tuning has begun, because the underlying distance bound
grows like ``2 n C t``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from langevin.model.schedule import Schedule
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

SAMPLES, DIM, WIDTH, HEAD = 32, 8, 64, 0.05
SIGMA, CLIP = 0.15, 0.5
SPREADS = (0.05, 0.3, 0.8)
QUANTILES = (0.05, 0.5, 0.95)
SETTINGS: output.Settings = {"paths": (48, 200), "steps": (100, 500)}
LIMITS = (2e-2, 120.0)
BACK = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}


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
    import xarray as xr

    rows = [
        xr.concat([_panel(loss, schedule, spread, quick) for loss, schedule in cases().values()], "case")
        for spread in SPREADS
    ]
    data = xr.concat(rows, "spread").assign_coords(
        case=list(cases()),
        spread=("spread", list(SPREADS), {"long_name": "spread within a class", "units": "1"}),
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


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot one row per spread and one column per case."""
    for i, j in np.ndindex(ax.shape):
        a, panel = ax[i, j], data.isel(spread=i, case=j)
        t = panel.time
        low, high = panel.sandwich
        a.fill_between(
            t, low, high, color="0.6", alpha=0.5, linewidth=0, label="sandwich (4b) of zeroth order"
        )
        a.fill_between(t, panel.loss[0], panel.loss[2], color="C0", alpha=0.3, linewidth=0)
        a.plot(t, panel.loss[1], color="C0", label="diffusion: median, 90 % of paths")
        a.plot(t, panel.zeroth, "k--", linewidth=1, label="zeroth order")
        for k, side in enumerate(panel.certified):
            name = "certified (1d) for the diffusion's mean" if k == 0 else None
            a.plot(t, side.where(side > LIMITS[0] / 10, LIMITS[0] / 10), "C1:", linewidth=1.2, label=name)
        if panel.start > 0:
            a.axvline(panel.start, color="0.7", linewidth=0.7)
        if str(panel.reason.values):
            a.axvline(panel.end, color="black", linewidth=0.8, linestyle=(0, (1, 1)))
            words = str(panel.reason.values).partition(" (")[0].split()
            why = " ".join(words[:4]) + "\n" + " ".join(words[4:])
            a.text(
                0.98, 0.97, f"ends: {why}", transform=a.transAxes, ha="right", va="top", fontsize=6, bbox=BACK
            )
        wide = float((high / low).max())
        name = f"{data.case.values[j]}\n" if i == 0 else ""
        a.set_title(rf"{name}upper $\leq$ {wide:.3g} $\times$ lower", fontsize=7)
        a.set(yscale="log", ylim=LIMITS, xlim=(0, float(t[-1])))
        a.tick_params(labelleft=j == 0)
        if j == 0:
            a.set_ylabel(f"spread {float(data.spread[i]):g}\nloss")
        if i == data.sizes["spread"] - 1:
            a.set_xlabel("diffusion time")
    ax[0, 0].figure.legend(*ax[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(__file__, compute, draw, size=(7.2, 5.4), panels=(3, 4), settings=SETTINGS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
