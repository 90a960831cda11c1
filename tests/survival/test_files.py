"""Damaged and malicious files: read right, or refused in words of our own; nothing is unpickled."""

import json
import os
import pickle
import shutil
import zipfile
from io import BytesIO
from typing import Any

import h5py
import netCDF4
import numpy as np
import pytest
import xarray as xr

from langevin.store import errors, files, npz
from tests.survival import damage
from tests.survival.outcomes import TRIALS, attempt

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


@pytest.mark.parametrize("trial", range(TRIALS))
@pytest.mark.parametrize("name", KINDS)
def test_damaged_files_are_read_right_or_refused(folder, name, trial):
    kind, rng = KINDS[name], np.random.default_rng(trial)
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
        assert attempt(lambda name=name: KINDS[name].read(folder / name))[1]


def test_an_archive_of_nothing_is_read(folder):
    np.savez(folder / "empty.npz")
    assert npz.read(folder / "empty.npz") == {}


def test_runs_that_declare_more_than_memory_are_refused(folder):
    with netCDF4.Dataset("run.nc", "w") as file:
        file.createDimension("time", 10**14)
        file.createVariable("time", "f8", ("time",), zlib=True, chunksizes=(2**20,))
    assert (folder / "run.nc").stat().st_size < 10**5
    with pytest.raises(MemoryError, match="GiB are free"):
        files.load("run.nc")


def saved(folder):
    return files.save(xr.Dataset({"loss": ("time", np.ones(3))}), folder / "run.zarr")


def test_zarr_does_not_follow_links(folder):
    path = saved(folder)
    chunk = path / "loss" / "c" / "0"
    elsewhere = folder / "elsewhere"
    shutil.copy(chunk, elsewhere)
    chunk.unlink()
    chunk.symlink_to(elsewhere)
    with pytest.raises(errors.StoreError, match="links to other places"):
        files.load(path)


def test_netcdf_does_not_refer_to_other_files(folder):
    with h5py.File("secret.h5", "w") as file:
        file["loss"] = np.arange(4.0)
    np.arange(4.0).tofile("secret")
    virtual = h5py.VirtualLayout((4,), float)
    virtual[:] = h5py.VirtualSource("secret.h5", "loss", (4,))
    ways = {
        "link": lambda file: file.update(loss=h5py.ExternalLink("secret.h5", "/loss")),
        "link in a group": lambda file: file.create_group("a/b").update(
            c=h5py.ExternalLink("secret.h5", "/")
        ),
        "soft link": lambda file: file.update(loss=h5py.SoftLink("/time")),
        "raw": lambda file: file.create_dataset("loss", (4,), float, external=[("secret", 0, 32)]),
        "virtual": lambda file: file.create_virtual_dataset("loss", virtual),
    }
    for name, add in ways.items():
        with h5py.File(f"{name}.nc", "w") as file:
            file.create_dataset("time", data=np.arange(4.0)).make_scale("time")
            add(file)
        with pytest.raises(errors.StoreError, match="refers to other files"):
            files.load(f"{name}.nc")
    # negative control: without looking, what is elsewhere is read
    with xr.open_dataset("raw.nc", engine="netcdf4") as run:
        np.testing.assert_array_equal(run.loss, np.arange(4.0))


def test_netcdf_that_would_hang_the_library_is_refused(folder):
    """Damage is found before HDF5 reads it: objects of length 0 in a global heap never end."""
    path = files.save(xr.Dataset({"loss": ("time", np.ones(3))}, {"time": np.arange(3)}), folder / "run.nc")
    raw = bytearray(path.read_bytes())
    first = raw.index(b"GCOL") + 16
    raw[first : first + 16] = bytes(16)
    path.write_bytes(raw)
    with pytest.raises(errors.StoreError, match="not what was written"):
        files.load(path)


def test_netcdf_without_a_digest_of_the_file_is_read(folder):
    """As earlier versions wrote it."""
    run = xr.Dataset({"loss": ("time", np.ones(3))}, {"time": np.arange(3)})
    path = files.save(run, folder / "run.nc")
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(files._SEAL)])
    xr.testing.assert_identical(files.load(path), run)


def test_netcdf_of_the_classic_format_is_read(folder):
    run = xr.Dataset({"loss": ("time", np.ones(3))})
    run.to_netcdf("classic.nc", engine="netcdf4", format="NETCDF3_64BIT")
    xr.testing.assert_identical(files.load("classic.nc"), run)


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
    with pytest.raises(errors.StoreError, match="no readable run"):
        files.load(folder / "old.zarr")


def test_changed_numbers_of_a_run_are_found(folder):
    """What no checksum of netCDF or Zarr tells."""
    for path in (saved(folder), files.save(xr.Dataset({"loss": ("time", np.ones(3))}), folder / "run.nc")):
        run = files.load(path)
        opened: dict[str, Any] = {"engine": "netcdf4"}
        if path.suffix == ".zarr":
            opened = {"engine": "zarr", "consolidated": False}
        with xr.open_dataset(path, **opened) as raw:
            changed = raw.load()
        assert changed.attrs["digest"] == files.digest(run)
        changed.loss[0] += 1e-15
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        changed.to_netcdf(path) if path.suffix == ".nc" else changed.to_zarr(path, consolidated=False)
        with pytest.raises(errors.StoreError, match="not what was written"):
            files.load(path)
