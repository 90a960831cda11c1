"""Time a step of many paths on a GPU against the GPU's floor and torchsde on the same GPU, in one run.

``python -m benchmarks.gpu`` prints tables and saves them in ``benchmarks/results``. ``--quick`` is a short
trial run that saves nothing; without a GPU it uses the plain form of the step on this processor.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks import environment
from benchmarks.contestants import CLIP, DT, SIGMA, Case
from benchmarks.peers.torchsde_euler import TorchDrift, sde
from benchmarks.tables import keep, table
from langevin import Schedule, euler_maruyama
from langevin._device import DeviceChain, Ensemble
from langevin._engine import Chain

# inputs, width, samples; paths; reduction
CASES = (
    ((20, 64, 50), 4096, "none"),
    ((32, 512, 128), 1024, "none"),
    ((784, 512, 200), 64, "none"),
    ((784, 512, 200), 64, "auto"),
)
PRECISIONS = {"double": np.float64, "single": np.float32}
TOLERANCES = {"double": 1e-10, "single": 1e-3}
OURS, OWN, FRESH = "us", "torchsde", "torchsde, fresh draws"


@dataclass(frozen=True)
class Effort:
    """Settings that determine how long to measure."""

    cases: tuple[tuple[tuple[int, int, int], int, str], ...]
    rounds: int
    seconds: float  # per contestant and round
    square: int  # rows of the large product that determines the matrix rate
    copied: int  # bytes of the copy that determines the bandwidth
    run: tuple[int, int]  # steps and records of the whole run


FULL = Effort(CASES, 5, 0.25, 8192, 2**31, (4000, 101))
QUICK = Effort((((20, 64, 50), 8, "none"), ((30, 16, 8), 8, "auto")), 2, 0.01, 256, 2**20, (20, 3))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Time a step on a GPU.")
    parser.add_argument("--quick", action="store_true", help="short trial run: small sizes, nothing is saved")
    quick = parser.parse_args().quick
    there = torch.cuda.is_available()
    if not there and not quick:
        parser.error("no CUDA GPU found: use --quick")
    device = torch.device("cuda" if there else "cpu")
    effort = QUICK if quick else FULL
    torch.set_float32_matmul_precision("highest")
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if there else "cpu",
        "machine": environment.describe(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "cases": [],
    }
    if there:
        record["machine"]["versions"]["cuda"] = torch.version.cuda
    for shape, paths, reduce in effort.cases:
        for precision in PRECISIONS:
            record["cases"].append(measure(Case(*shape), paths, reduce, precision, device, effort))
    if there:
        record["run"] = whole_run(Case(*effort.cases[-2][0]), effort.cases[-2][1], effort)
    text = "\n\n".join(tables(record))
    print("\n" + text)
    if not quick:
        keep(f"gpu-{environment.slug(record['device'])}", record, f"{title(record)}\n\n{text}")


def _kind(like: torch.Tensor) -> dict[str, Any]:
    return dict(dtype=like.dtype, device=like.device)


# --- contestants -----------------------------------------------------------------------------


class Ours:
    """Our contestant: the ensemble that a run on a device advances."""

    def __init__(self, case: Case, dtype: type, reduce: str, paths: int, device: torch.device) -> None:
        reduced = case.reduction(reduce)
        self.paths, self.device, self.span = paths, device, reduced.span
        chain = Chain.build(case.request, reduced, dtype, key=(1, 2))
        self.chain = DeviceChain.of(chain, device, 1)
        self.ensemble = self._start(self.chain)

    def _start(self, chain: DeviceChain) -> Ensemble:
        ensemble = Ensemble(chain, chain.start(0, self.paths), np.full(self.paths, -1))
        ensemble.enter(0)
        return ensemble

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        still: Any = replace(self.chain.without_noise(), grid=replace(self.chain.grid, dt=1.0))
        ensemble = self._start(still)
        ensemble.advance(1)
        moved = ensemble.theta[-1].cpu().numpy() - self.chain.records.origin
        drift_W, drift_v = self.chain.layout.unpack(moved)
        return drift_W.astype(np.float64), drift_v.astype(np.float64)

    def advance(self, steps: int) -> None:
        self.ensemble.advance(steps)

    def finite(self) -> bool:
        return bool((self.ensemble.diverged < 0).all())


class Drift(TorchDrift):
    """The peer's drift on a device."""

    def __init__(self, device: torch.device, *arguments: Any) -> None:
        super().__init__(*arguments)
        for name, value in vars(self).items():
            if isinstance(value, torch.Tensor):
                setattr(self, name, value.to(device))


