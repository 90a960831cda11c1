"""Linear networks with noise, without the approximation.

The figure shows the mean square loss above its minimum, simulated (solid; shades are two standard errors)
and by theory. In linear probing the expected loss is known exactly (5a, re-derived, replaces Section 5.2 of
the paper). In full fine-tuning the unconditional bound (5c, new) stays within a small factor of the
simulation where noise is small, and grows without limit where it can no longer exclude that the kernel
collapses. The localised bound (5b, re-derived) levels off, but it applies only to paths that have not yet
crossed a level, and few of these remain at the end; the other paths perform equally well here. Without
noise, conserved quantities (4c, new) enclose the loss, starting from its exact value after probing: the
upper bound is close, the lower bound is far below. Through its Gram matrix (7c, new) a network of a hundred
billion neurons is simulated like one of ten thousand. The first order in the noise (section 8, new) is an
estimate and not a bound. It is accurate while ``sigma^2 h`` is small; beyond that, noise in so many neurons
makes the loss decrease faster, by less than the estimate predicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output
from langevin.model.schedule import Schedule
from langevin.support import streams

if TYPE_CHECKING:
    import xarray as xr

    from langevin.model.problem import Problem
    from langevin.model.weights import Weights

SAMPLES, DIM, WIDTH, TIME = 32, 2, 64, 0.05
# root mean square norms of the first layer and of the head; with these the kernel starts far from 0
SCALE, HEAD = 4.0, 0.05
LP_SIGMAS, FFT_SIGMAS, ORDER_SIGMAS = (0.05, 0.2, 0.8), (0.02, 0.1, 0.3), (0.003, 0.01, 0.03)
LP_TIME = 0.1 * TIME
STOPPED_SIGMA, STOPPED_TIME = 0.6, 0.125
WIDE_SIGMA, WIDE_TIME = 1e-4, 0.2 * TIME
WIDTHS = np.round(10.0 ** np.arange(4, 11.5, 0.5))
ORDER_WIDTH = 10**4
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
    for panel in (_probing, _tuning, _stopped, _conserved, _wide, _order):
        found |= panel(paths, steps)
    coords = {
        "time": ("time", TIMES, {"units": "diffusion time"}),
        "late": ("late", LATE, {"units": "diffusion time"}),
        "width": WIDTHS,
        "strategy": ["FFT", "LP-FFT"],
        "side": ["lower", "upper"],
        "lp_sigma": list(LP_SIGMAS),
        "fft_sigma": list(FFT_SIGMAS),
        "order_sigma": list(ORDER_SIGMAS),
    }
    return xr.Dataset(found, coords)


def _entry(dims: str, values: Any, what: str, units: str = "loss") -> tuple[Any, ...]:
    return dims.split(), np.array(values), {"long_name": what, "units": units}


def _floor() -> float:
    """Return the minimum of the loss over all weights."""
    problem, _ = setting()
    beta = np.linalg.lstsq(problem.X, problem.y)[0]
    return float(problem.losses(problem.X @ beta).sum())


def _mean(
    width: int, schedule: Schedule, times: Any, paths: int, steps: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean loss above the minimum, and its standard error."""
    from langevin import euler_maruyama

    dt = schedule.duration / steps
    loss = euler_maruyama(*setting(width), schedule, dt=dt, paths=paths, rng=1, times=times).loss
    return loss.mean("path").values - _floor(), loss.std("path", ddof=1).values / paths**0.5


def _probing(paths: int, steps: int) -> dict[str, Any]:
    import bounds

    schedules = [Schedule.lp(time=TIME, sigma=sigma) for sigma in LP_SIGMAS]
    mean, error = zip(*(_mean(WIDTH, s, TIMES, paths, steps) for s in schedules), strict=True)
    exact = [bounds.lp_expected_loss(*setting(), s, TIMES).upper - _floor() for s in schedules]
    return {
        "lp_mean": _entry("lp_sigma time", mean, "mean loss, linear probing"),
        "lp_error": _entry("lp_sigma time", error, "its standard error"),
        "lp_exact": _entry("lp_sigma time", exact, "expected loss (5a)"),
    }


