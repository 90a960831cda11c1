"""Time a step of many paths on a GPU against the GPU's floor and torchsde on the same GPU, in one run.

``python -m benchmarks.gpu`` prints tables and saves them in ``benchmarks/results``. ``--quick`` is a short
trial run that saves nothing; without a GPU it uses the plain form of the step on this processor.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

from benchmarks.harness import environment
from benchmarks.harness.contestants import CLIP, DT, SIGMA, Case
from benchmarks.harness.gpu import Effort, Ours, TorchSDE, kind, seconds_each, seconds_of
from benchmarks.harness.gpu_tables import FRESH, OURS, OWN, tables, title
from benchmarks.harness.tables import keep
from langevin import Schedule, euler_maruyama
from langevin.engine.gpu.scalar import ScalarEnsemble

# inputs, width, samples; paths; reduction
CASES = (
    ((20, 64, 50), 4096, "none"),
    ((32, 512, 128), 1024, "none"),
    ((784, 512, 200), 64, "none"),
    ((784, 512, 200), 64, "auto"),
)
PRECISIONS = {"double": np.float64, "single": np.float32}
TOLERANCES = {"double": 1e-10, "single": 1e-3}

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


def measure_rates(e: ScalarEnsemble, effort: Effort) -> dict[str, float]:
    """Measure rates per second: flops of the best product, bytes of a copy, our normals and torch's."""
    paths, n, k = e.X.shape
    h, like = e.v.shape[1], kind(e.theta)
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


def measure_parts(e: ScalarEnsemble, effort: Effort) -> dict[str, float]:
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


if __name__ == "__main__":
    main()