class TorchSDE:
    """torchsde's Euler solver on the same batch of paths, with its own noise or fresh draws."""

    def __init__(
        self, case: Case, dtype: type, reduce: str, paths: int, device: torch.device, fresh: bool
    ) -> None:
        self.paths, self.fresh, self.span = paths, fresh, case.span(reduce)
        X, W = (self.span.coordinates(rows) for rows in (case.problem.X, case.weights.W))
        self.model = Drift(device, X, case.problem.y, case.width, CLIP, paths, dtype)
        self.state = self.model.pack(W, case.weights.v).to(device)

    def drift(self) -> tuple[np.ndarray, np.ndarray]:
        return self.model.unpack(self.model(self.state).cpu())

    def advance(self, steps: int) -> None:
        import torchsde

        y, end = self.state, steps * DT

        class Fresh:
            shape, dtype, device = y.shape, y.dtype, y.device
            levy_area_approximation = "none"

            def __call__(
                self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False
            ) -> Any:
                return torch.randn_like(y).mul_(DT**0.5)

        source: Any = (
            Fresh() if self.fresh else torchsde.BrownianInterval(0.0, end, y.shape, dt=DT, **_kind(y))
        )
        times = torch.tensor([0.0, end], dtype=torch.float64)
        with torch.no_grad():
            self.state = torchsde.sdeint(sde(self.model), y, times, bm=source, method="euler", dt=DT)[-1]

    def finite(self) -> bool:
        return bool(torch.isfinite(self.state).all())


# --- measuring -------------------------------------------------------------------------------


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that the device takes for ``work``."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    work()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1000


