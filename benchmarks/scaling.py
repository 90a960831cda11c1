"""Measure how the cost of a step grows with samples, inputs, width and paths, and fit exponents.

``python -m benchmarks.scaling`` prints a table and saves it, with a figure, in ``benchmarks/results``.
``--quick`` is a short trial run that saves nothing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from benchmarks.harness import environment
from benchmarks.harness.tables import RESULTS, keep, table
from benchmarks.step import one_thread
from langevin.store import atomic

PATHS = 4
# Okabe and Ito's colours, which most people can distinguish
COLOURS = ("#0072B2", "#56B4E9", "#D55E00", "#009E73", "#E69F00", "#CC79A7")
MARKERS = "os^Dv*"

# from seconds to spend to seconds per step
Timer = Callable[[float], float]


@dataclass(frozen=True)
class Family:
    """Costs as a function of one size, all others fixed; ``series[name](size)`` prepares a `Timer`.

    Exponents are fitted where the size is within a factor ``fit`` of its largest.
    """

    title: str
    symbol: str
    sizes: Sequence[int]
    series: dict[str, Callable[[int], Timer]]
    fit: float = 8
    costs: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, seconds: float, rounds: int) -> None:
        """Time all series in turn, size by size, and keep medians."""
        for size in self.sizes:
            timers = {name: prepare(size) for name, prepare in self.series.items()}
            turns = [{name: timer(seconds) for name, timer in timers.items()} for _ in range(rounds)]
            for name in timers:
                self.costs.setdefault(name, []).append(float(np.median([turn[name] for turn in turns])))
            print(f"# {self.title}: {self.symbol} = {size}", flush=True)

    def exponent(self, name: str) -> float:
        """Return the slope of the logarithms over `fitted`."""
        first = len(self.sizes) - len(self.fitted)
        return float(np.polyfit(np.log(self.fitted), np.log(self.costs[name][first:]), 1)[0])

    @property
    def fitted(self) -> list[int]:
        """Return the sizes that exponents are fitted to."""
        return [size for size in self.sizes if size * self.fit >= self.sizes[-1]]


# --- measuring -------------------------------------------------------------------------------


def steps_of(
    name: str, reduce: str, shape: Callable[[int], tuple[int, int, int]], varies_paths: bool, size: int
) -> Timer:
    """Time steps of a contestant of `benchmarks.step`, with one path or, where paths vary, ``size`` paths."""
    from benchmarks.harness.contestants import Case, Contestant, Ours
    from benchmarks.peers.lineup import PEERS, US, best_paths, steps_within

    make: Any = Ours if name == US else PEERS[name].build
    build = partial(make, Case(*shape(size)), np.float64, reduce)
    paths = size if varies_paths else PATHS if name == US else best_paths(build, (1, PATHS), 0.01)
    contestant: Contestant = build(paths)
    steps: dict[float, int] = {}

    def timer(seconds: float) -> float:
        if seconds not in steps:
            steps[seconds] = steps_within(contestant, seconds)
        return contestant.advance(steps[seconds]) / steps[seconds] / (1 if varies_paths else paths)

    return timer


def whole_run(make: Callable[[int], tuple[Any, Any]], method: str, size: int) -> Timer:
    """Time whole calls of `langevin.euler_maruyama` for ``make(size)``, as the difference of two lengths."""
    from benchmarks.harness.contestants import CLIP, DT, SIGMA
    from langevin import Phase, Schedule, euler_maruyama

    problem, weights = make(size)

    def run(steps: int) -> float:
        schedule = Schedule([Phase(method, steps * DT, SIGMA, CLIP)])  # pyright: ignore[reportArgumentType]
        start = time.process_time()
        euler_maruyama(problem, weights, schedule, dt=DT, paths=PATHS, rng=0, times=[steps * DT], threads=1)
        return time.process_time() - start

    run(16)
    steps = 16

    def timer(seconds: float) -> float:
        nonlocal steps
        while True:
            elapsed = run(4 * steps) - run(steps)
            if elapsed > seconds or steps > 10**6:
                return elapsed / (3 * steps) / PATHS
            steps *= 4

    return timer


def linear_net(width: int) -> tuple[Any, Any]:
    """Return a linear network of any width on 64 samples in 16 dimensions."""
    from langevin import Problem, gaussian_gram

    rng = np.random.default_rng(0)
    problem = Problem(rng.standard_normal((64, 16)) / 4, rng.standard_normal(64), "linear", "square")
    return problem, gaussian_gram(problem, width, scale=1.0, rng=0)


def families() -> list[Family]:
    """Return all families, not yet measured."""
    from benchmarks.peers.lineup import PEERS, US

    rivals = [name for name in ("torchsde, fresh draws", "JAX scan") if PEERS[name].installed]

    def contestants(
        shape: Callable[[int], tuple[int, int, int]], reductions: Sequence[str], varies_paths: bool = False
    ) -> dict[str, Callable[[int], Timer]]:
        labels = {"none": ", full", "auto": ", reduced"} if len(reductions) > 1 else {"none": ""}
        return {
            f"{name}{labels[reduce]}": partial(steps_of, name, reduce, shape, varies_paths)
            for name in (US, *rivals)
            for reduce in reductions
        }

    def powers(largest: int) -> list[int]:
        return [2**power for power in range(4, largest + 1)]

    both, full = ("none", "auto"), ("none",)
    widths = [10**power for power in range(3, 10)]
    paths = [2**power for power in range(9)]
    linear = {
        f"{label}, our default": partial(whole_run, linear_net, method)
        for label, method in (("full fine-tuning", "fft"), ("linear probing", "lp"))
    }
    return [
        Family("samples, d = 64, h = 256", "n", powers(11), contestants(lambda n: (64, 256, n), full)),
        Family("inputs, h = 256, n = 64", "d", powers(12), contestants(lambda d: (d, 256, 64), both)),
        Family("width, d = 64, n = 64", "h", powers(12), contestants(lambda h: (64, h, 64), full)),
        Family("paths, 32, 128, 64", "paths", paths, contestants(lambda _: (32, 128, 64), full, True)),
        Family("linear networks by default, d = 16, n = 64", "h", widths, linear, fit=1e6),
    ]


# --- reporting -------------------------------------------------------------------------------


def report(record: dict[str, Any], measured: Sequence[Family]) -> str:
    """Return the table of exponents and of the cost at the largest size."""
    rows = [
        [
            family.title,
            name,
            f"**{family.exponent(name):.2f}**",
            f"{family.symbol} = {family.fitted[0]} to {family.fitted[-1]}",
            f"{1e6 * family.costs[name][-1]:.4g}",
        ]
        for family in measured
        for name in family.costs
    ]
    header = ["size varied", "contestant", "exponent", "fitted over", "µs per step at the largest"]
    return (
        f"# Growth of a step on {record['processor']}, one thread, {record['started']}\n\n"
        f"Double precision; per path, except where paths vary; load at the start {record['load'][0]}\n\n"
        + table(header, rows)
        + "\n"
    )


def draw(measured: Sequence[Family]) -> Any:
    """Draw a log-log figure with a panel for each family."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, -(-len(measured) // 2), figsize=(13, 7.5), layout="constrained")
    for ax in axes.flat[len(measured) :]:
        ax.set_axis_off()
    for ax, family in zip(axes.flat, measured, strict=False):
        for number, (name, costs) in enumerate(family.costs.items()):
            label = f"{name}: {family.exponent(name):.2f}"
            style = dict(color=COLOURS[number], marker=MARKERS[number], markersize=4, linewidth=1.2)
            ax.loglog(family.sizes, 1e6 * np.array(costs), label=label, **style)
        ax.axvspan(family.fitted[0], family.fitted[-1], color="0.93", zorder=0)
        unit = "µs per step" if family.symbol == "paths" else "µs per step and path"
        ax.set(title=family.title, xlabel=family.symbol, ylabel=unit)
        ax.legend(title="exponent, fitted in grey", fontsize=8, title_fontsize=8, frameon=False)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description="Time growth.")
    parser.add_argument("--quick", action="store_true", help="short trial run: small sizes, nothing is saved")
    quick = parser.parse_args().quick
    with one_thread():
        record = environment.describe()
        measured = families()
        if quick:
            measured = [replace(f, sizes=f.sizes[:2]) for f in measured]
        for family in measured:
            family.measure(*((0.0, 1) if quick else (0.03, 3)))
    record["families"] = [
        {
            "title": family.title,
            "symbol": family.symbol,
            "sizes": list(family.sizes),
            "fitted": family.fitted,
            "series": {
                name: {"seconds": costs, "exponent": family.exponent(name)}
                for name, costs in family.costs.items()
            },
        }
        for family in measured
    ]
    text = report(record, measured)
    print("\n" + text)
    if not quick:
        name = f"scaling-{environment.slug()}"
        keep(name, record, text)
        with atomic.replacing(RESULTS / f"{name}.png") as temporary:
            draw(measured).savefig(temporary, dpi=120)


if __name__ == "__main__":
    main()
