"""Whatever the caller set of torch: our results are the same, and the caller's state stays."""

import contextlib
import copy
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from empirical.devices.ambient import ordinary, seed
from empirical.features.pretrain import pretrain
from empirical.features.watch import FeatureWatch
from empirical.networks.bodies import Body, convnet, eager, mlp
from empirical.train.fine_tuning import FineTuning, finetune
from empirical.two_layer import to_torch
from langevin import Weights
from tests.empirical.train.tasks import SHAPE, TASK, quick


@contextlib.contextmanager
def default_dtype(kind: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


STATES: dict[str, Callable[[], Any]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "double by default": lambda: default_dtype(torch.float64),
    "half by default": lambda: default_dtype(torch.float16),
    "another device by default": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


def modes() -> tuple[Any, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.get_default_dtype(),
        torch.get_default_device(),
        torch.is_autocast_enabled("cpu"),
    )


def tuned(engine: Any = "ghost") -> Any:
    body = convnet(SHAPE, (4, 8), groups=4, rng=0)
    return finetune(TASK, body, quick(steps=4, engine=engine), rng=0, evaluations=2)


@pytest.fixture(scope="module")
def expected() -> Any:
    return tuned()


@pytest.mark.parametrize("name", STATES)
def test_fine_tuning_is_the_same_in_every_state(name: str, expected: Any) -> None:
    with STATES[name]():
        before = modes()
        found = tuned()
        assert modes() == before
    assert found.equals(expected)
    # the state is one that matters
    assert before != modes()


@pytest.mark.parametrize("name", STATES)
def test_a_body_made_before_and_pre_training_are_the_same_in_every_state(name: str) -> None:
    def trained() -> list[float]:
        return pretrain(mlp(SHAPE, (4,)), TASK, epochs=1)

    body = mlp(SHAPE, (4,))
    losses = trained()
    run = finetune(TASK, body, quick("lora", steps=4), evaluations=1)
    with STATES[name]():
        assert trained() == losses
        assert finetune(TASK, body, quick("lora", steps=4), evaluations=1).equals(run)


def test_norms_would_be_rounded_by_autocasting() -> None:
    body, x = mlp(SHAPE, (4,)), torch.rand(3, *SHAPE)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = body(x)
        with ordinary():
            assert body(x).dtype == torch.float32
    assert rounded.dtype == torch.bfloat16


# ---- random numbers


def generators() -> tuple[Any, ...]:
    _, keys, *rest = np.random.get_state()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), keys.tolist(), rest  # type: ignore[union-attr]


def watched() -> None:
    FeatureWatch(TASK, mlp(SHAPE, (4,)))


DRAWING: dict[str, Callable[[], Any]] = {
    "mlp": lambda: mlp(SHAPE, (4,)),
    "convnet": lambda: convnet(SHAPE, (8,)),
    "supervised": lambda: pretrain(mlp(SHAPE, (4,)), TASK, epochs=1),
    "simclr": lambda: pretrain(mlp(SHAPE, (4,)), TASK, kind="simclr", epochs=1),
    "to_torch": lambda: to_torch(Weights([[1.0, 0.0]], [0.5])),
    "watch": watched,
    "fresh entropy": lambda: finetune(TASK, mlp(SHAPE, (4,)), quick(steps=4), rng=None, evaluations=1),
} | {
    method: lambda method=method: finetune(
        TASK, mlp(SHAPE, (4,)), quick(method, steps=4, head="prototype"), evaluations=1
    )
    for method in ("lp-fft", "lora", "sparse")
}


@pytest.mark.parametrize("name", DRAWING)
def test_global_generators_stay_as_they_were(name: str) -> None:
    before = generators()
    DRAWING[name]()
    assert generators() == before


def test_the_test_sees_a_draw() -> None:
    before = generators()
    with torch.random.fork_rng(devices=[]):
        nn.Linear(1, 1)
        assert generators() != before


def test_seeding_touches_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def seeded(*_: int) -> None:
        raise AssertionError("the generators of GPUs were seeded")

    for name in ("manual_seed", "manual_seed_all"):
        monkeypatch.setattr(torch.cuda, name, seeded)
    with pytest.raises(AssertionError), ordinary():
        torch.manual_seed(0)
    with ordinary():
        seed(0)
    DRAWING["mlp"]()
    DRAWING["simclr"]()


# ---- logging


def test_logging_stays_as_it_was() -> None:
    program = (
        "import logging\n"
        "root = logging.getLogger()\n"
        "before = list(root.handlers), root.level, root.disabled\n"
        "import empirical.train.fine_tuning, empirical.privacy.spent\n"
        "from empirical import History, Mechanism, epsilon\n"
        "epsilon(History([Mechanism('a', 0.1, 10, 2.0)], delta=1e-5))\n"
        "import opacus\n"
        "assert (list(root.handlers), root.level, root.disabled) == before, root.handlers\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# ---- bodies


def plain() -> Body:
    return mlp(SHAPE, (8,))


def chain(*layers: nn.Module) -> Body:
    return Body(nn.Flatten(), *layers, features=8)


def on_meta() -> Body:
    body = chain(nn.Linear(36, 8))
    return body.to("meta")


def computed() -> Body:
    body = chain(nn.Linear(36, 8))
    body.extra = body[1].weight * 2  # type: ignore[operator]
    return body


def sparse() -> Body:
    body = chain(nn.Linear(36, 8))
    body[1].weight = nn.Parameter(torch.eye(8, 36).to_sparse())
    return body


def packed() -> Body:
    body = chain(nn.Linear(36, 8))
    body[1].register_module("inner", Packed())
    return body


class Packed(nn.Module):
    """With state that is no tensor, as quantised layers have."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[f"{prefix}packed"] = torch.qint8


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: torch.jit.script(plain()), "scripted or traced one for the whole: pass the module that it"),
        (lambda: torch.jit.trace(plain(), torch.zeros(2, *SHAPE)), "scripted or traced one for the whole"),
        (lambda: chain(torch.jit.script(nn.Linear(36, 8))), "scripted or traced one at '1'"),
        (lambda: chain(nn.LazyLinear(8)), "got the lazy '1.weight': call it on images once"),
        (on_meta, "got '1.weight' on the device 'meta': load its weights"),
        (computed, "got 'extra' of Body for the whole: compute it in forward"),
        (sparse, "must be dense, got '1.weight' of torch.sparse_coo"),
        (packed, "must hold tensors alone, got '1.inner.packed' of dtype: quantised"),
        (lambda: lambda x: x, "body must be a torch.nn.Module, got function"),
        (lambda: plain().half(), "must be in single precision, got torch.float16"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_bodies_that_cannot_train_are_refused_by_name(make: Callable[[], Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match="body must") as raised:
        FineTuning(TASK, make(), quick(steps=4))
    assert said in str(raised.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_bodies_train_as_what_was_compiled() -> None:
    body = chain(nn.Linear(36, 8), nn.ReLU())
    before = copy.deepcopy(body.state_dict())
    run = finetune(TASK, body, quick(steps=4), rng=0)
    compiled: Any = torch.compile(body)
    assert finetune(TASK, compiled, quick(steps=4), rng=0).equals(run)
    inside = chain(torch.compile(body[1]), nn.ReLU())  # type: ignore[arg-type]
    assert finetune(TASK, inside, quick(steps=4), rng=0).equals(run)
    # the caller's own stays compiled, with its weights
    assert hasattr(inside[1], "_orig_mod")
    assert eager(inside) is not inside
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())


def test_a_body_made_in_inference_mode_or_in_evaluation_trains() -> None:
    with torch.inference_mode():
        body = plain()
    expected = finetune(TASK, plain(), quick(steps=4), evaluations=1)
    assert finetune(TASK, body, quick(steps=4), evaluations=1).equals(expected)
    assert finetune(TASK, plain().eval(), quick(steps=4), evaluations=1).equals(expected)