def seconds_each(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the seconds of one call among many in a row: the median of three measurements."""
    work()
    count = max(1, min(1000, round(seconds / 3 / max(seconds_of(work, device), 1e-6))))

    def all_of_them() -> None:
        for _ in range(count):
            work()

    if device.type == "cuda":
        # recorded in a graph, so that the launches are not timed
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            all_of_them()
        graph.replay()
        return float(np.median([seconds_of(graph.replay, device) for _ in range(3)])) / count
    return float(np.median([seconds_of(all_of_them, device) for _ in range(3)])) / count


def measure(
    case: Case, paths: int, reduce: str, precision: str, device: torch.device, effort: Effort
) -> dict[str, Any]:
    """Check all contestants, then time them in turn; seconds per step and path."""
    dtype = PRECISIONS[precision]
    contestants: dict[str, Any] = {OURS: Ours(case, dtype, reduce, paths, device)}
    for name in (OWN, FRESH):
        contestants[name] = TorchSDE(case, dtype, reduce, paths, device, name == FRESH)
    steps = {}
    for name, contestant in contestants.items():
        error = case.error(contestant)
        if not error < TOLERANCES[precision]:
            raise SystemExit(f"{name} computes another drift: relative error {error:.1e} at {case}")
        contestant.advance(20)
        elapsed = seconds_of(lambda c=contestant: c.advance(20), device)
        steps[name] = max(20, round(20 * effort.seconds / elapsed))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(effort.rounds):
        for name, contestant in contestants.items():
            elapsed = seconds_of(lambda c=contestant, n=steps[name]: c.advance(n), device)
            seconds[name].append(elapsed / steps[name] / paths)
    for name, contestant in contestants.items():
        assert contestant.finite(), name
    ensemble = contestants[OURS].ensemble
    rates, parts = measure_rates(ensemble, effort), measure_parts(ensemble, effort)
    n, k, h = ensemble.X.shape[1], ensemble.X.shape[2], case.width
    itemsize = ensemble.theta.element_size()
    result = {
        "shape": [case.inputs, case.width, case.samples],
        "inputs": k,
        "paths": paths,
        "precision": precision,
        "contestants": {
            name: {
                "steps": steps[name],
                "seconds": float(np.median(seconds[name])),
                "least": min(seconds[name]),
                "most": max(seconds[name]),
            }
            for name in contestants
        },
        "work": {"flops": 4 * n * k * h, "bytes": (3 * k + 4 * n) * h * itemsize, "normals": h * (k + 1)},
        "rates": rates,
        "parts": {name: value / paths for name, value in parts.items()},
    }
    print(json.dumps(result), flush=True)
    return result


def measure_rates(e: Ensemble, effort: Effort) -> dict[str, float]:
    """Measure rates per second: flops of the best product, bytes of a copy, our normals and torch's."""
    paths, n, k = e.X.shape
    h, like = e.v.shape[1], _kind(e.theta)
    X, rows = e.X[0].contiguous(), paths * h
    W, Z = torch.randn(rows, k, **like), torch.randn(rows, n, **like)
    WT, ZT = W.T.contiguous(), Z.T.contiguous()
    square = [torch.randn(effort.square, effort.square, **like) for _ in range(3)]
    flops = 2 * n * k * rows
    products = {
        "forward, batched": (lambda: torch.bmm(e.X, e.W, out=e.Z), flops),
        "forward, neurons in rows": (lambda: torch.mm(W, X.T, out=Z), flops),
        "forward, neurons in columns": (lambda: torch.mm(X, WT, out=ZT), flops),
        "backward, batched": (lambda: e.W.baddbmm_(e.X.mT, e.Z, alpha=-1e-30), flops),
        "backward, neurons in rows": (lambda: W.addmm_(Z, X, alpha=-1e-30), flops),
        "backward, neurons in columns": (lambda: WT.addmm_(X.T, ZT, alpha=-1e-30), flops),
        "square": (lambda: torch.mm(square[0], square[1], out=square[2]), 2 * effort.square**3),
    }
    found = {
        name: count / seconds_each(work, e.device, effort.seconds) for name, (work, count) in products.items()
    }
    source = torch.randn(effort.copied // e.theta.element_size(), **like)
    target = torch.empty_like(source)
    # a copy by a kernel: the copy engine, which a graph would use, is slower
    copy = seconds_each(lambda: torch.neg(source, out=target), e.device, effort.seconds)
    found["copy"] = 2 * effort.copied / copy
    found["torch normals"] = source.numel() / seconds_each(source.normal_, e.device, effort.seconds)
    return found


def measure_parts(e: Ensemble, effort: Effort) -> dict[str, float]:
    """Measure the seconds of each part of a step of all paths separately."""
    size = e.theta.shape[1]
    parts = {
        "forward product": e._preactivate,
        "rows": lambda: e.passes.rows(e, e.rule),
        "columns": lambda: e.passes.columns(e, True),
        "backward product": lambda: e.W.baddbmm_(e.X.mT, e.Z, alpha=-1e-30),
        "noise": lambda: e.passes.add_normals(e, size, e.rule, 0),
    }
    return {name: seconds_each(work, e.device, effort.seconds) for name, work in parts.items()}


def whole_run(case: Case, paths: int, effort: Effort) -> dict[str, Any]:
    """Time a run as a user starts it, with everything around its steps."""
    steps, records = effort.run
    schedule = Schedule.fft(time=steps * DT, sigma=SIGMA, clip=CLIP)
    times = np.linspace(0, schedule.duration, records)
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        euler_maruyama(
            case.problem,
            case.weights,
            schedule,
            dt=DT,
            paths=paths,
            rng=0,
            times=times,
            reduce="none",
            device="cuda",
        )
        seconds.append(time.perf_counter() - start)
    result = {
        "steps": steps,
        "records": records,
        "paths": paths,
        "seconds": min(seconds),
        "first": seconds[0],
    }
    print(json.dumps(result), flush=True)
    return result


# --- tables ----------------------------------------------------------------------------------


def floor(case: dict[str, Any]) -> tuple[float, float, float]:
    """Return seconds per step and path: products at their shapes' best rate, at a square's; traffic."""
    flops, rates = case["work"]["flops"], case["rates"]
    shaped = sum(flops / 2 / best(rates, side) for side in ("forward", "backward"))
    return shaped, flops / rates["square"], case["work"]["bytes"] / rates["copy"]


def best(rates: dict[str, float], side: str) -> float:
    """Return the best rate of a product in any layout."""
    return max(rate for name, rate in rates.items() if name.startswith(side))


def title(record: dict[str, Any]) -> str:
    """Return a heading with device, time and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in record["machine"]["versions"].items())
    return f"# A step on {record['device']}, {record['started']}\n\n{versions}"


def tables(record: dict[str, Any]) -> list[str]:
    """Return the tables of rates, floor and ratios, and parts, each with its caption."""
    steps, floors, parts = [], [], []
    for case in record["cases"]:
        label = [
            ", ".join(map(str, case["shape"])),
            f"{case['inputs']}; {case['paths']}; {case['precision']}",
        ]
        seconds = {name: c["seconds"] for name, c in case["contestants"].items()}
        ours = seconds[OURS]
        spread = [f"({1 / c['most']:.3g} to {1 / c['least']:.3g})" for c in case["contestants"].values()]
        steps.append(
            label
            + [f"**{1 / s:.3g}** {between}" for s, between in zip(seconds.values(), spread, strict=True)]
            + [f"{seconds[name] / ours:.1f}" for name in (OWN, FRESH)]
        )
        shaped, square, traffic = floor(case)
        rates = case["rates"]
        floors.append(
            label
            + [f"{1e6 * x:.3g}" for x in (shaped, square, traffic, ours)]
            + [f"**{max(shaped, traffic) / ours:.2f}**", f"{max(square, traffic) / ours:.2f}"]
            + [f"{x / 1e12:.1f}" for x in (best(rates, "forward"), best(rates, "backward"), rates["square"])]
            + [f"{rates['copy'] / 1e12:.2f}"]
            + [f"{case['work']['normals'] / case['parts']['noise'] / 1e9:.0f}"]
            + [f"{rates['torch normals'] / 1e9:.0f}"]
        )
        parts.append(
            label + [f"{1e6 * x:.3g}" for x in (*case["parts"].values(), sum(case["parts"].values()), ours)]
        )
    names = list(record["cases"][0]["parts"])
    found = [
        "Path-steps per second: **median** (minimum to maximum)\n\n"
        + table(
            ["d, h, n", "inputs; paths; precision", OURS, OWN, FRESH, f"{OWN} / us", "fresh draws / us"],
            steps,
            labels=2,
        ),
        "Floor, µs per step and path, and the rates behind it\n\n"
        + table(
            [
                "d, h, n",
                "inputs; paths; precision",
                "products",
                "at the square's rate",
                "traffic",
                "step",
                "floor / step",
                "at the square's rate",
                "TFLOP/s: forward",
                "backward",
                "square",
                "TB/s",
                "10⁹ normals/s: ours",
                "torch's",
            ],
            floors,
            labels=2,
        ),
        "Parts on their own, µs per step and path\n\n"
        + table(["d, h, n", "inputs; paths; precision", *names, "sum", "whole step"], parts, labels=2),
    ]
    if "run" in record:
        run = record["run"]
        found.append(
            f"A whole run at 784, 512, 200 in double, {run['paths']} paths, {run['steps']} steps, "
            f"{run['records']} records: {run['seconds']:.2f} s, "
            f"{run['paths'] * run['steps'] / run['seconds']:.3g} path-steps per second; "
            f"the first run of a process takes "
            f"{run['first']:.2f} s"
        )
    return found


if __name__ == "__main__":
    main()
