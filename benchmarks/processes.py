"""Measure images per second of DP-SGD with one process and with several that train one network.

``python -m benchmarks.processes`` starts each number of processes with ``torchrun``, in turns: with one
thread each on this processor, or with one GPU each with ``--device cuda``. It times whole steps of
`empirical.train.finetune`, prints tables and saves them in ``benchmarks/results``. ``--quick`` saves nothing.

To tell why a network does not scale, it also measures what one of two processes does, alone: steps of half
the batch, the same with batches of one size, the sum of gradients over processes, and on a GPU how much of a
step the device computes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
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
# sums over processes that are timed
SUMS = 20
# what is measured next to whole steps, in seconds: its key in the record, and its label
PARTS = {
    "half": "one process, half the batch",
    "one size": "the same, all batches of one size",
    "device": "of that, the device computes",
    "sum": "sum of gradients over two processes, alone",
}


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
    p.add_argument("--bodies", nargs="+", metavar="NAME", help="networks to measure (default: all)")
    p.add_argument("--quick", action="store_true", help="short trial run: nothing is saved")
    p.add_argument("--case", type=int, help=argparse.SUPPRESS)
    p.add_argument("--into", help=argparse.SUPPRESS)
    args = p.parse_args()
    cases = SMALL if args.device == "cpu" else LARGE
    if args.case is not None:
        work(cases[args.case], args.device, args.steps, Path(args.into))
        return
    rounds, steps = (1, WARM + 2) if args.quick else (args.rounds, args.steps)
    wanted = chosen(p, [body for body, *_ in cases], args.bodies)
    found: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for _ in range(rounds):
        for case in wanted:
            for count in args.processes:
                done = start(count, case, args.device, steps)
                found.setdefault((case, count), []).append(done)
                print(f"# {cases[case][0]}, {count}: {done['images per second']:.0f} images/s", flush=True)
    place = next(iter(found.values()))[0]["device name"]
    record: dict[str, Any] = {
        "device": place,
        "machine": environment.describe(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "cases": [
            described(cases[case], {count: found[case, count] for count in args.processes}) for case in wanted
        ],
    }
    text = tables(record)
    print(text)
    if not args.quick:
        keep(f"processes-{brief(place)}", record, text)


def chosen(parser: argparse.ArgumentParser, bodies: list[str], asked: list[str] | None) -> list[int]:
    """Return the places of the bodies that ``--bodies`` asks for, by default all."""
    if unknown := set(asked or ()) - set(bodies):
        parser.error(f"--bodies must be of {', '.join(bodies)}, got {', '.join(sorted(unknown))}")
    return [place for place, body in enumerate(bodies) if body in (asked or bodies)]


def described(case: tuple[Any, ...], found: dict[int, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return the record of a case from what its processes measured, by their number and round."""
    body, _, size, kind, batch = case
    about: dict[str, Any] = {"body": body, "image": size, "engine": kind, "batch": batch}
    about["images per second"] = {n: [one["images per second"] for one in found[n]] for n in found}
    # of one process or of two
    rest = [one for n in (1, 2) for one in found.get(n, [])]
    for name in (*PARTS, "kernels"):
        if values := [one[name] for one in rest if name in one]:
            about[name] = values
    return about


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
    from empirical.networks.checked import Checked
    from empirical.train.fine_tuning import FineTuning

    name, options, size, kind, batch = case
    device = join(device)
    torch.set_num_threads(1)
    whole = body(name, (1, size, size), rng=0, **options)
    checked = Checked()

    def timed(batch: int, samples: int, clock: Clock) -> tuple[FineTuning, float]:
        """A run, and its images per second."""
        recipe = Recipe("fft", steps=steps, batch=batch, engine=kind, lr=0.1, delta=1e-5)
        task = glyphs(size, train=samples, rng=0)
        tuning = FineTuning(task, whole, recipe, device=device, evaluations=1, checked=checked)
        run = tuning.run(clock.tick)
        return tuning, float(run.batch[WARM:].sum()) / clock.seconds

    tuning, rate = timed(batch, 2 * batch, Clock(device))
    place = environment.processor() if device == "cpu" else torch.cuda.get_device_name()
    found: dict[str, Any] = {"device name": place, "images per second": rate}
    half, processes = batch // 2, torch.distributed.get_world_size()
    if processes == 1:
        # seconds of a step
        found["half"] = half / timed(half, batch, Clock(device))[1]
        found["one size"] = half / timed(half, half, Clock(device))[1]
        if device != "cpu":
            profiled = Profiled(device)
            timed(half, batch, profiled)
            found |= profiled.per_step(steps - WARM)
    elif processes == 2:
        numbers = sum(p.numel() for p in tuning.model.parameters() if p.requires_grad)
        found["sum"] = summed(torch.zeros(numbers, device=device))
    if tuning.first:
        atomic.write_text(into, json.dumps(found))
    torch.distributed.destroy_process_group()


