"""Grids: fair trials, resumption, workers, failures; with made-up results."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr
from dask import config

from empirical.data.shift import Shift
from empirical.recipe import Recipe
from empirical.studies import grid as studies_grid
from empirical.studies.arms import Grid
from empirical.studies.cells import Cell, Records, RecordsError
from empirical.studies.grid import TUNING, run_grid, tune
from empirical.studies.setting import Setting
from tests.empirical.studies.toy import SETTING, deadly, made_up, make_grid
from tests.helpers import finish, until

METHODS = ("lp", "fft", "fft-drop", "lp-fft", "lora", "bitfit", "sparse")


class Counted:
    """Made-up results, and a list of what was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Recipe, int]] = []

    def __call__(self, setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
        self.asked.append((recipe, seed))
        return made_up(setting, recipe, seed)


def by_rate(best: float):
    """Results that a learning rate near ``best`` makes highest."""
    return lambda setting, recipe, seed: {"test_accuracy": 1 / (1 + abs(np.log(recipe.lr / best)))}


# ---- fairness


@pytest.mark.parametrize("trials", [1, 4, 15, 16])
def test_every_arm_has_the_same_number_of_different_trials_in_the_same_range(trials: int) -> None:
    grid = make_grid(methods=METHODS, shares=(0.25, 0.5), epsilons=(1.0, np.inf), trials=trials)
    assert len(grid.arms) == 8
    for arm in grid.arms:
        for epsilon in grid.epsilons:
            tried = grid.candidates(arm, epsilon)
            assert len(tried) == len(set(tried)) == trials
            assert {recipe.epsilon for recipe in tried} == {epsilon}
            for name in arm.tuned:
                values = {getattr(recipe, name) for recipe in tried}
                # as many values of each of two rates as of a single one
                assert len(values) == trials
                low, high = (1 / 16, 1.0) if name == "drop" else (grid.lowest, grid.highest)
                assert low < min(values) <= max(values) < high


def test_every_arm_is_asked_for_the_same_number_of_cells() -> None:
    compute = Counted()
    grid = make_grid(methods=METHODS)
    run = run_grid(grid, compute=compute)
    assert len(compute.asked) == grid.cells
    for method, number in (("lp", 1), ("fft", 2), ("lp-fft", 1), ("lora", 1), ("bitfit", 1), ("sparse", 1)):
        seeds = [seed for recipe, seed in compute.asked if recipe.method == method]
        assert sum(seed >= TUNING for seed in seeds) == number * 4 * 2
        assert sorted(seed for seed in seeds if seed < TUNING) == sorted([0, 1, 2] * number)
    assert (run.trials == 4).all()


def test_pairs_fill_the_square() -> None:
    grid = make_grid(trials=16)
    (arm,) = (arm for arm in grid.arms if arm.method == "lp-fft")
    scale = np.log(grid.highest / grid.lowest)
    points = np.array(
        [
            [np.log(recipe.lp_lr / grid.lowest) / scale, np.log(recipe.lr / grid.lowest) / scale]
            for recipe in grid.candidates(arm, 1.0)
            if recipe.lp_lr and recipe.lr
        ]
    )
    # four by four squares; on the diagonal alone, 12 of 16 would be empty
    assert len({tuple(square) for square in np.floor(points * 4).astype(int)}) >= 12


@pytest.mark.parametrize("best", [0.05, 0.3, 2.0])
def test_tuning_finds_the_best_rate(best: float) -> None:
    grid = make_grid(methods=("fft", "lp-fft"), trials=16)
    run = run_grid(grid, compute=by_rate(best))
    # half a step of the 16, in logarithm
    assert np.allclose(np.log(run.lr), np.log(best), atol=np.log(grid.highest / grid.lowest) / 32 + 1e-3)


def test_a_rate_at_the_end_of_the_range_is_pointed_out() -> None:
    grid = make_grid(methods=("fft",), trials=16)
    assert run_grid(grid, compute=by_rate(100.0)).edge.all()
    assert not run_grid(grid, compute=by_rate(0.3)).edge.any()


def test_the_first_of_equal_trials_wins_and_failed_ones_do_not() -> None:
    grid = make_grid(methods=("fft",))
    (arm,) = grid.arms
    tried = grid.candidates(arm, 1.0)
    with Records() as records:
        assert tune(grid, arm, 1.0, records) is None
        for place, recipe in enumerate(tried):
            for seed in (0, 1):
                failed = (place, seed) == (0, 1)
                cell = Cell(grid.setting, recipe, TUNING + seed)
                accuracy = {"test_accuracy": 0.9 - 0.1 * (place == 2)}
                records.add(cell, ({}, "died") if failed else (accuracy, None))
        assert tune(grid, arm, 1.0, records) == (tried[1], 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(methods=("adam",)), "methods must be one of"),
        (dict(methods=()), "methods must be non-empty"),
        (dict(epsilons=(1.0, 1.0)), "epsilons must be non-empty without repetitions"),
        (dict(epsilons=(-1.0,)), "epsilon must be positive"),
        (dict(shares=(0.0,)), "shares must be different and strictly between 0 and 1"),
        (dict(shares=(0.01,)), "lp_share must leave a step"),
        (dict(seeds=0), "seeds must be at least 1"),
        (dict(seeds=TUNING + 1), "seeds must be at most"),
        (dict(trials=0), "trials must be at least 1"),
        (dict(lowest=3.0, highest=1.0), "lowest must be below"),
    ],
)
def test_bad_grids_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_grid(**options)


