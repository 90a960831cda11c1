"""Measure images per second of DP-SGD for each engine and of non-private training, in one run.

``python -m benchmarks.dpsgd`` measures small networks on one thread of this processor; with
``--device cuda`` it measures larger networks on a GPU. Both print a table and save it in
``benchmarks/results``. ``--quick`` saves nothing.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.harness import environment
from benchmarks.harness.tables import brief, keep, table
from benchmarks.processes import chosen
from empirical.networks.bodies import Classifier
from empirical.networks.by_name import body
from empirical.networks.private import make_private
from empirical.networks.subsets import adapt, train_only
from empirical.train.gradients.engine import engine
from empirical.train.gradients.plain import factors
from empirical.train.losses import CrossEntropy

# name, image, options; batch
SMALL = (
    ("mlp", (1, 8, 8), {"widths": (128, 64)}, 110),
    ("conv", (1, 24, 24), {}, 128),
)
LARGE = (
    ("timm:resnet18", (1, 32, 32), {}, 512),
    ("timm:resnet50", (1, 32, 32), {}, 256),
    ("timm:vit_tiny_patch16_224", (1, 32, 32), {"patch_size": 4}, 512),
    ("timm:mobilenetv3_small_100", (1, 32, 32), {}, 512),
    ("lite0", (1, 28, 28), {"size": 96}, 512),
)
CLASSES = 10
PLAIN = "not private"
# label, what trains, engine, whether gradients are clipped, bfloat16
ENGINES = (
    (PLAIN, "all", "hooks", False, False),
    (f"{PLAIN}, bfloat16", "all", "hooks", False, True),
    ("closed form", "all", "closed", True, False),
    ("ghost", "all", "ghost", True, False),
    ("hooks", "all", "hooks", True, False),
    ("hooks, bfloat16", "all", "hooks", True, True),
    ("functorch", "all", "functorch", True, False),
    ("ghost, LoRA", "lora", "ghost", True, False),
    ("ghost, biases", "bias", "ghost", True, False),
    ("probing on kept features", "head", "closed", True, False),
)


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dpsgd", description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--bodies", nargs="+", metavar="NAME", help="networks to measure (default: all)")
    parser.add_argument("--quick", action="store_true", help="short trial run: nothing is saved")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    rounds, seconds = (1, 0.02) if args.quick else (5, 0.3)
    record: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "one thread of the processor",
        "machine": environment.describe(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "cases": [],
    }
    cases = SMALL if device.type == "cpu" else LARGE
    for place in chosen(parser, [name for name, *_ in cases], args.bodies):
        name, shape, options, batch = cases[place]
        case: dict[str, Any] = {"body": name, "image": shape, "batch": batch, "images per second": {}}
        steps = {}
        for label, subset, kind, clip, low in ENGINES:
            if low and device.type == "cpu":
                continue
            try:
                steps[label] = step(name, shape, options, batch, device, subset, kind, clip, low)
                steps[label]()
            except (ValueError, NotImplementedError, RuntimeError) as error:
                steps.pop(label, None)
                case.setdefault("left out", {})[label] = str(error).splitlines()[0][:200]
        times: dict[str, list[float]] = {label: [] for label in steps}
        # in turns, so that a disturbance of the machine affects all
        for _ in range(rounds):
            for label, run in steps.items():
                times[label].append(timed(run, device, seconds))
        for label, found in times.items():
            case["images per second"][label] = [batch / t for t in (max(found), median(found), min(found))]
        record["cases"].append(case)
        del steps
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    text = tables(record)
    print(text)
    if not args.quick:
        place = record["machine"]["processor"] if device.type == "cpu" else record["device"]
        keep(f"dpsgd-{brief(place)}", record, text)


def step(
    name: str,
    shape: tuple[int, ...],
    options: dict[str, Any],
    batch: int,
    device: torch.device,
    subset: Any,
    kind: Any,
    clip: bool,
    low: bool,
) -> Callable[[], None]:
    """Return a training step on one batch: gradients, noise, descent."""
    model = Classifier(make_private(body(name, shape, **options)), CLASSES)
    may = [p for p in model.parameters() if p.requires_grad]
    if subset == "lora":
        model.body = adapt(model.body, rank=4, seed=0)
    train_only(model, model.head, subset, may)
    model.to(device).train()
    random = torch.Generator(device).manual_seed(0)
    probing = subset == "head"
    x = torch.randn(batch, *([model.head.in_features] if probing else shape), generator=random, device=device)
    y = torch.arange(batch, device=device) % CLASSES
    gradients = engine(model.head if probing else model, CrossEntropy(), kind, clip=clip)

    def run() -> None:
        exact = kind == "ghost" and device.type == "cuda"
        with (
            torch.autocast(device.type, torch.bfloat16, enabled=low),
            torch.backends.cudnn.flags(enabled=True, allow_tf32=not exact),
        ):
            norms = gradients.norms(x, y)
            sums = gradients.total(None if norms is None else factors(norms, 1.0, "flat", 0.01))
        with torch.no_grad():
            for p, total in zip(gradients.params, sums, strict=True):
                noise = torch.randn(p.shape, generator=random, device=device) if clip else 0.0
                p -= 1e-6 / batch * (total + noise)

    return run


def timed(run: Callable[[], None], device: torch.device, seconds: float) -> float:
    """Return seconds per call, measured over at least ``seconds``."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    run()
    calls, begun = 0, now()
    while (passed := now() - begun) < seconds or calls == 0:
        for _ in range(3):
            run()
        calls += 3
    return passed / calls


def tables(record: dict[str, Any]) -> str:
    """Return a table of images per second and of the slowdown relative to non-private training."""
    cases = record["cases"]
    labels = list(dict.fromkeys(label for case in cases for label in case["images per second"]))

    def cell(case: dict[str, Any], label: str) -> str:
        found = case["images per second"].get(label)
        if found is None:
            return "-"
        return f"{found[1]:.3g} ({case['images per second'][PLAIN][1] / found[1]:.2f})"

    header = ["", *(f"{c['body']}, {c['image'][-1]} px, batch {c['batch']}" for c in cases)]
    rows = [[label, *(cell(case, label) for case in cases)] for label in labels]
    return (
        f"# DP-SGD on {record['device']}, {record['started']}\n\n"
        "Images per second: median over rounds in turns. In brackets: slowdown relative to non-private "
        f"training in single precision.\n\n{table(header, rows)}"
    )


if __name__ == "__main__":
    main()
