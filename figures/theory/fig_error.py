"""How far the diffusion is from its zeroth-order approximation.

The figure shows the mean squared distance of all parameters in linear probing (top) and full fine-tuning
(bottom), and how many times larger each bound on it is (1 would be exact; bars are two standard errors).
Theorem 2.2 is taken from the paper without change; 1a and 1b are new. The term ``2 n C t`` of Theorem 2.2
does not depend on the noise: where noise is small or time is long, it is too large by orders of magnitude.
Linear probing does not need this term, and without it (1a) the bound is almost exact as soon as the network
is wide. In full fine-tuning, 1b along the zeroth-order path gains most at late times; at small noise it is
also far too large. The paper leaves the dependence on width and dimension open: in full fine-tuning, distance
and bounds both grow like the number of parameters, so all bounds approach the true distance in wide networks
and in high dimensions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from langevin.model.schedule import Schedule
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

    from bounds.distance.approximation import Kind

SAMPLES, CLIP, DURATION, STEPS = 16, 0.5, 1.0, 500
BASE = {"sigma": 0.2, "width": 64, "dim": 8}
SWEEPS = {
    "sigma": np.geomspace(0.01, 10, 7),
    "width": 4 ** np.arange(1, 7),
    "dim": 2 ** np.arange(1, 11),
}
TIMES = np.geomspace(0.01, 4, 27)
MEANING = {
    "time": (r"time $t$", "diffusion time"),
    "sigma": (r"noise $\sigma$", "parameter / time^(1/2)"),
    "width": ("width $h$", "1"),
    "dim": ("input dimension $d$", "1"),
}
METHODS = ("lp", "fft")
# label and line of each bound, and the methods for which it differs from the others
KINDS: dict[Kind, tuple[str, str, str, tuple[str, ...]]] = {
    "paper": ("Theorem 2.2 (the paper's)", plots.OTHER, ":", METHODS),
    "monotone": ("1a (new)", plots.PURPLE, "--", ("lp",)),
    "lambert": ("1b, free of data (new)", plots.GOLD, "-.", ("fft",)),
    "ode": ("1b along the path (new)", "black", "--", ("fft",)),
}
QUANTILES = (0.05, 0.95)
SETTINGS: output.Settings = {"paths": (24, 128)} | {
    f"values of {name}": (len(values[::2]), len(values)) for name, values in SWEEPS.items()
}


def compute(quick: bool = False) -> xr.Dataset:
    """Compute distances and bounds: over time, and at one time over noise, width and input dimension."""
    import xarray as xr

    paths = output.chosen(SETTINGS, quick)["paths"]
    found: dict[str, Any] = {}
    squared, bound = zip(*(_case(method, TIMES, paths, **BASE) for method in METHODS), strict=True)
    time = squared[0].time.values
    found |= _entries("time", np.array(squared), np.array(bound))
    found["time_quantiles"] = (
        ("trained", "quantile", "time"),
        [np.quantile(s, QUANTILES, axis=0) for s in squared],
        {"long_name": "squared distance over paths", "units": "parameter^2"},
    )
    coords = {"time": time}
    for name, values in SWEEPS.items():
        coords[name] = values[::2] if quick else values
        cases = [
            [_case(method, [DURATION], paths, **BASE | {name: x}) for x in coords[name]] for method in METHODS
        ]
        squared = np.array([[s.values[:, 0] for s, _ in row] for row in cases]).swapaxes(1, 2)
        found |= _entries(
            name, squared, np.array([[b[:, 0] for _, b in row] for row in cases]).swapaxes(1, 2)
        )
    data = xr.Dataset(
        found, coords | {"trained": list(METHODS), "kind": list(KINDS), "quantile": list(QUANTILES)}
    )
    for name, (what, units) in MEANING.items():
        data[name].attrs = {"long_name": what, "units": units}
    return data


def _case(
    method: str, times: Any, paths: int, *, sigma: float, width: int, dim: int
) -> tuple[xr.DataArray, np.ndarray]:
    """Return squared distances ``(path, time)`` and bounds ``(kind, time)``."""
    import bounds
    from langevin import collapsed_features, euler_maruyama, orthogonally_separable

    problem = orthogonally_separable(SAMPLES, int(dim), rng=0)
    weights = collapsed_features(problem, int(width), rng=0)
    duration = float(times[-1])
    schedule = getattr(Schedule, method)(time=duration, sigma=float(sigma), clip=CLIP)
    run = euler_maruyama(
        problem, weights, schedule, dt=DURATION / STEPS, paths=paths, rng=1, times=np.array(times)
    )
    found = [bounds.approximation_error(problem, weights, schedule, run.time, kind=kind) for kind in KINDS]
    return run.squared_distance, np.array([band.upper for band in found])


def _entries(sweep: str, squared: np.ndarray, bound: np.ndarray) -> dict[str, Any]:
    """Return the variables of one sweep: ``squared (method, path, x)``, ``bound (method, kind, x)``."""
    units = {"units": "parameter^2"}
    error = squared.std(1, ddof=1) / squared.shape[1] ** 0.5
    return {
        f"{sweep}_measured": (
            ("trained", sweep),
            squared.mean(1),
            {"long_name": "mean squared distance"} | units,
        ),
        f"{sweep}_error": (("trained", sweep), error, {"long_name": "its standard error"} | units),
        f"{sweep}_bound": (("trained", "kind", sweep), bound, {"long_name": "bound on the mean"} | units),
    }


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot linear probing (top) and full fine-tuning (bottom): distances (left), bounds over distances."""
    for row, method in zip(ax, METHODS, strict=True):
        d = data.sel(trained=method)
        own = {
            kind: (label, {"color": c, "linestyle": s})
            for kind, (label, c, s, of) in KINDS.items()
            if method in of
        }
        colour, name = plots.METHODS[method], plots.NAMES[method]
        row[0].fill_between(d.time, *d.time_quantiles, color=colour, alpha=0.3, linewidth=0)
        row[0].plot(d.time, d.time_measured, color=colour, label=f"measured in {name}, 90 % of paths")
        for kind, (label, style) in own.items():
            row[0].plot(d.time, d.time_bound.sel(kind=kind), label=label, **style)
        row[0].set(ylabel=f"{method.upper()}: " + r"$\|\theta_t-\tilde\theta_t\|^2$")
        for a, name in zip(row[1:], SWEEPS, strict=True):
            for kind, (_, style) in own.items():
                ratio = d[f"{name}_bound"].sel(kind=kind) / d[f"{name}_measured"]
                error = 2 * ratio * d[f"{name}_error"] / d[f"{name}_measured"]
                a.errorbar(d[name], ratio, error, marker="o", markersize=2.5, **style)
            a.axhline(1, color="black", linewidth=0.7)
        row[1].set_ylabel("bound / measured")
    for a, name in zip(ax[1], MEANING, strict=True):
        a.set_xlabel(data[name].long_name)
    for a in ax.flat:
        a.set(xscale="log", yscale="log")
    entries = {
        text: line for row in ax[:, 0] for line, text in zip(*row.get_legend_handles_labels(), strict=True)
    }
    ax[0, 0].figure.legend(entries.values(), entries, loc="outside lower center", ncols=3)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__, compute, draw, size=(7.4, 4.2), panels=(2, 4), thumbnail=4, settings=SETTINGS, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