def test_rates_of_the_head_alone_have_a_range_of_their_own():
    grid = Grid(
        Setting(),
        Recipe(),
        methods=["lp", "fft", "fft-drop", "lp-fft", "bitfit"],
        shares=[0.5],
        trials=5,
        lowest=0.01,
        highest=0.1,
        lp_lowest=1,
        lp_highest=10,
    )
    for arm in grid.arms:
        for recipe in grid.candidates(arm, 1.0):
            low, high = (1, 10) if arm.method == "lp" else (0.01, 0.1)
            assert recipe.lr is not None
            assert low < recipe.lr < high
            assert recipe.lp_lr is None or 1 < recipe.lp_lr < 10
    same = Grid(Setting(), Recipe(), lowest=0.01, highest=0.1)
    assert (same.lp_lowest, same.lp_highest) == (0.01, 0.1)
    with pytest.raises(ValueError, match="lp_lowest must be below lp_highest=1, got 2"):
        Grid(Setting(), Recipe(), lp_lowest=2, lp_highest=1)


# ---- what is there is not computed again


def test_a_time_limit_leaves_cells_for_the_next_run(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    grid, path = make_grid(), tmp_path / "cells.jsonl"
    clock = iter(range(1000))
    monkeypatch.setattr(studies_grid.time, "monotonic", lambda: next(clock))
    whole = run_grid(grid, compute=made_up)
    asked, left = [], grid.cells
    while left:
        compute = Counted()
        run = run_grid(grid, cells=path, time_limit=5, compute=compute)
        assert left - run.attrs["left"] == len(compute.asked) == min(4, left)
        asked += compute.asked
        left = run.attrs["left"]
        assert left or run.identical(whole)
    assert len(asked) == len(set(asked)) == grid.cells


def test_a_failing_cell_is_recorded_and_tried_again(tmp_path) -> None:
    grid, path = make_grid(), tmp_path / "cells.jsonl"

    def failing(setting: Setting, recipe: Recipe, seed: int) -> dict[str, float]:
        if seed == 1 and recipe.method == "fft":
            raise RuntimeError("no luck")
        return made_up(setting, recipe, seed)

    run = run_grid(grid, cells=path, compute=failing)
    assert (run.attrs["left"], run.attrs["failed"]) == (0, 1)
    assert json.loads(run.attrs["errors"]) == ["RuntimeError: no luck"]
    assert np.isnan(run.test_accuracy.sel(arm="fft", seed=1)).all()
    assert np.isfinite(run.test_accuracy).sum() == 2 * 3 - 1
    compute = Counted()
    again = run_grid(grid, cells=path, compute=compute)
    assert [(recipe.method, seed) for recipe, seed in compute.asked] == [("fft", 1)]
    xr.testing.assert_identical(again, run_grid(grid, compute=made_up))


def test_a_larger_grid_computes_what_is_new(tmp_path) -> None:
    path = tmp_path / "cells.jsonl"
    run_grid(make_grid(), cells=path, compute=made_up)
    compute = Counted()
    run_grid(make_grid(seeds=4, epsilons=(1.0, 2.0)), cells=path, compute=compute)
    assert all(recipe.epsilon == 2 or seed == 3 for recipe, seed in compute.asked)


def test_an_incomplete_last_line_is_computed_again(tmp_path) -> None:
    grid, path = make_grid(), tmp_path / "cells.jsonl"
    whole = run_grid(grid, cells=path, compute=made_up)
    binary = path.read_bytes()
    path.write_bytes(binary[:-20])
    compute = Counted()
    xr.testing.assert_identical(run_grid(grid, cells=path, compute=compute), whole)
    assert len(compute.asked) == 1
    assert path.read_bytes() == binary


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"0.125", b"0.124"),
        (b'"values"', b'"walues"'),
        (b'"digest"', b'"disest"'),
        (b'{"key"', b'{{"key"'),
        (b"}", b""),
        (b"", b"[" * 10**5),
    ],
)
def test_a_damaged_line_is_named(tmp_path, old: bytes, new: bytes) -> None:
    path = tmp_path / "cells.jsonl"
    with Records(path) as records:
        for seed in range(3):
            records.add(Cell(SETTING, Recipe(), seed), ({"test_accuracy": 0.125}, None))
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + second.replace(old, new, 1) + third)
    with pytest.raises(RecordsError, match="damaged in line 2"):
        Records(path)


