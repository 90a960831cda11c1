"""Killed and interrupted runs: they resume to the same bits, and their record never lacks a step."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from empirical.networks.bodies import convnet, mlp
from empirical.privacy.history import History
from empirical.privacy.ledger import LedgerError, read
from empirical.privacy.report import account
from empirical.train.checkpoint import Checkpoint
from empirical.train.fine_tuning import FineTuning, finetune
from empirical.train.gradients import trial
from langevin.store.errors import StoreError
from tests.empirical.train.tasks import BODY, CONV, SAMPLES, SHAPE, TASK, make_task, quick
from tests.helpers import execute


class Killed(BaseException):
    pass


def killing(monkeypatch: pytest.MonkeyPatch, after: int, where: str) -> None:
    """End a run at the ``after``-th call: before or after its state is written, or in a step."""
    calls = 0
    owner, name = (FineTuning, "_step") if where == "step" else (Checkpoint, "write")
    original = getattr(owner, name)

    def dying(self: Any, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after and where == "before":
            raise Killed
        result = original(self, *args)
        if calls == after and where != "before":
            raise Killed
        return result

    monkeypatch.setattr(owner, name, dying)


RESUMED = [
    ("lp-fft", {"momentum": 0.5}, BODY),
    ("lp", {"head": "prototype"}, BODY),
    ("lora", {"lp_share": 0.5, "momentum": 0.9}, CONV),
    ("sparse", {"momentum": 0.5}, BODY),
    ("sparse", {"selection": "magnitude", "lp_share": 0.25}, CONV),
    ("fft", {"drop": 0.1}, CONV),
]


KILLS = [("before", 3), ("after", 4), ("step", 1), ("step", 8)]


# the quick tests end each run at two of the moments, and half of the runs at each moment
@pytest.mark.parametrize(
    ("method", "options", "body", "where", "after"),
    [
        pytest.param(*run, *kill, marks=[pytest.mark.slow] if (i + j) % 2 else [])
        for i, run in enumerate(RESUMED)
        for j, kill in enumerate(KILLS)
    ],
    ids=lambda v: str(v) if isinstance(v, str | int) else "",
)
def test_a_killed_run_goes_on_to_the_same_result(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    method: Any,
    options: Any,
    body: Any,
    where: str,
    after: int,
) -> None:
    recipe = quick(method, **options)
    whole = finetune(TASK, body, recipe, rng=2, evaluations=5)
    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        killing(patch, after, where)
        with pytest.raises(Killed):
            finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path)
    resumed = finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path, resume=True)
    assert resumed.equals(whole)
    # every step is in the record, once
    assert read(tmp_path / "run.npz.ledger") == recipe.history(SAMPLES)
    # and once more: nothing is left to do
    assert finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path, resume=True).equals(whole)


@pytest.mark.parametrize("after", [1, 2, 7, 12])
def test_the_record_never_lacks_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    path = tmp_path / "run.npz"
    killing(monkeypatch, after, "step")
    with pytest.raises(Killed):
        finetune(TASK, BODY, quick("fft"), evaluations=4, checkpoint=path)
    claimed = read(tmp_path / "run.npz.ledger").steps
    assert after <= claimed <= after + 2  # to the end of the block of three


def test_a_resumed_run_keeps_the_engine_that_was_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, recipe, path = convnet(TASK.train.shape, (8,), rng=0), quick("fft"), tmp_path / "run.npz"
    whole = finetune(TASK, body, recipe, rng=2, evaluations=5)
    assert json.loads(whole.attrs["engines"]) == {"fft": "ghost"}
    with monkeypatch.context() as patch:
        killing(patch, 8, "step")
        with pytest.raises(Killed):
            finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path)
    # another measurement, another choice
    other = {"fft": trial.Choice("loop")}
    monkeypatch.setattr(trial, "choose_all", lambda *_: other)
    resumed = finetune(TASK, body, recipe, rng=2, evaluations=5, checkpoint=path, resume=True)
    assert resumed.attrs["engines"] == whole.attrs["engines"]
    assert resumed.equals(whole)


def test_process_killed_in_mid_step_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    program = (
        "import os, signal, sys\n"
        "from tests.empirical.train.tasks import BODY, TASK, quick\n"
        "from empirical.train.fine_tuning import finetune\n"
        "def progress(done, total):\n"
        "    if done == 7: os.kill(os.getpid(), signal.SIGKILL)\n"
        "finetune(TASK, BODY, quick(), rng=2, evaluations=4, checkpoint=sys.argv[1], progress=progress)\n"
    )
    root = Path(__file__).parents[3]
    done = execute([sys.executable, "-c", program, str(path)], cwd=root)
    assert done.returncode == -9
    assert read(tmp_path / "run.npz.ledger").steps == 9
    resumed = finetune(TASK, BODY, quick(), rng=2, evaluations=4, checkpoint=path, resume=True)
    assert resumed.equals(finetune(TASK, BODY, quick(), rng=2, evaluations=4))


def test_fresh_entropy_resumes_from_the_checkpoints_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    with monkeypatch.context() as patch:
        killing(patch, 5, "step")
        with pytest.raises(Killed):
            finetune(TASK, BODY, quick(), rng=None, evaluations=4, checkpoint=path)
    run = finetune(TASK, BODY, quick(), rng=None, evaluations=4, checkpoint=path, resume=True)
    assert np.isfinite(run.test_loss).all()


def test_checkpoints_of_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.npz"
    finetune(TASK, BODY, quick(), checkpoint=path)
    with pytest.raises(StoreError, match="already exists: resume it"):
        finetune(TASK, BODY, quick(), checkpoint=path)
    for task, body, recipe, rng, named in (
        (TASK, BODY, quick(lr=0.6), 0, "recipe"),
        (TASK, mlp(SHAPE, (8, 6), rng=1), quick(), 0, "body"),
        (make_task(57), BODY, quick(), 0, "task"),
        (TASK, BODY, quick(), 1, "its rng was another"),
    ):
        with pytest.raises(StoreError, match=f"another run: .*{named}|another run: {named}"):
            finetune(task, body, recipe, rng=rng, checkpoint=path, resume=True)
    with pytest.raises(StoreError, match="there is no checkpoint"):
        finetune(TASK, BODY, quick(), checkpoint=tmp_path / "none.npz", resume=True)


def test_a_lost_record_is_refused(tmp_path: Path) -> None:
    path, ledger = tmp_path / "run.npz", tmp_path / "run.npz.ledger"
    finetune(TASK, BODY, quick(), checkpoint=path)
    kept = ledger.read_bytes()
    ledger.unlink()
    with pytest.raises(LedgerError):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)
    ledger.write_bytes(kept[: kept.index(b"\n") + 1])
    with pytest.raises(LedgerError, match="does not go through the head"):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)
    ledger.write_bytes(kept)
    path.unlink()
    with pytest.raises(LedgerError, match="privacy was spent"):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)


@pytest.mark.parametrize("damage", ["truncated", "noise"])
def test_damaged_checkpoints_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run.npz"
    finetune(TASK, BODY, quick(), checkpoint=path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"\0" * 100)
    with pytest.raises(StoreError, match="is damaged"):
        finetune(TASK, BODY, quick(), checkpoint=path, resume=True)


def test_the_run_says_what_it_released() -> None:
    run = finetune(TASK, BODY, quick("lp-fft"))
    history = History.from_dict(json.loads(run.attrs["privacy"]))
    assert history == quick("lp-fft").history(SAMPLES)
    report = str(account(history))
    for part in (
        "delta 0.0001",
        "60 samples",
        "sample rate 0.25",
        "noise multiplier",
        "clip 1",
        "add-remove",
    ):
        assert part in report
