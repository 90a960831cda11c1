"""The influence of the clipping norm on loss and accuracy at a fixed privacy budget.

The noise grows with the clipping norm, so that the zCDP budget and the number of steps stay the same. This is
not in the paper and is new here. (a) At a fixed time (learning rate times steps) there is a best clipping
norm: below it training hardly starts, and above it noise dominates. (b) With the best time for each clipping
norm, normalised clipping no longer depends on it, since clipping norm and time then enter only as a product,
and flat clipping improves as the clipping norm decreases. (c) Accuracy at the fixed time. (d) Real DP-SGD on
rotated digits (means of {seeds} seeds, bars of two standard errors; rates chosen by training accuracy)
behaves similarly: with tuned learning rates, the accuracy of every method stays within {near:g} points of its
best for clipping norms from {low:.2g} to {high:.2g}; with one rate it has a sharp peak.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from figures import output, wording
from langevin.model.schedule import Schedule
from langevin.support import plots, streams

if TYPE_CHECKING:
    import xarray as xr

    from empirical.recipe import Method
    from langevin.model.problem import Problem
    from langevin.model.schedule import Clipping
    from langevin.model.weights import Weights

SAMPLES, DIM, WIDTH, SPREAD, TEST = 32, 16, 64, 0.4, 200
# zCDP of a whole run, and the number of full-batch steps
RHO, STEPS = 0.2, 100
CLIPS = 10.0 ** np.arange(-2, 1.5, 0.5)
TIMES = 10.0 ** np.arange(-2.5, 3.5, 0.5)
TIME = 1.0
STRATEGIES = {"FFT": 0.0, "LP-FFT": 0.4, "LP": 1.0}
CLIPPINGS: tuple[Clipping, ...] = ("flat", "normalised")
# real DP-SGD: Poisson-sampled steps at learning rates in multiples of 1 / clip, or at one rate
EPSILON, ROTATION, RATE = 1.0, 20.0, 0.3
DIGIT_CLIPS = 10.0 ** np.arange(-2, 2.5, 0.5)
RATES = np.array([0.03, 0.1, 0.3, 1.0])
# accuracies that the caption calls close
NEAR = 0.05
METHODS: dict[Method, str] = {"fft": "FFT", "lp-fft": "LP-FFT", "lp": "LP"}


def sigma(clip: float, time: float) -> float:
    """Return the noise that spends the budget in a given time."""
    return clip * (time / (4 * RHO)) ** 0.5


def schedule(clip: float, time: float, share: float, clipping: Clipping) -> Schedule:
    """Return a schedule of whole steps, with the noise that the budget requires."""
    probing, dt = round(share * STEPS), time / STEPS
    return Schedule.lp_fft(
        lp_time=probing * dt,
        fft_time=(STEPS - probing) * dt,
        sigma=sigma(clip, time),
        clip=clip,
        clipping=clipping,
    )


def grid(quick: bool) -> dict[str, Any]:
    """Return the values of everything that is varied."""
    # clipping norms and times have the same ratios, so that their products are on the grid
    thin = 2 if quick else 1
    return {
        "threshold": CLIPS[::thin],
        "time": np.union1d(TIMES[::thin], TIME),
        "share": np.array(list(STRATEGIES.values())),
        "digit_threshold": DIGIT_CLIPS[[0, 4, 6, 8]] if quick else DIGIT_CLIPS,
        "rate": RATES[[2]] if quick else RATES,
    }


def _settings() -> output.Settings:
    coarse, full = grid(True), grid(False)
    names = {
        "threshold": "thresholds",
        "time": "times",
        "digit_threshold": "thresholds on digits",
        "rate": "learning rates",
    }
    swept = {words: (len(coarse[name]), len(full[name])) for name, words in names.items()}
    return {"paths": (16, 48), "seeds of DP-SGD": (2, 4)} | swept


SETTINGS = _settings()


def compute(quick: bool = False) -> xr.Dataset:
    """Compute simulated losses and accuracies by clipping norm and time, and real accuracies."""
    import xarray as xr

    at = grid(quick)
    data = xr.Dataset(simulated(at, quick) | _digits(at, quick), at)
    for name, units in {
        "threshold": "gradient",
        "time": "diffusion time",
        "digit_threshold": "gradient",
    }.items():
        data[name].attrs["units"] = units
    return data.assign_coords(clipping=list(CLIPPINGS), strategy=list(METHODS.values()))


def setting() -> tuple[Problem, Weights]:
    """Return the data and weights of the simulations."""
    from langevin import collapsed_features, orthogonally_separable

    problem = orthogonally_separable(SAMPLES, DIM, spread=SPREAD, test_samples=TEST, rng=0)
    return problem, collapsed_features(problem, WIDTH, rng=0)


def simulated(at: dict[str, Any], quick: bool) -> dict[str, Any]:
    """Return mean losses, accuracies and shares of distorted neurons of the diffusion."""
    from langevin import euler_maruyama

    problem, weights = setting()
    paths = output.chosen(SETTINGS, quick)["paths"]
    shape = (len(CLIPPINGS), len(at["threshold"]), len(at["time"]), len(at["share"]))
    loss, error, accuracy, distorted = (np.zeros(shape) for _ in range(4))
    for c, k, t, s in np.ndindex(shape):
        plan = schedule(at["threshold"][k], at["time"][t], at["share"][s], CLIPPINGS[c])
        run = euler_maruyama(
            problem,
            weights,
            plan,
            dt=at["time"][t] / STEPS,
            times=[plan.duration],
            paths=paths,
            rng=1,
            observables=["test_accuracy", "distorted"],
        ).isel(time=-1)
        loss[c, k, t, s] = run.loss.mean() / SAMPLES
        error[c, k, t, s] = run.loss.std(ddof=1) / SAMPLES / paths**0.5
        accuracy[c, k, t, s], distorted[c, k, t, s] = run.test_accuracy.mean(), run.distorted.mean()
    everywhere = ("clipping", "threshold", "time", "share")
    return {
        "loss": (everywhere, loss, {"long_name": "mean final loss per sample", "units": "loss"}),
        "error": (everywhere, error, {"long_name": "its standard error", "units": "loss"}),
        "accuracy": (everywhere, accuracy, {"long_name": "mean final test accuracy", "units": "1"}),
        "distorted": (everywhere, distorted, {"long_name": "share of distorted neurons", "units": "1"}),
    }


def _digits(at: dict[str, Any], quick: bool) -> dict[str, Any]:
    from empirical.data.shift import Shift
    from empirical.recipe import Recipe
    from empirical.studies.grid import compute_cell
    from empirical.studies.setting import Setting

    setting = Setting("digits", shift=Shift(rotation=ROTATION))
    clips, rates, seeds = (
        at["digit_threshold"],
        at["rate"],
        range(output.chosen(SETTINGS, quick)["seeds of DP-SGD"]),
    )
    fixed = np.zeros((len(METHODS), len(clips), len(seeds)))
    tuned = fixed.copy()
    for m, method in enumerate(METHODS):
        for k, clip in enumerate(clips):

            def cells(lr: float, method: Method = method, clip: float = clip) -> list[dict[str, float]]:
                recipe = Recipe(method, steps=STEPS, epsilon=EPSILON, clip=clip, lr=lr)
                return [compute_cell(setting, recipe, seed) for seed in seeds]

            fixed[m, k] = [cell["test_accuracy"] for cell in cells(RATE)]
            found = [cells(rate / clip) for rate in rates]
            # selected by training accuracy, not by the test accuracy that is shown
            best = max(found, key=lambda row: sum(cell["train_accuracy"] for cell in row))
            tuned[m, k] = [cell["test_accuracy"] for cell in best]
    entries = {}
    for name, values in {"fixed": fixed, "tuned": tuned}.items():
        what = {"long_name": f"test accuracy on digits, {name} learning rate", "units": "1"}
        entries[f"digits_{name}"] = (("strategy", "digit_threshold"), values.mean(-1), what)
        spread = values.std(-1, ddof=1) / len(seeds) ** 0.5
        what = {"long_name": "its standard error", "units": "1"}
        entries[f"digits_{name}_error"] = (("strategy", "digit_threshold"), spread, what)
    return entries


def caption(data: xr.Dataset) -> dict[str, object]:
    """Return what the caption quotes."""
    behind = data.digits_tuned.max("digit_threshold") - data.digits_tuned
    near = data.digit_threshold.where((behind < NEAR).all("strategy"), drop=True)
    return {
        "seeds": wording.counts(data)["seeds of DP-SGD"],
        "near": 100 * NEAR,
        "low": float(near.min()),
        "high": float(near.max()),
    }


def draw(ax: Any, data: xr.Dataset) -> None:
    """Plot loss at one time and at the best time (top), accuracy in simulation and on digits (bottom)."""
    one, best, accuracy, digits = ax.flat
    now = data.sel(time=TIME)
    place = data.loss.argmin("time")
    for name, part in STRATEGIES.items():
        for clipping, style in zip(CLIPPINGS, ("-", "--"), strict=True):
            at: Any = {"clipping": clipping, "share": part}
            line: Any = {"color": plots.method_colour(name), "linestyle": style}
            x, mean, error = data.threshold, data.loss, data.error
            one.errorbar(x, mean.sel(at).sel(time=TIME), 2 * error.sel(at).sel(time=TIME), **line)
            chosen = place.sel(at)
            best.errorbar(x, mean.sel(at).isel(time=chosen), 2 * error.sel(at).isel(time=chosen), **line)
            accuracy.plot(x, now.accuracy.sel(at), **line)
    one.set(title=f"simulated, time {TIME:g}", ylabel="final loss / sample", yscale="log")
    best.set(title="simulated, best time", ylabel="final loss / sample", yscale="log")
    accuracy.set(title=f"simulated, time {TIME:g}", ylabel="test accuracy")
    for name in data.strategy.values:
        d = data.sel(strategy=name)
        for kind, style in (("tuned", "-"), ("fixed", ":")):
            mean, error = d[f"digits_{kind}"], d[f"digits_{kind}_error"]
            line = {"color": plots.method_colour(name), "linestyle": style}
            digits.errorbar(d.digit_threshold, mean, 2 * error, **line)
    digits.set(title=rf"digits, DP-SGD, $\varepsilon={EPSILON:g}$", ylabel="test accuracy", ylim=(0, 0.92))
    keys = {name: {"color": plots.method_colour(name)} for name in STRATEGIES}
    keys |= {"flat clipping, tuned rate": {"color": plots.OTHER}}
    keys |= {"normalised": {"color": plots.OTHER, "linestyle": "--"}}
    keys |= {"one learning rate (digits)": {"color": plots.OTHER, "linestyle": ":"}}
    draw_key(ax, keys)


def draw_key(ax: Any, keys: dict[str, dict[str, Any]]) -> None:
    """Explain lines below the panels, and label the axes of clipping norms."""
    from matplotlib.lines import Line2D

    for a in ax.flat:
        a.set(xscale="log", xlabel="clipping norm $C$")
    handles = [Line2D([], [], **line) for line in keys.values()]
    ax.flat[0].figure.legend(handles, list(keys), loc="outside lower center", ncols=3)


def main(argv: list[str] | None = None) -> int:
    """Make the figure."""
    return output.run(
        __file__,
        compute,
        draw,
        size=(6.6, 5.0),
        panels=(2, 2),
        thumbnail=3,
        settings=SETTINGS,
        caption=caption,
        argv=argv,
    )


if __name__ == "__main__":
    streams.run(main)
