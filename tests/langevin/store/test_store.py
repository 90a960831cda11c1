"""Runs on disk, and unfinished runs: atomic, exact, never unpickled."""

import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from langevin import Interrupted, Schedule, euler_maruyama
from langevin.engine import chain, pool
from langevin.solvers import diffusion
from langevin.store import checkpoints, errors, files
from tests.helpers import SECONDS, random_problem, random_weights
from tests.langevin.solvers.test_solvers import equal_bits

PROBLEM, WEIGHTS = random_problem(0, n=3, d=6), random_weights(0, d=6)
SCHEDULE = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, sigma=0.3, clip=1.0)
ARGUMENTS = {"dt": 0.01, "paths": 7, "rng": 1, "observables": ["alignment"]}


def simulate(**changes) -> xr.Dataset:
    return euler_maruyama(PROBLEM, WEIGHTS, SCHEDULE, **{**ARGUMENTS, **changes})


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_round_trip(tmp_path, suffix):
    run = simulate()
    path = files.save(run, tmp_path / f"run{suffix}")
    files.save(run, path)
    assert files.load(path).identical(run)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_failed_write_keeps_the_old_run(tmp_path, monkeypatch):
    run = simulate()
    path = files.save(run, tmp_path / "run.nc")

    def full(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(errors.StoreError, match="No space left"):
        files.save(run, path)
    assert files.load(path).identical(run)
    assert [p.name for p in tmp_path.iterdir()] == ["run.nc"]


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", pickle.dumps({"a": 1}), b"CDF\x01junk"])
def test_damaged_runs_are_refused(tmp_path, content):
    path = tmp_path / "run.nc"
    path.write_bytes(content)
    with pytest.raises(errors.StoreError, match="no readable run"):
        files.load(path)


def test_bad_targets(tmp_path):
    with pytest.raises(errors.StoreError, match="must end in"):
        files.check_target(tmp_path / "run.csv")
    (tmp_path / "run.nc").mkdir()
    with pytest.raises(errors.StoreError, match="is a folder"):
        files.check_target(tmp_path / "run.nc")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.StoreError, match="must be writable"):
        files.check_target(tmp_path / "file" / "run.nc")
    with pytest.raises(errors.StoreError, match="there is no run"):
        files.load(tmp_path / "other.nc")


