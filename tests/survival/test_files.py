"""Damaged and malicious files: read right, or refused in words of our own; nothing is unpickled."""

import json
import os
import pickle
import shutil
import zipfile
from io import BytesIO
from typing import Any

import netCDF4
import numpy as np
import pytest
import xarray as xr

from langevin import _arrays, from_npz, store
from tests.survival import damage
from tests.survival.outcomes import attempt

KINDS = {kind.name: kind for kind in damage.kinds()}


class Malicious:
    """Leaves a trace where it is unpickled."""

    trace = "unpickled"

    def __reduce__(self):
        return os.mkdir, (self.trace,)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not (tmp_path / Malicious.trace).exists()


@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_right_or_refused(folder, name):
    kind, rng = KINDS[name], np.random.default_rng(0)
    path = folder / name
    kind.write(path)
    whole, content, refused = kind.read(path), path.read_bytes(), 0
    for _ in range(25):
        what, after = damage.damaged(content, rng)
        path.write_bytes(after)
        found, why = attempt(lambda path=path: kind.read(path))
        refused += bool(why)
        assert why or kind.equal(found, whole), what
    # negative control: damage is found
    assert refused > 5


@pytest.mark.parametrize("name", KINDS)
def test_pickles_are_refused(folder, name):
    path = folder / name
    path.write_bytes(pickle.dumps(Malicious()))
    assert attempt(lambda: KINDS[name].read(path))[1]
    array = np.empty(1, object)
    array[0] = Malicious()
    with path.open("wb") as file:
        np.savez(file, X=array, y=array, config=array, weight=array)
    assert attempt(lambda: KINDS[name].read(path))[1]


def lying(shape: tuple[int, ...]) -> bytes:
    """An array file that declares a shape which its bytes do not have."""
    file = BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return file.getvalue() + b"\0" * 64


@pytest.mark.parametrize("shape", [(2**50, 2), (2**62,), (10**30,)])
def test_arrays_that_declare_more_than_they_hold_are_refused(folder, shape):
    for name in ("data.npz", "checkpoint", "body.npz"):
        with zipfile.ZipFile(folder / name, "w") as archive:
            for member in ("X", "y", "config", "steps", "weight"):
                archive.writestr(f"{member}.npy", lying(shape))
        assert attempt(lambda name=name: KINDS[name].read(folder / name), seconds=10)[1]


def test_a_list_of_arrays_that_leaves_some_out_is_refused(folder):
    """What of a damaged list is still one says nothing of the arrays behind it."""
    np.savez(folder / "data.npz", X=np.ones((3, 2)), y=np.array([1.0, -1.0, 1.0]), W=np.ones((4, 2)))
    content = (folder / "data.npz").read_bytes()
    assert from_npz(folder / "data.npz")[1] is not None
    place = content.rindex(b"PK\x01\x02")  # of W
    end = content.rindex(b"PK\x05\x06")
    tail = bytearray(content[end:])
    tail[8:12] = (2).to_bytes(2, "little") * 2
    tail[12:16] = (place - int.from_bytes(tail[16:20], "little")).to_bytes(4, "little")
    (folder / "data.npz").write_bytes(content[:place] + tail)
    with zipfile.ZipFile(folder / "data.npz") as archive:
        assert archive.namelist() == ["X.npy", "y.npy"]
    _, why = attempt(lambda: from_npz(folder / "data.npz"))
    assert "leaves some out" in why


def test_a_list_that_leaves_out_the_first_array_is_refused(folder):
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        for name in ("W", "X", "y"):
            file = BytesIO()
            np.lib.format.write_array(file, np.ones((3, 2)) if name != "y" else np.array([1.0, -1.0, 1.0]))
            archive.writestr(f"{name}.npy", file.getvalue())
        del archive.filelist[0]
    _, why = attempt(lambda: from_npz(folder / "data.npz"))
    assert "leaves some out" in why


def test_an_archive_of_nothing_is_read(folder):
    np.savez(folder / "empty.npz")
    assert _arrays.read(folder / "empty.npz") == {}


def test_names_of_members_lead_nowhere(folder):
    outside = folder / "inside" / ".." / "escaped.npy"
    with zipfile.ZipFile(folder / "data.npz", "w") as archive:
        for name in ("../escaped", "/tmp/escaped", "X", "y"):
            archive.writestr(f"{name}.npy", lying((8,)))
    assert attempt(lambda: from_npz(folder / "data.npz"))[1]
    assert not outside.exists()


def test_runs_that_declare_more_than_memory_are_refused(folder):
    with netCDF4.Dataset("run.nc", "w") as file:
        file.createDimension("time", 10**11)
        file.createVariable("time", "f8", ("time",), zlib=True, chunksizes=(2**20,))
    assert (folder / "run.nc").stat().st_size < 10**5
    with pytest.raises(MemoryError, match="GiB are free"):
        store.load("run.nc")


def saved(folder):
    return store.save(xr.Dataset({"loss": ("time", np.ones(3))}), folder / "run.zarr")


def test_zarr_does_not_follow_links(folder):
    path = saved(folder)
    chunk = path / "loss" / "c" / "0"
    elsewhere = folder / "elsewhere"
    shutil.copy(chunk, elsewhere)
    chunk.unlink()
    chunk.symlink_to(elsewhere)
    with pytest.raises(store.StoreError, match="links to other places"):
        store.load(path)


@pytest.mark.parametrize("codecs", [{"compressor": {"id": "pickle"}}, {"filters": [{"id": "pickle"}]}])
@pytest.mark.parametrize("dtype", ["<f8", "|O"])
def test_zarr_with_codecs_that_unpickle_is_refused(folder, codecs, dtype):
    array = folder / "old.zarr" / "loss"
    array.mkdir(parents=True)
    (folder / "old.zarr" / ".zgroup").write_text(json.dumps({"zarr_format": 2}))
    about = {"zarr_format": 2, "shape": [1], "chunks": [1], "dtype": dtype, "fill_value": 0, "order": "C"}
    (array / ".zarray").write_text(json.dumps({"compressor": None, "filters": None, **about, **codecs}))
    (array / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["path"]}))
    (array / "0").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(store.StoreError, match="no readable run"):
        store.load(folder / "old.zarr")


def test_changed_numbers_of_a_run_are_found(folder):
    """What no checksum of netCDF or Zarr tells."""
    for path in (saved(folder), store.save(xr.Dataset({"loss": ("time", np.ones(3))}), folder / "run.nc")):
        run = store.load(path)
        opened: dict[str, Any] = {"engine": "netcdf4"}
        if path.suffix == ".zarr":
            opened = {"engine": "zarr", "consolidated": False}
        with xr.open_dataset(path, **opened) as raw:
            changed = raw.load()
        assert changed.attrs["digest"] == store.digest(run)
        changed.loss[0] += 1e-15
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        changed.to_netcdf(path) if path.suffix == ".nc" else changed.to_zarr(path, consolidated=False)
        with pytest.raises(store.StoreError, match="not what was written"):
            store.load(path)


def test_deep_json_is_damage(folder):
    deep = np.frombuffer(b"[" * 10**5, np.uint8)
    with (folder / "checkpoint").open("wb") as file:
        np.savez(file, config=deep, steps=np.zeros(5), scalars=np.zeros(3))
    with pytest.raises(store.StoreError, match="damaged"):
        KINDS["checkpoint"].read(folder / "checkpoint")
