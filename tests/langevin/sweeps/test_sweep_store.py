"""The store of a sweep: always consistent, one sweep and one writer, extensible, and verified."""

import json
import shutil
from contextlib import closing

import numpy as np
import pytest
import xarray as xr
import zarr

from langevin.store.errors import StoreError
from langevin.sweeps import Grid, store
from langevin.sweeps.store import FAILED, FINISHED, LEFT, SweepStore, unfinished
from tests.langevin.engine.toy import TOYS, expected

SWEEP = {"a": [1.0, 2.0], "seed": {"count": 3}}


def opened(path, sweep=SWEEP, fixed=None, **record):
    return closing(SweepStore(path, Grid(TOYS, sweep, fixed or {}, record)))


def outcome(grid, place):
    values = grid.values(place)
    return {"x": expected(values["a"], values["b"], values["seed"])}, None


def fill(path, places, sweep=SWEEP):
    with opened(path, sweep) as kept:
        kept.write({place: outcome(kept.grid, place) for place in places})


def load(path) -> xr.Dataset:
    with xr.open_zarr(path, chunks=None, consolidated=False) as run:
        return run.load()


def require_right(path):
    """Check that cells marked finished are correct and the rest is empty."""
    run = load(path)
    for place in np.ndindex(run.status.shape):
        a, seed = float(run.a[place[0]]), int(run.seed[place[1]])
        finished = run.status.values[place] == FINISHED
        assert np.array_equal(
            run.x.values[place], expected(a, 0, seed) if finished else [np.nan] * 3, equal_nan=True
        )


def test_cells_are_written_and_read(tmp_path):
    path = tmp_path / "s.zarr"
    with opened(path) as kept:
        assert kept.left().tolist() == [0, 1, 2, 3, 4, 5]
        kept.write({(0, 1): outcome(kept.grid, (0, 1)), (1, 2): ({}, "it failed: é")})
        assert kept.status[0, 1] == FINISHED
    run = load(path)
    assert run.x.dims == ("a", "seed", "place")
    assert run.status.values.tolist() == [[LEFT, FINISHED, LEFT], [LEFT, LEFT, FAILED]]
    assert run.error.values[1, 2] == "it failed: é"
    assert json.loads(json.dumps(run.attrs["sweep"]))["sweep"] == {"a": [1.0, 2.0], "seed": [0, 1, 2]}
    require_right(path)
    # failed cells are tried again
    with opened(path) as kept:
        assert kept.left().tolist() == [0, 2, 3, 4, 5]
        kept.write({(1, 2): outcome(kept.grid, (1, 2))})
    assert load(path).error.values[1, 2] == ""
    require_right(path)
    assert unfinished(path, Grid(TOYS, SWEEP)) == 4


