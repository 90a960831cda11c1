"""Tables of the committed studies: each value at its place; what the captions claim."""

import json
import re

import numpy as np
import pytest
import xarray as xr

from empirical.studies.tables import paired
from figures.output import ROOT
from figures.study import studies
from figures.tables import tab_small
from langevin.store import files


def grid(tmp_path, name, arms, epsilons, **setting):
    """A study of two seeds: 0.1 around 100 times the arm's number, plus epsilon / 10."""
    setting = dict(data="digits", body="mlp", widths=[8], shift=dict(rotation=0, gain=1, offset=0)) | setting
    number = np.arange(len(arms))[:, None, None]
    values = 100 * number + np.array(epsilons)[:, None] / 10 + (-1) ** number * [-0.1, 0.1]
    run = xr.Dataset(
        {"test_accuracy": (("arm", "epsilon", "seed"), values)},
        {"arm": arms, "method": ("arm", arms), "share": ("arm", np.zeros(len(arms))), "epsilon": epsilons},
        {"setting": json.dumps({"device": "cpu"} | setting)},
    )
    files.save(run, tmp_path / f"{name}.nc")


def test_studies_side_by_side(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "ROOT", tmp_path)
    monkeypatch.setattr(studies, "FOLDER", ".")
    grid(tmp_path, "z", ["lp", "fft"], [1.0], shift=dict(rotation=20, gain=0.5, offset=0.1))
    grid(
        tmp_path,
        "a",
        ["fft", "lora"],
        [0.3, 1.0],
        data="glyphs",
        body="timm:vit",
        widths=None,
        device="cuda:1",
    )
    data = studies.collect(["z", "a"])
    assert data.attrs["machine"] == "z on a processor; a on a GPU"
    assert data["mean"].sel(study="a", arm="lora", epsilon=0.3).item() == pytest.approx(100.03)
    assert studies.tabulate(data).rows == [
        ["digits, rotated by 20°, dimmed to 0.5 x + 0.1; 2 seeds", "mlp 8", "lp", "-", "0.100 ± 0.100*"],
        ["", "", "fft", "-", "100.100 ± 0.100"],
        ["glyphs, 24 px; 2 seeds", "vit", "fft", "0.030 ± 0.100", "0.100 ± 0.100"],
        ["", "", "lora", "100.030 ± 0.100*", "100.100 ± 0.100*"],
    ]


def test_what_the_caption_of_small_networks_says():
    data = tab_small.compute()
    ahead = data["mean"].sel(arm="lp") - data["mean"].sel(arm="fft")
    assert (ahead.sel(epsilon=[0.1, 0.3]) > 0).all()
    assert (ahead.sel(epsilon=8) < data.standard_error.sel(arm="lp", epsilon=8)).all()
    for name in tab_small.STUDIES:
        run = files.load(studies.ROOT / studies.FOLDER / f"{name}.nc")
        better = [(found := paired(run, other)).significant & (found["mean"] > 0) for other in ("lp", "fft")]
        both = (better[0] & better[1]).sel(
            arm=[arm for arm in run.arm.values if str(arm).startswith("lp-fft")]
        )
        assert not both.any()
        # it is ahead of either somewhere
        assert better[0].any() or better[1].any()


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/*/*.nc")), ids=lambda path: path.name)
def test_committed_results_name_no_folder_of_one_machine(path):
    said = " ".join(str(value) for value in files.load(path).attrs.values())
    assert re.findall(r"[\"' ]/\w+/[\w/]*", said) == []


def test_folders_of_one_machine_are_found():
    assert re.findall(r"[\"' ]/\w+/[\w/]*", '{"folder": "/tmp/fm"}') == ['"/tmp/fm']