def test_a_file_in_use_is_refused(tmp_path) -> None:
    with Records(tmp_path / "cells.jsonl"), pytest.raises(RecordsError, match="in use"):
        Records(tmp_path / "cells.jsonl")
    Records(tmp_path / "cells.jsonl").close()


def test_numbers_that_json_lacks_come_back(tmp_path) -> None:
    cell = Cell(SETTING, Recipe(epsilon=np.inf), 0)
    with Records(tmp_path / "cells.jsonl") as records:
        records.add(cell, ({"spent": np.inf, "nc3": np.nan}, None))
    (line,) = (tmp_path / "cells.jsonl").read_text().splitlines()
    json.loads(line, parse_constant=pytest.fail)
    with Records(tmp_path / "cells.jsonl") as records:
        np.testing.assert_equal(records.get(cell), {"spent": np.inf, "nc3": np.nan})


def test_a_key_is_all_that_the_result_depends_on() -> None:
    cell = Cell(SETTING, Recipe(), 0)
    others = [
        replace(cell, seed=1),
        replace(cell, recipe=Recipe(lr=2.0)),
        replace(cell, setting=replace(SETTING, shift=Shift(rotation=21))),
        replace(cell, setting=replace(SETTING, widths=(9,))),
    ]
    assert len({cell.key, *(other.key for other in others)}) == 5
    assert replace(cell, setting=replace(SETTING, bodies="elsewhere")).key == cell.key


# ---- workers


def test_the_number_of_workers_does_not_matter() -> None:
    grid = make_grid()
    xr.testing.assert_identical(
        run_grid(grid, workers=2, compute=made_up), run_grid(grid, workers=1, compute=made_up)
    )


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_an_interrupted_grid_loses_no_finished_cell(tmp_path, number: signal.Signals) -> None:
    path = tmp_path / "cells.jsonl"
    script = (
        "from empirical import run_grid\n"
        "from tests.empirical.studies.toy import gated, make_grid\n"
        "from langevin.support.signals import interruptible\n"
        "if __name__ == '__main__':\n"
        f"    with interruptible(): run_grid(make_grid(), cells={str(path)!r}, workers=2, compute=gated)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "GATE": str(tmp_path / "gate")},
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until(lambda: path.exists() and path.read_bytes().count(b"\n") >= 8, process)
        with pytest.raises(RecordsError, match="in use"):
            Records(path)
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        finish(process)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode != 0
    compute, grid = Counted(), make_grid()
    run = run_grid(grid, cells=path, compute=compute)
    assert len(compute.asked) == grid.cells - 8
    xr.testing.assert_identical(run, run_grid(grid, compute=made_up))


def test_a_process_that_dies_fails_its_own_cell_alone() -> None:
    grid = make_grid()
    # two processes die for a cell before Dask gives it up, not four
    with config.set({"distributed.scheduler.allowed-failures": 1}):
        run = run_grid(grid, workers=2, compute=deadly)
    assert (run.attrs["left"], run.attrs["failed"]) == (0, 1)
    assert "its process died" in run.attrs["errors"]
    whole = run_grid(grid, compute=made_up).test_accuracy
    missing = run.test_accuracy.isnull()
    assert missing.sum() == 1
    assert missing.sel(arm="fft", seed=1).all()
    assert (run.test_accuracy == whole).where(~missing, True).all()