class Stop:
    """Raise KeyboardInterrupt in the main thread after some progress, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, *args, **kwargs):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return WAIT(*args, **kwargs)


WAIT = pool.wait


# seven paths on two threads wait at least four times
@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("threads", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_bits(tmp_path, monkeypatch, after, threads):
    whole = simulate()
    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    checkpoint = tmp_path / "run.unfinished"
    monkeypatch.setattr(pool, "wait", Stop(after))
    with pytest.raises(Interrupted) as caught:
        simulate(checkpoint=checkpoint, threads=threads)
    assert caught.value.checkpoint == checkpoint
    partial = caught.value.run
    known = np.isfinite(partial.loss.values)
    assert not known.all()
    assert (partial.loss.values[known] == whole.loss.values[known]).all()
    monkeypatch.setattr(pool, "wait", WAIT)
    monkeypatch.setattr(chain, "_CALL_SECONDS", 0.1)
    assert equal_bits(whole, simulate(checkpoint=checkpoint, threads=3 - threads))
    assert not checkpoint.exists()


def test_an_interruption_in_full_fine_tuning_keeps_the_part_outside_the_span(tmp_path, monkeypatch):
    whole = simulate()
    asked: list[bool] = []
    reached, halted = threading.Event(), threading.Event()
    advance = chain.Chain.advance

    def pausing(self, chunk, results, scratch, stop):
        advance(self, chunk, results, scratch, min(stop, chunk.step + 1))
        # step 25 of 40 lies in the second phase
        if self.noisy and chunk.step == 25 and not halted.is_set():
            reached.set()
            assert halted.wait(SECONDS)

    def interrupting(*args, **kwargs):
        asked.append(True)
        if len(asked) == 1:
            assert reached.wait(SECONDS)
            raise KeyboardInterrupt
        # the run waits for threads that it has asked to halt
        halted.set()
        return WAIT(*args, **kwargs)

    monkeypatch.setattr(chain.Chain, "advance", pausing)
    monkeypatch.setattr(pool, "wait", interrupting)
    checkpoint = tmp_path / "c"
    with pytest.raises(Interrupted):
        simulate(checkpoint=checkpoint, threads=1)
    with np.load(checkpoint) as file:
        assert 25 in file["chunks"][:, 1]
        assert np.abs(file["complements"]).max() > 0
    assert equal_bits(whole, simulate(checkpoint=checkpoint, threads=2))


def test_a_chunk_that_an_interruption_lost_is_run_again(tmp_path, monkeypatch):
    """A signal between taking up a chunk and handing it to a thread."""
    whole = simulate()
    path = tmp_path / "c"
    interrupted(path, monkeypatch)
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    for name in ("chunks", "thetas", "complements"):
        arrays[name] = arrays[name][:0]
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    assert equal_bits(whole, simulate(checkpoint=path))


def test_a_failing_autosave_does_not_stop_the_run(tmp_path, monkeypatch):
    def full(*args):
        raise errors.StoreError("No space left on device")

    monkeypatch.setattr(diffusion, "_AUTOSAVE_SECONDS", 0.0)
    monkeypatch.setattr(checkpoints, "save_checkpoint", full)
    with pytest.warns(UserWarning, match="No space left.*the run goes on"):
        run = simulate(checkpoint=tmp_path / "c")
    assert equal_bits(run, simulate())
    with pytest.raises(ValueError, match="checkpoint must lie in an existing folder"):
        simulate(checkpoint=tmp_path / "nowhere" / "c")


def interrupted(path: Path, monkeypatch) -> None:
    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    monkeypatch.setattr(pool, "wait", Stop(3))
    with pytest.raises(Interrupted):
        simulate(checkpoint=path, threads=1)
    monkeypatch.setattr(pool, "wait", WAIT)


def test_autosaves_do_not_change_a_bit(tmp_path, monkeypatch):
    whole = simulate()
    monkeypatch.setattr(diffusion, "_AUTOSAVE_SECONDS", 0.0)
    monkeypatch.setattr(chain, "_CALL_SECONDS", 1e-9)
    saves = []
    real = checkpoints.save_checkpoint
    monkeypatch.setattr(checkpoints, "save_checkpoint", lambda *a: (saves.append(1), real(*a)))
    assert equal_bits(whole, simulate(checkpoint=tmp_path / "c", threads=2))
    assert len(saves) > 3


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rng": 2}, "key"),
        ({"dt": 0.02}, "dt"),
        ({"paths": 8}, "paths"),
        ({"precision": "single"}, "precision"),
        ({"reduce": "none"}, "reduction"),
        ({"observables": []}, "observables"),
        ({"times": [0.0, 0.4]}, "times"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path, monkeypatch, changes, named):
    path = tmp_path / "c"
    interrupted(path, monkeypatch)
    with pytest.raises(errors.StoreError, match=f"belongs to another run: {named} is"):
        simulate(checkpoint=path, **changes)
    assert path.exists()


def test_only_differences_are_named(tmp_path, monkeypatch):
    path = tmp_path / "c"
    interrupted(path, monkeypatch)
    other = Schedule.lp_fft(lp_time=0.1, fft_time=0.3, sigma=0.4, clip=1.0)
    with pytest.raises(errors.StoreError, match=r"run: schedule\.0\.sigma is 0\.3 there and 0\.4 here"):
        euler_maruyama(PROBLEM, WEIGHTS, other, **ARGUMENTS, checkpoint=path)


@pytest.mark.parametrize("damage", ["truncated", "empty", "pickle", "one byte"])
def test_a_damaged_checkpoint_is_refused(tmp_path, monkeypatch, damage):
    path = tmp_path / "c"
    interrupted(path, monkeypatch)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"config": 1}))
    else:
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])
    with pytest.raises(errors.StoreError, match="damaged"):
        simulate(checkpoint=path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_an_unwritable_folder(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(errors.StoreError, match="must be writable"):
        files.check_target(tmp_path / "run.nc")


def texts() -> xr.Dataset:
    names = ["a", "b\N{LATIN SMALL LETTER E WITH ACUTE}", "ccc"]
    return xr.Dataset(
        {"loss": ("stage", np.arange(3.0)), "title": ((), "whole")},
        {"stage": ("stage", names, {"long_name": "stage"}), "none": ("empty", np.array([], "U1"))},
        {"source": "test"},
    )


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_text_is_restored_with_a_stable_type(tmp_path, suffix):
    # a warning would fail this
    found = files.load(files.save(texts(), tmp_path / f"run{suffix}"))
    assert found.identical(texts())
    assert found.stage.dtype == texts().stage.dtype
    # also from one kind of file to the other
    for other in (".nc", ".zarr"):
        assert files.load(files.save(found, tmp_path / f"again{other}")).identical(texts())


def test_text_as_earlier_versions_wrote_it_is_read(tmp_path):
    run = texts()
    with pytest.warns(Warning, match="does not have a Zarr V3 specification"):
        run.assign_attrs(digest=files.digest(run)).to_zarr(tmp_path / "run.zarr", consolidated=False)
    assert files.load(tmp_path / "run.zarr").identical(run)


def test_other_readers_of_zarr_find_consolidated_metadata(tmp_path):
    run = xr.Dataset({"x": ("time", [1.0, 2.0])}, attrs={"source": "test"})
    files.save(run, tmp_path / "run.zarr")
    # a warning, as of a store without, would fail this
    with xr.open_zarr(tmp_path / "run.zarr") as found:
        assert found.x.equals(run.x)
    with xr.open_zarr(tmp_path / "run.zarr", consolidated=True) as found:
        assert found.x.equals(run.x)
    run.to_zarr(tmp_path / "bare.zarr", consolidated=False)
    with pytest.raises(ValueError, match=r"[Cc]onsolidated"):
        xr.open_zarr(tmp_path / "bare.zarr", consolidated=True)
