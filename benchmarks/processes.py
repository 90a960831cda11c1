"""Measure images per second of DP-SGD with one process and with several that train one network.

``python -m benchmarks.processes`` starts each number of processes with ``torchrun``, in turns: with one
thread each on this processor, or with one GPU each with ``--device cuda``. It times whole steps of
`empirical.train.finetune`, prints a table and saves it in ``benchmarks/results``. ``--quick`` saves nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import environment
from benchmarks.harness.tables import brief, keep, table
from langevin.store import atomic

# body, options, pixels of a side, engine, expected batch
SMALL = (("conv", {}, 24, "ghost", 256),)
LARGE = (
    ("timm:resnet18", {}, 32, "hooks", 2048),
    ("timm:vit_tiny_patch16_224", {"patch_size": 4}, 32, "hooks", 2048),
    ("timm:mobilenetv3_small_100", {}, 32, "hooks", 2048),
    ("lite0", {"size": 96}, 28, "hooks", 1024),
)
WARM = 4


def main() -> None:
    """Measure, print and save."""
    p = argparse.ArgumentParser(prog="python -m benchmarks.processes", description=__doc__)
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="cpu or cuda")
    p.add_argument("--processes", type=int, nargs="+", default=[1, 2], help="numbers of processes to compare")
    p.add_argument(
        "--steps", type=int, default=24, help=f"number of training steps; the first {WARM} are not timed"
    )
    p.add_argument(
        "--rounds", type=int, default=3, help="number of rounds, each with all numbers of processes"
    )
    p.add_argument("--quick", action="store_true", help="short trial run: nothing is saved")
    p.add_argument("--case", type=int, help=argparse.SUPPRESS)
    p.add_argument("--into", help=argparse.SUPPRESS)
    args = p.parse_args()
    cases = SMALL if args.device == "cpu" else LARGE
    if args.case is not None:
        work(cases[args.case], args.device, args.steps, Path(args.into))
        return
    rounds, steps = (1, WARM + 2) if args.quick else (args.rounds, args.steps)
    found: dict[tuple[int, int], list[float]] = {}
    place = ""
    for _ in range(rounds):
        for case in range(len(cases)):
            for count in args.processes:
                done = start(count, case, args.device, steps)
                found.setdefault((case, count), []).append(done["images per second"])
                print(f"# {cases[case][0]}, {count}: {done['images per second']:.0f} images/s", flush=True)
                place = done["device"]
    record: dict[str, Any] = {
        "device": place,
        "machine": environment.describe(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "cases": [
            {
                "body": body,
                "image": size,
                "engine": kind,
                "batch": batch,
                "images per second": {count: found[case, count] for count in args.processes},
            }
            for case, (body, _, size, kind, batch) in enumerate(cases)
        ],
    }
    text = tables(record)
    print(text)
    if not args.quick:
        keep(f"processes-{brief(place)}", record, text)


def start(count: int, case: int, device: str, steps: int) -> dict[str, Any]:
    """Time one case in ``count`` processes."""
    with tempfile.TemporaryDirectory() as folder:
        into = Path(folder, "rate.json")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
        command += ["-m", "benchmarks.processes", "--case", str(case), "--device", device]
        command += ["--steps", str(steps), "--into", str(into)]
        done = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{count} processes failed:\n{done.stderr[-4000:]}")
        return json.loads(into.read_text())


def work(case: tuple[Any, ...], device: str, steps: int, into: Path) -> None:
    """Run as one of the processes."""
    import torch

    from empirical import Recipe, body, glyphs
    from empirical.devices.parallel import join
    from empirical.train.fine_tuning import FineTuning

    name, options, size, kind, batch = case
    device = join(device)
    torch.set_num_threads(1)
    task = glyphs(size, train=2 * batch, rng=0)
    recipe = Recipe("fft", steps=steps, batch=batch, engine=kind, lr=0.1, delta=1e-5)
    tuning = FineTuning(
        task, body(name, task.train.shape, rng=0, **options), recipe, device=device, evaluations=1
    )
    ends: list[float] = []

    def tick(step: int, of: int) -> None:
        if step in (WARM, of):
            if device != "cpu":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    run = tuning.run(tick)
    if tuning.first:
        images = float(run.batch[WARM:].sum())
        place = environment.processor() if device == "cpu" else torch.cuda.get_device_name()
        rate = {"images per second": images / (ends[1] - ends[0]), "device": place}
        atomic.write_text(into, json.dumps(rate))
    torch.distributed.destroy_process_group()


def tables(record: dict[str, Any]) -> str:
    """Return a table of images per second by number of processes, and of the speed-up over the first."""
    cases = record["cases"]
    header = ["processes", *(f"{c['body']}, {c['image']} px, batch {c['batch']}" for c in cases)]
    counts = list(cases[0]["images per second"])

    def cell(case: dict[str, Any], count: int) -> str:
        rates = case["images per second"]
        return f"{median(rates[count]):.3g} ({median(rates[count]) / median(rates[counts[0]]):.2f})"

    rows = [[str(count), *(cell(case, count) for case in cases)] for count in counts]
    return (
        f"# DP-SGD in several processes on {record['device']}, {record['started']}\n\n"
        "Images per second of whole steps: median over rounds in turns. In brackets: ratio to the first row. "
        f"Each process has its own GPU, or one thread.\n\n{table(header, rows)}"
    )


if __name__ == "__main__":
    main()