def _tuning(paths: int, steps: int) -> dict[str, Any]:
    import bounds

    schedules = [Schedule.fft(time=TIME, sigma=sigma) for sigma in FFT_SIGMAS]
    mean, error = zip(*(_mean(WIDTH, s, TIMES, paths, steps) for s in schedules), strict=True)
    upper = [bounds.fft_expected_loss(*setting(), s, TIMES).upper - _floor() for s in schedules]
    first = [bounds.first_order_loss(*setting(), s, TIMES).value - _floor() for s in schedules]
    return {
        "fft_mean": _entry("fft_sigma time", mean, "mean loss, full fine-tuning"),
        "fft_error": _entry("fft_sigma time", error, "its standard error"),
        "fft_upper": _entry("fft_sigma time", upper, "upper bound (5c)"),
        "fft_first": _entry("fft_sigma time", first, "first order in the noise (section 8)"),
    }


def _stopped(paths: int, steps: int) -> dict[str, Any]:
    """Compute losses of all paths and of those that have crossed no level of `bounds.localised_loss`.

    A chain of single neurons: the levels are of the weights, which runs do not record.
    """
    import bounds

    problem, weights = setting()
    random = np.random.default_rng(1)
    X, target = problem.X, problem.X.T @ problem.y
    H, floor = X.T @ X, _floor()
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
        "all_mean": _entry("late", everyone, "mean loss of all paths"),
        "going_mean": _entry("late", left, "mean loss, 0 for stopped paths"),
        "going_error": _entry("late", error, "its standard error"),
        "going_share": _entry("late", share, "share of paths that are not stopped", "1"),
        "going_upper": _entry("late", upper, "upper bound (5b)"),
    }


def _conserved(paths: int, steps: int) -> dict[str, Any]:
    import bounds
    from langevin import zeroth_order

    schedules = [Schedule.fft(time=TIME), Schedule.lp_fft(lp_time=LP_TIME, fft_time=TIME - LP_TIME)]
    flows = [zeroth_order(*setting(), s, times=TIMES, rtol=1e-11, atol=1e-13).loss for s in schedules]
    bands = [bounds.conserved_rates(*setting(), s, TIMES) for s in schedules]
    sides = [[band.lower - _floor(), band.upper - _floor()] for band in bands]
    return {
        "flow": _entry("strategy time", [flow - _floor() for flow in flows], "zeroth-order loss"),
        "conserved": _entry("strategy side time", sides, "its bounds (4c)"),
    }


def _wide(paths: int, steps: int) -> dict[str, Any]:
    import bounds
    from langevin import zeroth_order

    schedule, dt = Schedule.fft(time=WIDE_TIME, sigma=WIDE_SIGMA), WIDE_TIME / steps
    rows = []
    for width in WIDTHS.astype(int).tolist():
        mean, error = _mean(width, schedule, [WIDE_TIME], paths, steps)
        # this includes the discretisation error of the simulation
        zeroth = zeroth_order(*setting(width), schedule, times=[WIDE_TIME], dt=dt).loss.values - _floor()
        first = bounds.first_order_loss(*setting(width), schedule, [WIDE_TIME]).correction
        rows.append([mean / zeroth, error / zeroth, 1 + first / zeroth])
    mean, error, first = np.array(rows)[..., 0].T
    return {
        "wide_mean": _entry("width", mean, "mean loss over its zeroth order", "1"),
        "wide_error": _entry("width", error, "its standard error", "1"),
        "wide_first": _entry("width", first, "the same to first order in the noise (section 8)", "1"),
    }