def test_readers_find_consolidated_metadata_also_of_a_store_that_grew(tmp_path):
    path = tmp_path / "s.zarr"
    fill(path, [(0, 1)])
    more = {"a": [1.0, 2.0, 3.0], "seed": {"count": 4}}
    for sweep, shape in ((SWEEP, (2, 3)), (more, (3, 4))):
        fill(path, [(1, 2)], sweep)
        with xr.open_zarr(path, chunks=None, consolidated=True) as found:
            assert found.status.shape == shape
            assert found.load().identical(load(path))
    # without it they say so, and the next writer adds it
    about = json.loads((path / "zarr.json").read_text())
    del about["consolidated_metadata"]
    (path / "zarr.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="Consolidated metadata requested"):
        xr.open_zarr(path, consolidated=True)
    fill(path, [(2, 3)], more)
    with xr.open_zarr(path, chunks=None, consolidated=True) as found:
        assert found.load().identical(load(path))


def test_chunks_are_full_and_cells_are_ordered_by_chunk(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CHUNK_BYTES", 4 * 24)
    with opened(tmp_path / "s.zarr", {"a": {"from": 1, "to": 4, "count": 4}, "seed": {"count": 5}}) as kept:
        array = zarr.open_array(kept.path / "x", mode="r")
        assert array.chunks == (1, 4, 3)
        kept.write({place: outcome(kept.grid, place) for place in [(0, 0), (3, 4)]})
        numbers = [(i // 5, i % 5 // 4) for i in kept.left()]
    assert numbers == sorted(numbers)
    require_right(tmp_path / "s.zarr")


@pytest.mark.parametrize("halfway", [False, True])
def test_a_grid_may_grow(tmp_path, monkeypatch, halfway):
    path = tmp_path / "s.zarr"
    fill(path, [(0, 0), (1, 2)])
    larger = {"a": [0.5, 1.0, 2.0], "seed": [0, 1, 2, 7]}
    if halfway:
        # a kill between two arrays
        monkeypatch.setattr(zarr.Array, "resize", lambda self, shape: 1 / 0)
        with pytest.raises(ZeroDivisionError), opened(path, larger):
            pass
        monkeypatch.undo()
    with opened(path, larger) as kept:
        assert kept.grid.sweep["a"] == (1.0, 2.0, 0.5)
        assert len(kept.left()) == 10
        kept.write({place: outcome(kept.grid, place) for place in [(2, 3), (0, 3)]})
    run = load(path)
    assert (run.status.sel(a=0.5, seed=7), run.status.sel(a=2.0, seed=2), int(run.status.sum())) == (1, 1, 4)
    require_right(path)
    # the first grid lacks values that the store has now
    with (
        pytest.raises(StoreError, match=r"its sweep\.a has the value 0\.5, which"),
        opened(path),
    ):
        pass


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (dict(sweep={"seed": [0, 1, 2]}), "it sweeps a, seed, the grid seed"),
        (dict(fixed={"b": 1}), "fixed.b is 0 there and 1 here"),
        (dict(size=4), "record.size is 3 there and 4 here"),
        (
            dict(sweep={"a": [1.0], "seed": [0, 1, 2]}),
            r"its sweep.a has the value 2.0, which the grid lacks",
        ),
    ],
)
def test_the_store_of_another_sweep_is_refused_with_the_difference(tmp_path, how, message):
    path = tmp_path / "s.zarr"
    fill(path, [(0, 0)])
    with pytest.raises(StoreError, match=f"belongs to another sweep: {message}"), opened(path, **how):
        pass
    record = {"size": how["size"]} if "size" in how else {}
    grid = Grid(TOYS, how.get("sweep", SWEEP), how.get("fixed", {}), record)
    with pytest.raises(StoreError, match=message):
        unfinished(path, grid)
    # settings without effect on results may differ
    with opened(path, fixed={"trace": "elsewhere"}) as kept:
        assert len(kept.left()) == 5


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "s.zarr"
    with opened(path), pytest.raises(StoreError, match="is in use by another sweep"), opened(path):
        pass
    with opened(path):
        pass


@pytest.mark.parametrize("what", ["folder", "file", "zarr", "no json", "another json", "no status"])
def test_a_store_without_a_sweep_is_refused(tmp_path, what):
    path = tmp_path / "s.zarr"
    if what == "folder":
        path.mkdir()
    elif what == "file":
        path.write_text("")
    elif what == "zarr":
        xr.Dataset({"x": ("t", [1.0])}).to_zarr(path, consolidated=False)
    else:
        fill(path, [(0, 0)])
        if what == "no status":
            shutil.rmtree(path / "status")
        else:
            (path / "zarr.json").write_text("{" if what == "no json" else "[1]")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreError, match="is damaged" if what == "no status" else "is none: take another"):
        SweepStore(path, Grid(TOYS, SWEEP))
    assert set(before) <= set(tmp_path.rglob("*"))


def test_links_out_of_a_store_are_not_followed(tmp_path):
    path = tmp_path / "sweep.zarr"
    fill(path, [(0, 0)])
    elsewhere = (path / "x").rename(tmp_path / "elsewhere")
    (path / "x").symlink_to(elsewhere)
    with pytest.raises(StoreError, match="links to other places"):
        SweepStore(path, Grid(TOYS, SWEEP))


@pytest.mark.parametrize("content", [b"", b"x", None])
def test_a_damaged_chunk_is_detected(tmp_path, content):
    path = tmp_path / "s.zarr"
    fill(path, [(0, 0)])
    for name in ("x", "status"):
        chunk = next((path / name).glob("c.*"))
        chunk.write_bytes(chunk.read_bytes()[:-3] if content is None else content)
        with pytest.raises(ValueError, match="checksum"):
            load(path)[name].values.tolist()
    with pytest.raises(StoreError, match="is damaged"):
        SweepStore(path, Grid(TOYS, SWEEP))


# two coordinates, the data, the status
@pytest.mark.parametrize("moment", range(4))
def test_a_failed_write_marks_nothing_wrong_as_finished(tmp_path, monkeypatch, moment):
    """Raise an error instead of each write of a file in turn."""
    from zarr.storage import _local

    path = tmp_path / "s.zarr"
    fill(path, [(0, 0), (0, 1)])
    real, count = _local._put, iter(range(100))

    def put(target, value, exclusive=False):
        if next(count) == moment:
            raise OSError(28, "No space left on device")
        return real(target, value, exclusive)

    monkeypatch.setattr(_local, "_put", put)
    grid = Grid(TOYS, SWEEP)
    with pytest.raises(StoreError, match="could not be written: No space left"):
        fill(path, [(0, 2), (1, 0)])
    monkeypatch.undo()
    run = load(path)
    assert run.status.values.tolist() == [[FINISHED, FINISHED, LEFT], [LEFT, LEFT, LEFT]]
    for place in np.argwhere(run.status.values == FINISHED):
        assert np.array_equal(run.x.values[tuple(place)], outcome(grid, place)[0]["x"])
    fill(path, [(0, 2), (1, 0)])
    assert int((load(path).status == FINISHED).sum()) == 4
    require_right(path)


def test_a_sweep_without_room_is_refused(tmp_path, monkeypatch):
    with opened(tmp_path / "s.zarr") as kept:
        store.require_room(kept.path, 6, kept.layout)
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 100))
        with pytest.raises(
            StoreError, match=r"needs 1\.4e-07 GiB for 6 cells before compression, 9\.31e-08 GiB"
        ):
            store.require_room(kept.path, 6, kept.layout)
