"""Linear networks with noise, without the approximation.

The figure shows the mean square loss above its minimum, simulated (solid; shades are two standard errors) and
by theory. In linear probing the expected loss is known exactly (5a, re-derived, replaces Section 5.2 of the
paper). In full fine-tuning the unconditional bound (5c, new) stays within a small factor of the simulation
where noise is small, and grows without limit where it can no longer exclude that the kernel collapses. The
localised bound (5b, re-derived) levels off, but it applies only to paths that have not yet crossed a level,
and few of these remain at the end; the other paths perform equally well here. Without noise, conserved
quantities (4c, new) enclose the loss, starting from its exact value after probing: the upper bound is close,
the lower bound is far below. The first order in the noise (dotted; section 8, new) is an estimate and not a
bound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from langevin.model.schedule import Schedule
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

    from langevin.model.problem import Problem
    from langevin.model.weights import Weights

SAMPLES, DIM, WIDTH, TIME = 32, 2, 64, 0.05
# root mean square norms of the first layer and of the head; with these the kernel starts far from 0
SCALE, HEAD = 4.0, 0.05
LP_SIGMAS, FFT_SIGMAS = (0.05, 0.2, 0.8), (0.02, 0.1, 0.3)
LP_TIME = 0.1 * TIME
STOPPED_SIGMA, STOPPED_TIME = 0.6, 0.125
LOSS = "loss above its minimum\n(sum over samples)"
SETTINGS: output.Settings = {"paths": (100, 500), "steps": (500, 2000)}
TIMES, LATE = np.linspace(0, TIME, 51), np.linspace(0, STOPPED_TIME, 51)


def setting(width: int = WIDTH) -> tuple[Problem, Weights]:
    """Return regression on a linear teacher, from Gaussian features and a small head."""
    from langevin import gaussian_gram, linear_teacher

    problem = linear_teacher(SAMPLES, DIM, activation="linear", rng=0)
    root = width**0.5
    return problem, gaussian_gram(problem, width, scale=SCALE / root, head_scale=HEAD / root, rng=0)


def compute(quick: bool = False) -> xr.Dataset:
    """Compute mean losses above the minimum, with exact values, bounds and estimates."""
    import xarray as xr

    paths, steps = output.chosen(SETTINGS, quick).values()
    found = {}
    for panel in (_probing, _tuning, _stopped, _conserved):
        found |= panel(paths, steps)
    coords = {
        "time": ("time", TIMES, {"units": "diffusion time"}),
        "late": ("late", LATE, {"units": "diffusion time"}),
        "strategy": ["FFT", "LP-FFT"],
        "side": ["lower", "upper"],
        "lp_sigma": list(LP_SIGMAS),
        "fft_sigma": list(FFT_SIGMAS),
    }
    return xr.Dataset(found, coords)


def entry(dims: str, values: Any, what: str, units: str = "loss") -> tuple[Any, ...]:
    """Return a variable of the data: dimensions, values and attributes."""
    return dims.split(), np.array(values), {"long_name": what, "units": units}


def minimum() -> float:
    """Return the minimum of the loss over all weights."""
    problem, _ = setting()
    beta = np.linalg.lstsq(problem.X, problem.y)[0]
    return float(problem.losses(problem.X @ beta).sum())


def mean_loss(
    width: int, schedule: Schedule, times: Any, paths: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean loss above the minimum, and its standard error."""
    from langevin import euler_maruyama

    dt = schedule.duration / steps
    loss = euler_maruyama(*setting(width), schedule, dt=dt, paths=paths, rng=1, times=times).loss
    return loss.mean("path").values - minimum(), loss.std("path", ddof=1).values / paths**0.5


def _probing(paths: int, steps: int) -> dict[str, Any]:
    import bounds

    schedules = [Schedule.lp(time=TIME, sigma=sigma) for sigma in LP_SIGMAS]
    mean, error = zip(*(mean_loss(WIDTH, s, TIMES, paths, steps) for s in schedules), strict=True)
    exact = [bounds.lp_expected_loss(*setting(), s, TIMES).upper - minimum() for s in schedules]
    return {
        "lp_mean": entry("lp_sigma time", mean, "mean loss, linear probing"),
        "lp_error": entry("lp_sigma time", error, "its standard error"),
        "lp_exact": entry("lp_sigma time", exact, "expected loss (5a)"),
    }


def _tuning(paths: int, steps: int) -> dict[str, Any]:
    import bounds

    schedules = [Schedule.fft(time=TIME, sigma=sigma) for sigma in FFT_SIGMAS]
    mean, error = zip(*(mean_loss(WIDTH, s, TIMES, paths, steps) for s in schedules), strict=True)
    upper = [bounds.fft_expected_loss(*setting(), s, TIMES).upper - minimum() for s in schedules]
    first = [bounds.first_order_loss(*setting(), s, TIMES).value - minimum() for s in schedules]
    return {
        "fft_mean": entry("fft_sigma time", mean, "mean loss, full fine-tuning"),
        "fft_error": entry("fft_sigma time", error, "its standard error"),
        "fft_upper": entry("fft_sigma time", upper, "upper bound (5c)"),
        "fft_first": entry("fft_sigma time", first, "first order in the noise (section 8)"),
    }


