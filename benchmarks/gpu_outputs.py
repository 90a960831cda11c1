"""Time a step with K outputs and Poisson batches on a GPU against the GPU's floor and torchsde, in one run.

``python -m benchmarks.gpu_outputs`` prints tables and saves them in ``benchmarks/results``. ``--quick`` is a
short trial run that saves nothing; without a GPU it uses the plain form of the step on this processor.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.gpu import PRECISIONS, TOLERANCES
from benchmarks.harness import environment
from benchmarks.harness.gpu import Effort, kind, seconds_each, seconds_of
from benchmarks.harness.gpu_outputs import OurOutputs, TorchSDEOutputs, error
from benchmarks.harness.gpu_tables import FRESH, OURS, OWN, title
from benchmarks.harness.outputs import OutputsCase
from benchmarks.harness.tables import keep, table
from langevin.engine.gpu.outputs import OutputsEnsemble

# inputs, width, samples, outputs; paths
CASES = (((32, 512, 128, 10), 1024), ((784, 512, 200, 10), 64), ((64, 512, 2000, 10), 128))
QUICK_CASES = (((8, 24, 20, 3), 4),)
RATES = (1.0, 0.1)

FULL = Effort((), 5, 0.25, 8192, 2**31, (0, 0))
QUICK = Effort((), 2, 0.01, 256, 2**20, (0, 0))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_outputs", description="Time a step with K outputs on a GPU."
    )
    parser.add_argument("--quick", action="store_true", help="short trial run: small sizes, nothing is saved")
    parser.add_argument(
        "--case", type=int, choices=range(len(CASES)), help="one shape alone; nothing is saved"
    )
    parser.add_argument("--paths", type=int, help="another number of paths; nothing is saved")
    args = parser.parse_args()
    there = torch.cuda.is_available()
    if not there and not args.quick:
        parser.error("no CUDA GPU found: use --quick")
    device, effort = torch.device("cuda" if there else "cpu"), QUICK if args.quick else FULL
    torch.set_float32_matmul_precision("highest")
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if there else "cpu",
        "machine": environment.describe(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "cases": [],
    }
    if there:
        record["machine"]["versions"]["cuda"] = torch.version.cuda
    cases = QUICK_CASES if args.quick else CASES if args.case is None else CASES[args.case : args.case + 1]
    for shape, paths in cases:
        for precision in PRECISIONS:
            record["cases"] += measure(OutputsCase(*shape), args.paths or paths, precision, device, effort)
    text = "\n\n".join(tables(record))
    print("\n" + text)
    if not args.quick and args.case is None and args.paths is None:
        name = f"gpu-outputs-{environment.slug(record['device'])}"
        keep(name, record, f"{title(record)}\n\n{text}")


def measure(
    case: OutputsCase, paths: int, precision: str, device: torch.device, effort: Effort
) -> list[dict[str, Any]]:
    """Check all contestants, then time them in turn; a result for each sampling rate of ours."""
    dtype = PRECISIONS[precision]
    contestants: dict[Any, Any] = {
        rate: OurOutputs(replace(case, rate=rate), dtype, paths, device) for rate in RATES
    }
    for name in (OWN, FRESH):
        contestants[name] = TorchSDEOutputs(case, dtype, paths, device, name == FRESH)
    steps = {}
    for name, contestant in contestants.items():
        off = error(replace(case, rate=name if name in RATES else 1.0), contestant)
        if not off < TOLERANCES[precision]:
            raise SystemExit(f"{name} computes another drift: relative error {off:.1e} at {case}")
        # graphs of most sizes of batches
        contestant.advance(200)
        elapsed = seconds_of(lambda c=contestant: c.advance(20), device)
        steps[name] = max(20, round(20 * effort.seconds / elapsed))
    seconds: dict[Any, list[float]] = {name: [] for name in contestants}
    for _ in range(effort.rounds):
        for name, contestant in contestants.items():
            elapsed = seconds_of(lambda c=contestant, n=steps[name]: c.advance(n), device)
            seconds[name].append(elapsed / steps[name] / paths)
    for name, contestant in contestants.items():
        assert contestant.finite(), name
    found = []
    for rate in RATES:
        size = contestants[rate].ensemble.sizes(1)[0]
        found.append(
            {
                "shape": [case.inputs, case.width, case.samples, case.outputs],
                "rate": rate,
                "rows": size,
                "paths": paths,
                "precision": precision,
                "contestants": {
                    label: {
                        "seconds": float(np.median(seconds[name])),
                        "least": min(seconds[name]),
                        "most": max(seconds[name]),
                    }
                    for label, name in ((OURS, rate), (OWN, OWN), (FRESH, FRESH))
                },
                "work": work(case, rate, np.dtype(dtype).itemsize),
                "rates": measure_rates(contestants[rate].ensemble, size, effort),
                "parts": {
                    name: value / paths
                    for name, value in measure_parts(contestants[rate].ensemble, size, effort).items()
                },
            }
        )
        print(json.dumps(found[-1]), flush=True)
    return found


def work(case: OutputsCase, rate: float, itemsize: int) -> dict[str, float]:
    """Return what a step of one path cannot avoid, on the expected number of samples.

    Products with inputs take the pre-activations and the pull-back to the first layer; those with the head
    outputs, residuals times the head, and the pull-back to it. States are read twice and written once;
    pre-activations are written, read, replaced and read.
    """
    rows, k, h, K = rate * case.samples, case.inputs, case.width, case.outputs
    return {
        "inputs": 4 * rows * k * h,
        "head": 6 * rows * h * K,
        "bytes": (3 * (k + K) + 4 * rows) * h * itemsize,
        "normals": h * (k + K),
    }


def measure_rates(e: OutputsEnsemble, size: int, effort: Effort) -> dict[str, float]:
    """Measure rates per second: flops of products with inputs and of a large one, and bytes of a copy."""
    block, like = e.block(size), kind(e.theta)
    X, Z, count = block.X, block.Z, 2 * block.Z.numel() * e.X.shape[1]
    assert X is not None
    square = [torch.randn(effort.square, effort.square, **like) for _ in range(3)]
    products = {
        "forward": (lambda: torch.bmm(X, e.W, out=Z), count),
        "backward": (lambda: e.W.baddbmm_(X.mT, Z, alpha=-1e-30), count),
        "square": (lambda: torch.mm(square[0], square[1], out=square[2]), 2 * effort.square**3),
    }
    if block.index is None:
        # where all paths have the same inputs, also as one product of them all
        rows, inputs = len(e.theta) * Z.shape[2], X[0].contiguous()
        W, WT = torch.randn(rows, e.X.shape[1], **like), torch.randn(e.X.shape[1], rows, **like)
        there, ZT = torch.randn(rows, size, **like), torch.randn(size, rows, **like)
        products |= {
            "forward, neurons in rows": (lambda: torch.mm(W, inputs.T, out=there), count),
            "forward, neurons in columns": (lambda: torch.mm(inputs, WT, out=ZT), count),
            "backward, neurons in rows": (lambda: W.addmm_(there, inputs, alpha=-1e-30), count),
            "backward, neurons in columns": (lambda: WT.addmm_(inputs.T, ZT, alpha=-1e-30), count),
        }
    found = {
        name: flops / seconds_each(work, e.device, effort.seconds) for name, (work, flops) in products.items()
    }
    source = torch.randn(effort.copied // e.theta.element_size(), **like)
    target = torch.empty_like(source)
    copy = seconds_each(lambda: torch.neg(source, out=target), e.device, effort.seconds)
    # of the batch's rows alone, of which a product has more
    share = e.rule.sample_rate * e.samples / size
    scaled = {name: rate * (1.0 if name == "square" else share) for name, rate in found.items()}
    return {**scaled, "copy": 2 * effort.copied / copy}


def measure_parts(e: OutputsEnsemble, size: int, effort: Effort) -> dict[str, float]:
    """Measure the seconds of each part of a step of all paths separately."""
    block, alpha = e.block(size), -1e-30
    X, trained = block.X, e.theta.shape[1]
    assert X is not None
    # heads stay where they are
    e.numbers[2] = 0
    parts = {
        "forward product": lambda: torch.bmm(X, e.W, out=block.Z),
        "rows": lambda: e.passes.rows(e, block),
        "columns": lambda: e.passes.columns(e, block, True),
        "backward product": lambda: e.W.baddbmm_(X.mT, block.Z, alpha=alpha),
        "noise": lambda: e.noise(e, trained, e.rule, 0),
    }
    # nothing is drawn where each sample is in each batch
    drawn = seconds_each(lambda: e.block(size), e.device, effort.seconds) if e.gathers else 0.0
    return {"batch": drawn} | {
        name: seconds_each(work, e.device, effort.seconds) for name, work in parts.items()
    }


def floor(case: dict[str, Any]) -> dict[str, float]:
    """Return seconds per step and path: products, those with inputs at their shapes' rates, and traffic."""
    done, rates = case["work"], case["rates"]
    best = [max(r for name, r in rates.items() if name.startswith(side)) for side in ("forward", "backward")]
    head = done["head"] / rates["square"]
    return {
        "products": sum(done["inputs"] / 2 / rate for rate in best) + head,
        "square": done["inputs"] / rates["square"] + head,
        "traffic": done["bytes"] / rates["copy"],
    }


