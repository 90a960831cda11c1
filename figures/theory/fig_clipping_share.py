"""The influence of the clipping norm on distortion, and on the share of probing, at a fixed privacy budget.

As in the figure of loss and accuracy, the noise grows with the clipping norm, at time {time:g} (new here).
(a) The distortion caused by the random head (zeroth order) vanishes with probing before full fine-tuning,
once the clipping norm lets the heads align in time. With noise, at least {least} of the neurons end
distorted, with or without probing. (b) The share of probing that prevents the first kind of distortion (3.4,
re-derived, replaces the paper's Theorem 5.1) decreases as the clipping norm grows, until no gradient is
clipped. The share of least loss behaves in the opposite way and goes from none to all, as noise in the few
parameters of the head becomes less harmful: what prevents distortion is not what minimises the loss. (Bars:
shares whose loss is equal within two standard errors.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from figures.theory import fig_clipping
from figures.theory.fig_clipping import CLIPPINGS, RHO, STEPS, TIME, schedule, setting, sigma
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

SHARES = np.array([0.0, 0.2, 0.4, 0.7, 1.0])
STRATEGIES = {"FFT": 0.0, "LP-FFT": 0.4}


def grid(quick: bool) -> dict[str, Any]:
    """Return the values of everything that is varied."""
    thresholds = fig_clipping.grid(quick)["threshold"]
    return {"threshold": thresholds, "time": np.array([TIME]), "share": SHARES[::2] if quick else SHARES}


def _settings() -> output.Settings:
    coarse, full = grid(True), grid(False)
    names = {"threshold": "thresholds", "share": "shares"}
    swept = {words: (len(coarse[name]), len(full[name])) for name, words in names.items()}
    return {"paths": fig_clipping.SETTINGS["paths"]} | swept


SETTINGS = _settings()


def compute(quick: bool = False) -> xr.Dataset:
    """Compute distortion and loss by clipping norm and share, and the share that theory asks for."""
    import xarray as xr

    at = grid(quick)
    data = xr.Dataset(fig_clipping.simulated(at, quick) | _theory(at), at)
    data.threshold.attrs["units"], data.time.attrs["units"] = "gradient", "diffusion time"
    return data.assign_coords(clipping=list(CLIPPINGS))


def _theory(at: dict[str, Any]) -> dict[str, Any]:
    """Return distortion without noise, and the shares of probing against it."""
    import bounds
    from langevin import zeroth_order

    problem, weights = setting()
    flow, shares = np.zeros((len(at["threshold"]), len(at["share"]))), []
    for k, clip in enumerate(at["threshold"]):
        for s, share in enumerate(at["share"]):
            plan = schedule(clip, TIME, share, "flat")
            still = zeroth_order(
                problem, weights, plan, dt=TIME / STEPS, times=[plan.duration], observables=["distorted"]
            )
            flow[k, s] = still.distorted[-1]
        found = bounds.minimum_lp_share(problem, weights, rho=RHO, sigma=sigma(clip, TIME), clip=clip)
        shares.append(found.share)
    return {
        "flow": (("threshold", "share"), flow, {"long_name": "the same, zeroth order, flat", "units": "1"}),
        "least_share": (
            "threshold",
            shares,
            {"long_name": "LP share against distortion (3.4)", "units": "1"},
        ),
    }


def least(loss: xr.DataArray, error: xr.DataArray) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of least loss, and the range around it with equal loss within two standard errors."""
    share = loss.share.values
    mean, deviation = (values.transpose("threshold", "share").values for values in (loss, error))
    rows, best = np.arange(len(mean)), mean.argmin(1)
    gap = mean - mean[rows, best, None]
    same = gap <= 2 * np.hypot(deviation, deviation[rows, best, None])
    low = np.where(same, share, np.inf).min(1)
    high = np.where(same, share, -np.inf).max(1)
    return share[best], np.array([share[best] - low, high - share[best]])


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    shares = list(STRATEGIES.values())
    distorted = data.distorted.sel(time=TIME, clipping="flat", share=shares)
    return {"time": TIME, "least": f"{100 * float(distorted.min()):.0f} %"}


def draw(axes: Any, data: xr.Dataset) -> None:
    """Plot distortion, and the shares that theory and simulation ask for."""
    distortion, share = axes
    now = data.sel(time=TIME)
    for name, part in STRATEGIES.items():
        d, colour = now.sel(share=part), plots.method_colour(name)
        distortion.plot(
            d.threshold, d.distorted.sel(clipping="flat"), color=colour, label=f"{name}, diffusion"
        )
        # where both are 0, the dashes of one fill the gaps of the other
        dashes = plots.dashes(int(part > 0), 2)
        distortion.plot(d.threshold, d.flow, color=colour, linestyle=dashes, label=f"{name}, zeroth order")
    distortion.set(title="flat clipping", ylabel="share of distorted neurons", ylim=(-0.02, 0.65))
    share.axhspan(1, 3, color="0.9", linewidth=0, label="not attainable")
    share.plot(data.threshold, now.least_share, "k", label="prevents distortion (3.4)")
    for k, clipping in enumerate(CLIPPINGS):
        d = now.sel(clipping=clipping)
        middle, around = least(d.loss, d.error)
        # offset, so that they can be distinguished
        x = data.threshold * (1.08, 0.92)[k]
        style: Any = {"color": f"C{k}", "marker": "os"[k], "linestyle": "-" if k == 0 else "--"}
        share.errorbar(x, middle, around, linewidth=1, label=f"least loss, {clipping}", **style)
    share.set(title="theory and loss differ", ylabel="share of LP", ylim=(-0.05, 2.2))
    for ax in axes:
        ax.set(xscale="log", xlabel="clipping norm $C$")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__, compute, draw, size=(6.6, 3.2), panels=(1, 2), settings=SETTINGS, caption=caption, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