class Clock:
    """The time of a run's steps from the end of step `WARM` on, in ``seconds``."""

    def __init__(self, device: str) -> None:
        self._device, self.seconds = device, 0.0

    def tick(self, step: int, of: int) -> None:
        """Follow a run; a step is done."""
        if step == WARM:
            self.begin()
            self.seconds = -now(self._device)
        elif step == of:
            self.seconds += now(self._device)
            self.end()

    def begin(self) -> None:
        """Do something before timing."""

    def end(self) -> None:
        """Do something after it."""


class Profiled(Clock):
    """What a GPU does in that time."""

    def __init__(self, device: str) -> None:
        from torch.profiler import ProfilerActivity, profile

        super().__init__(device)
        self._profiler = profile(activities=[ProfilerActivity.CUDA])

    def begin(self) -> None:
        """Start recording."""
        self._profiler.start()

    def end(self) -> None:
        """Stop recording."""
        self._profiler.stop()

    def per_step(self, steps: int) -> dict[str, float]:
        """Seconds that the device computes, and its kernels and copies, of one of ``steps`` steps."""
        return computed(self._profiler.events() or [], steps)


def computed(events: Iterable[Any], steps: int) -> dict[str, float]:
    """Return the time of a profile's events on a GPU, in seconds, and their number, both per step."""
    own = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
    seconds = sum(e.time_range.elapsed_us() for e in own) / 1e6
    return {"device": seconds / steps, "kernels": len(own) / steps}


def summed(numbers: Any) -> float:
    """Return the seconds of adding numbers over all processes."""
    from torch import distributed

    device = str(numbers.device)
    distributed.all_reduce(numbers)
    begun = now(device)
    for _ in range(SUMS):
        distributed.all_reduce(numbers)
    return (now(device) - begun) / SUMS


def now(device: str) -> float:
    """Time in seconds, after the device is done."""
    import torch

    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def tables(record: dict[str, Any]) -> str:
    """Return tables of images per second by number of processes, and of what one of two processes does."""
    cases = record["cases"]
    names = [f"{c['body']}, {c['image']} px, batch {c['batch']}" for c in cases]
    counts = list(cases[0]["images per second"])

    def rates(case: dict[str, Any], count: int) -> str:
        found = case["images per second"]
        return f"{median(found[count]):.3g} ({median(found[count]) / median(found[counts[0]]):.2f})"

    def value(case: dict[str, Any], part: str, scale: float = 1.0) -> str:
        return f"{scale * median(case[part]):.3g}" if part in case else "-"

    def step(case: dict[str, Any], count: int) -> str:
        return f"{1e3 * case['batch'] / median(case['images per second'][count]):.3g}"

    rows = [[str(count), *(rates(case, count) for case in cases)] for count in counts]
    parts = [[f"processes: {count}", *(step(case, count) for case in cases)] for count in counts]
    parts += [[label, *(value(case, part, 1e3) for case in cases)] for part, label in PARTS.items()]
    parts += [["kernels and copies in that step", *(value(case, "kernels") for case in cases)]]
    return (
        f"# DP-SGD in several processes on {record['device']}, {record['started']}\n\n"
        "Images per second of whole steps: median over rounds in turns. In brackets: ratio to the first row. "
        f"Each process has its own GPU, or one thread.\n\n{table(['processes', *names], rows)}\n\n"
        "Where the time of a step goes, in milliseconds. Each of two processes does what one does with half "
        f"the batch, and then adds its sum to the other's.\n\n{table(['', *names], parts)}"
    )


if __name__ == "__main__":
    main()