def tables(record: dict[str, Any]) -> list[str]:
    """Return the tables of times and ratios, floor, and parts, each with its caption."""
    labels = ["d, h, n, K", "rate; rows; paths; precision"]
    times, floors, parts = [], [], []
    for case in record["cases"]:
        label = [
            ", ".join(map(str, case["shape"])),
            f"{case['rate']:g}; {case['rows']}; {case['paths']}; {case['precision']}",
        ]
        found, least = case["contestants"], floor(case)
        ours = found[OURS]["seconds"]
        spread = [
            f"**{1 / c['seconds']:.3g}** ({1 / c['most']:.3g} to {1 / c['least']:.3g})"
            for c in found.values()
        ]
        times.append(label + spread + [f"{found[name]['seconds'] / ours:.1f}" for name in (OWN, FRESH)])
        floors.append(
            label
            + [f"{1e6 * value:.3g}" for value in (*least.values(), ours)]
            + [f"**{max(least['products'], least['traffic']) / ours:.2f}**"]
            + [f"{max(least['square'], least['traffic']) / ours:.2f}"]
            + [f"{case['rates']['square'] / 1e12:.1f}", f"{case['rates']['copy'] / 1e12:.2f}"]
        )
        parts.append(
            label + [f"{1e6 * x:.3g}" for x in (*case["parts"].values(), sum(case["parts"].values()), ours)]
        )
    return [
        "Path-steps per second: **median** (minimum to maximum); torchsde takes all samples\n\n"
        + table([*labels, OURS, OWN, FRESH, f"{OWN} / us", "fresh draws / us"], times, labels=2),
        "Floor, µs per step and path, and the rates behind it\n\n"
        + table(
            [
                *labels,
                "products",
                "at the square's rate",
                "traffic",
                "step",
                "floor / step",
                "at the square's rate",
                "TFLOP/s: square",
                "TB/s",
            ],
            floors,
            labels=2,
        ),
        "Parts on their own, µs per step and path\n\n"
        + table([*labels, *record["cases"][0]["parts"], "sum", "whole step"], parts, labels=2),
    ]


if __name__ == "__main__":
    main()