def _stopped(paths: int, steps: int) -> dict[str, Any]:
    """Compute losses of all paths and of those that have crossed no level of `bounds.localised_loss`.

    A chain of single neurons: the levels are of the weights, which runs do not record.
    """
    import bounds

    problem, weights = setting()
    random = np.random.default_rng(1)
    X, target = problem.X, problem.X.T @ problem.y
    H, floor = X.T @ X, minimum()
    # any network with this Gram matrix gives the same law
    W, v = np.zeros((paths, WIDTH, DIM)), np.zeros((paths, WIDTH))
    W[:, : len(weights.W)], v[:, : len(weights.v)] = weights.W, weights.v
    dt = STOPPED_TIME / steps
    spread = STOPPED_SIGMA * np.sqrt(2 * dt)
    kappa = most = 0.0
    going, rows = np.ones(paths, dtype=bool), []
    for step in range(steps + 1):
        gram, head = W.swapaxes(1, 2) @ W, (v**2).sum(1)
        least = np.linalg.eigvalsh(gram)[:, 0] + head
        trace = (gram * H).sum((1, 2)) + head * np.trace(H)
        if step == 0:
            # the default levels of localised_loss
            kappa, most = least[0] / 2, 2 * trace[0]
        going &= (least >= kappa) & (trace <= most)
        beta = (v[:, None] @ W)[:, 0]
        if step % (steps // (len(LATE) - 1)) == 0:
            loss = problem.losses(beta @ X.T).sum(1) - floor
            left = loss * going
            rows.append([loss.mean(), left.mean(), left.std(ddof=1) / paths**0.5, going.mean()])
        pull = target - beta @ H
        W, v = (
            W + dt * v[:, :, None] * pull[:, None] + spread * random.standard_normal(W.shape),
            v + dt * (W @ pull[:, :, None])[..., 0] + spread * random.standard_normal(v.shape),
        )
    everyone, left, error, share = np.transpose(rows)
    schedule = Schedule.fft(time=STOPPED_TIME, sigma=STOPPED_SIGMA)
    upper = bounds.localised_loss(problem, weights, schedule, LATE).upper
    return {
        "all_mean": entry("late", everyone, "mean loss of all paths"),
        "going_mean": entry("late", left, "mean loss, 0 for stopped paths"),
        "going_error": entry("late", error, "its standard error"),
        "going_share": entry("late", share, "share of paths that are not stopped", "1"),
        "going_upper": entry("late", upper, "upper bound (5b)"),
    }


def _conserved(paths: int, steps: int) -> dict[str, Any]:
    import bounds
    from langevin import zeroth_order

    schedules = [Schedule.fft(time=TIME), Schedule.lp_fft(lp_time=LP_TIME, fft_time=TIME - LP_TIME)]
    flows = [zeroth_order(*setting(), s, times=TIMES, rtol=1e-11, atol=1e-13).loss for s in schedules]
    bands = [bounds.conserved_rates(*setting(), s, TIMES) for s in schedules]
    sides = [[band.lower - minimum(), band.upper - minimum()] for band in bands]
    return {
        "flow": entry("strategy time", [flow - minimum() for flow in flows], "zeroth-order loss"),
        "conserved": entry("strategy side time", sides, "its bounds (4c)"),
    }


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot probing and full fine-tuning (top), stopped paths and no noise (bottom)."""
    lp, fft, stopped, flow = ax.flat
    panels = ((lp, "lp", LP_SIGMAS, "lp_exact"), (fft, "fft", FFT_SIGMAS, "fft_upper"))
    for a, name, sigmas, theory in panels:
        for k, sigma in enumerate(sigmas):
            at, colour = {f"{name}_sigma": k}, plots.LEVELS[k]
            curve(a, data.time, data[f"{name}_mean"].isel(at), data[f"{name}_error"].isel(at), colour)
            a.plot(data.time, data[theory].isel(at), color=colour, linestyle="--", linewidth=1)
            a.plot([], [], color=colour, label=rf"$\sigma={sigma:g}$")
    lp.plot([], [], "k--", linewidth=1, label="exact (5a)")
    fft.plot([], [], "k--", linewidth=1, label="upper bound (5c)")
    for k in range(len(FFT_SIGMAS)):
        fft.plot(data.time, data.fft_first[k], "k:", linewidth=0.8, label=None if k else "first order")
    lp.set(title="linear probing, exact", yscale="log", ylabel=LOSS)
    fft.set(title="full fine-tuning, unconditional bound", yscale="log", ylim=(1e-4, 1e2))

    colour = plots.METHODS["fft"]
    stopped.plot(data.late, data.all_mean, "black", label="all paths")
    curve(stopped, data.late, data.going_mean, data.going_error, colour, "paths not stopped")
    stopped.plot(data.late, data.going_upper, color=colour, linestyle="--", label="bound on these (5b)")
    stopped.plot(data.late, data.going_share, "k:", label="share not stopped")
    stopped.set(title=rf"FFT, localised bound, $\sigma={STOPPED_SIGMA}$", yscale="log", ylabel=LOSS)

    for k, name in enumerate(data.strategy.values):
        low, high = data.conserved[k]
        colour = plots.method_colour(name)
        flow.fill_between(
            data.time, low, high, color=colour, alpha=0.2, linewidth=0, label=f"{name}, bounds (4c)"
        )
        # the lines almost coincide
        flow.plot(data.time, data.flow[k], color=colour, linewidth=(3.0, 1.2)[k], label=name)
    flow.set(title="no noise", yscale="log", ylim=(1e-6, 40))
    for a in ax.flat:
        a.set_xlabel("diffusion time")
        a.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))


def curve(ax: Any, x: Any, mean: Any, error: Any, colour: str, label: str | None = None) -> None:
    """Plot a mean with two standard errors on either side."""
    ax.fill_between(x, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.3, linewidth=0)
    ax.plot(x, mean, color=colour, label=label)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__, compute, draw, size=(7.2, 4.6), panels=(2, 2), thumbnail=1, settings=SETTINGS, argv=argv
    )


if __name__ == "__main__":
    streams.run(main)
