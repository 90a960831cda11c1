"""Weights on disk: exact, strict, and never half written."""

import os

import numpy as np
import pytest
import torch
from torch import nn

from empirical import WeightsError, load_weights, save_weights


def net(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU())


def test_weights_come_back_to_the_last_bit(tmp_path):
    first, second = net(), net()
    first(torch.randn(4, 1, 6, 6))  # running statistics, too
    assert save_weights(tmp_path / "net.npz", first) == tmp_path / "net.npz"
    load_weights(str(tmp_path / "net.npz"), second)
    assert first.state_dict().keys() == second.state_dict().keys()
    for name, value in first.state_dict().items():
        assert (second.state_dict()[name] == value).all()
        assert second.state_dict()[name].dtype == value.dtype
    assert os.listdir(tmp_path) == ["net.npz"]


@pytest.mark.parametrize("kept", [0, 10, 200, -30, -1])
def test_a_cut_file_is_refused(tmp_path, kept):
    path = save_weights(tmp_path / "net.npz", net())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=r"damaged .* make it again"):
        load_weights(path, net())


def test_a_changed_byte_is_refused(tmp_path):
    module = net()
    path = save_weights(tmp_path / "net.npz", module)
    data = bytearray(path.read_bytes())
    content = module.state_dict()["0.weight"].numpy().tobytes()
    data[data.index(content) + 7] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(path, net())


def test_pickles_and_single_arrays_are_refused(tmp_path):
    path = tmp_path / "net.npz"
    np.savez(path, allow_pickle=True, **{"0.weight": np.array([{}], dtype=object)})
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(path, net())
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(WeightsError, match="damaged"):
        load_weights(path, net())


def test_another_architecture_is_refused_and_changes_nothing(tmp_path):
    path = save_weights(tmp_path / "net.npz", net())
    wide = net(6)
    before = {name: value.clone() for name, value in wide.state_dict().items()}
    with pytest.raises(WeightsError, match=r"holds 0.weight of shape \(5, 1, 3, 3\)"):
        load_weights(path, wide)
    assert all((wide.state_dict()[name] == value).all() for name, value in before.items())
    with pytest.raises(WeightsError, match=r"lacks \['bias', 'weight'\] and also has \['0.bias'"):
        load_weights(path, nn.Linear(3, 2))
    with pytest.raises(WeightsError, match=r"and torch\.float32, the module's is of"):
        load_weights(path, net().double())


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(tmp_path / "net.npz", net())
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WeightsError, match="could not be written: No space left"):
        save_weights(path, net())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["net.npz"]


def test_paths_are_checked(tmp_path):
    with pytest.raises(WeightsError, match=r"must end in \.npz"):
        save_weights(tmp_path / "net.pt", net())
    with pytest.raises(WeightsError, match="there is no file"):
        load_weights(tmp_path / "none.npz", net())
    with pytest.raises(WeightsError, match="could not be written"):
        save_weights(tmp_path / "none" / "net.npz", net())
