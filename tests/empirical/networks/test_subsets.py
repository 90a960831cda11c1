"""Adapters stand where layers stood: what reads a layer reads theirs."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from empirical.networks.subsets import Adapter, adapt
from empirical.studies.setting import Setting
from empirical.train.fine_tuning import finetune
from tests.empirical.train.tasks import TASK, quick


class Reader(nn.Module):
    """Reads of its layers what bodies of libraries do."""

    features = 6

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.out = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.conv.weight.dtype).to(self.conv.weight.device)
        x = self.conv(x).mean((2, 3)) * self.conv.stride[0]
        assert self.out.bias is not None
        return self.out(x.view(-1, self.out.in_features))


def test_a_body_that_reads_its_layers_trains_with_adapters() -> None:
    run = finetune(TASK, Reader(), quick("lora", steps=4), evaluations=1)
    assert run.test_loss.values[0] != run.test_loss.values[1]


def test_an_adapter_says_what_its_base_says_and_registers_it_once() -> None:
    base = nn.Linear(3, 4)
    adapter = Adapter(base, 2, seed=0)
    assert adapter.weight is base.weight
    assert (adapter.in_features, adapter.out_features, adapter.bias) == (3, 4, base.bias)
    assert [name for name, _ in adapter.named_parameters(remove_duplicate=False)] == [
        "base.weight",
        "base.bias",
        "down.weight",
        "up.weight",
    ]
    assert Adapter(nn.Conv2d(1, 2, 3, padding=1), 2, seed=0).padding == (1, 1)
    assert Adapter(nn.Linear(2, 2, bias=False), 2, seed=0).bias is None
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'bogus'"):
        _ = adapter.bogus
    for again in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert again.weight is again.base.weight
        assert torch.equal(again.weight, base.weight)


def test_adapters_draw_from_their_own_seed() -> None:
    def adapted(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        return adapt(Reader(), 2, seed).state_dict()

    with torch.random.fork_rng(devices=[]):
        one, same, other = adapted(1), adapted(1), adapted(2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["conv.down.weight"], other["conv.down.weight"])
    assert not one["conv.up.weight"].any()


def test_options_of_any_json_are_part_of_a_setting() -> None:
    def setting(depths: list[int]) -> Setting:
        return Setting("digits", options=(("depths", depths), ("named", {"a": [1], "b": {"c": None}})))

    one = setting([1, 1])
    assert hash(one) == hash(setting([1, 1]))
    assert one == setting([1, 1])
    assert one != setting([1, 2])
    assert dict(one.options) == {"depths": (1, 1), "named": {"a": (1,), "b": {"c": None}}}
    assert pickle.loads(pickle.dumps(one)) == one
    assert hash(pickle.loads(pickle.dumps(one))) == hash(one)
    assert one.as_dict()["options"] == one.options