def _order(paths: int, steps: int) -> dict[str, Any]:
    import bounds
    from langevin import zeroth_order

    effects, errors, first = [], [], np.zeros(len(TIMES))
    for sigma in ORDER_SIGMAS:
        schedule = Schedule.fft(time=TIME, sigma=sigma)
        mean, error = _mean(ORDER_WIDTH, schedule, TIMES, 4 * paths, steps)
        zeroth = zeroth_order(*setting(ORDER_WIDTH), schedule, times=TIMES, dt=TIME / steps).loss.values
        effects.append((mean + _floor() - zeroth) / sigma**2)
        errors.append(error / sigma**2)
        first = bounds.first_order_loss(*setting(ORDER_WIDTH), schedule, TIMES).correction / sigma**2
    what = "effect of the noise on the mean loss, over sigma^2"
    return {
        "order_mean": _entry("order_sigma time", effects, what, "loss / sigma^2"),
        "order_error": _entry("order_sigma time", errors, "its standard error", "loss / sigma^2"),
        "order_first": _entry("time", first, "its limit (section 8)", "loss / sigma^2"),
    }


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot probing, full fine-tuning, stopped paths (top); no noise, width, first order (bottom)."""
    lp, fft, stopped, flow, wide, order = ax.flat

    def simulated(a: Any, x: Any, name: str, colour: str, label: str, **at: int) -> None:
        mean, error = data[f"{name}_mean"].isel(at), data[f"{name}_error"].isel(at)
        a.fill_between(x, mean - 2 * error, mean + 2 * error, color=colour, alpha=0.3, linewidth=0)
        a.plot(x, mean, color=colour, label=label)

    for a, name, sigmas in ((lp, "lp", LP_SIGMAS), (fft, "fft", FFT_SIGMAS), (order, "order", ORDER_SIGMAS)):
        for k, sigma in enumerate(sigmas):
            simulated(a, data.time, name, f"C{k}", rf"$\sigma={sigma:g}$", **{f"{name}_sigma": k})
    for k in range(len(LP_SIGMAS)):
        lp.plot(data.time, data.lp_exact[k], "k--", linewidth=0.8, label=None if k else "exact (5a)")
        fft.plot(data.time, data.fft_upper[k], f"C{k}--", linewidth=1, label=None if k else "bound (5c)")
        fft.plot(data.time, data.fft_first[k], "k:", linewidth=0.8, label=None if k else "first order")
    lp.set(title="linear probing, exact", yscale="log", ylabel="loss above its minimum")
    fft.set(title="full fine-tuning, unconditional bound", yscale="log", ylim=(1e-4, 1e4))

    stopped.plot(data.late, data.all_mean, "C3", label="all paths")
    simulated(stopped, data.late, "going", "C0", "paths not stopped")
    stopped.plot(data.late, data.going_upper, "C0--", label="bound on these (5b)")
    stopped.plot(data.late, data.going_share, "k:", label="share not stopped")
    stopped.set(title=rf"localised bound, $\sigma={STOPPED_SIGMA}$", yscale="log")

    for k, name in enumerate(data.strategy.values):
        low, high = data.conserved[k]
        flow.fill_between(
            data.time, low, high, color=f"C{k}", alpha=0.25, linewidth=0, label=f"{name}, bounds (4c)"
        )
        flow.plot(data.time, data.flow[k], color=f"C{k}", label=name)
    flow.set(title="no noise", yscale="log", ylim=(1e-6, 40), ylabel="loss above its minimum")

    simulated(wide, data.width, "wide", "C0", "simulated")
    wide.plot(data.width, data.wide_first, "k:", label="first order")
    wide.set(
        title=rf"any width, $\sigma=10^{{-4}}$, time {WIDE_TIME:g}",
        xscale="log",
        xlabel="width $h$",
        ylim=(0, 1.1),
    )
    wide.set(ylabel="loss / its zeroth order")
    order.plot(data.time, data.order_first, "k:", label="first order")
    order.set(title=f"width {ORDER_WIDTH}", ylabel=r"(loss $-$ zeroth order) / $\sigma^2$")
    for a in ax.flat:
        a.legend(fontsize=6)
        if a is not wide:
            a.set_xlabel("diffusion time")


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(__file__, compute, draw, size=(7.2, 4.6), panels=(2, 3), settings=SETTINGS, argv=argv)


if __name__ == "__main__":
    streams.run(main)
