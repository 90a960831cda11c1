"""The last layer of a body: its weights and inputs give the body's features."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from empirical import convnet, embed, last_layer, mlp, plan_share

IMAGES = np.random.default_rng(0).random((40, 1, 6, 6), dtype=np.float32)


def conv(*after: nn.Module, kernel: int = 1, **how: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2), nn.ReLU(), nn.Sequential(nn.Conv2d(4, 5, kernel, **how), *after)
    )


def normalised(norm: nn.Module) -> nn.Module:
    """With statistics and weights of its own, in evaluation."""
    torch.manual_seed(1)
    for name in ("weight", "bias", "running_mean"):
        nn.init.normal_(getattr(norm, name))
    nn.init.uniform_(norm.running_var, 0.5, 2.0)  # type: ignore[arg-type]
    return norm.eval()


BODIES: dict[str, nn.Module] = {
    "dense": mlp((1, 6, 6), (8, 5)),
    "without bias": mlp((1, 6, 6), (8, 5), bias=False, activation="linear"),
    "batch normalisation": nn.Sequential(
        nn.Flatten(), nn.Linear(36, 7), normalised(nn.BatchNorm1d(7)), nn.ReLU(), nn.Dropout(0.5)
    ),
    "linear and pooled": conv(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "normalised and pooled": conv(normalised(nn.BatchNorm2d(5)), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
}


@pytest.mark.parametrize("name", list(BODIES))
def test_layer_and_inputs_give_the_features(name):
    body = BODIES[name]
    found = last_layer(body)
    z = found.inputs(IMAGES) @ found.W.T
    features = np.maximum(z, 0) if found.activation == "relu" else z
    assert features == pytest.approx(embed(body, IMAGES), abs=1e-5)
    assert found.departure(body, IMAGES) < 1e-5
    assert found.pooled == ("pooled" in name)
    # the control: without the bias and what normalisation shifts
    if name != "without bias":
        other = z - found.W[:, -1]
        assert np.abs((np.maximum(other, 0) if found.activation == "relu" else other) - features).max() > 1e-2


def test_a_mean_over_positions_of_a_relu_departs_and_says_by_how_much():
    body = conv(nn.BatchNorm2d(5, momentum=None), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    # statistics of these images, so that both signs occur
    body.train()(torch.from_numpy(IMAGES))
    body.eval()
    found = last_layer(body)
    assert (found.activation, found.pooled) == ("relu", True)
    departure = found.departure(body, IMAGES)
    assert 1e-4 < departure < 0.5
    # one position alone is exact
    single = np.ascontiguousarray(IMAGES[:, :, :3, :3])
    assert found.departure(body, single) < 1e-5


@pytest.mark.parametrize(
    ("body", "got"),
    [
        (convnet((1, 6, 6), (8, 16)), "got GroupNorm there"),
        (conv(nn.AdaptiveAvgPool2d(1), nn.Flatten(), kernel=2), "kernel_size=\\(2, 2\\)"),
        (conv(nn.Flatten()), "without a mean"),
        (nn.Sequential(nn.Flatten()), "got nothing there"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.BatchNorm1d(3, track_running_stats=False)),
            "fixed stat",
        ),
    ],
)
def test_other_bodies_are_refused_by_what_they_end_in(body, got):
    with pytest.raises(TypeError, match=f"body must .*{got}"):
        last_layer(body)


def test_it_is_what_a_plan_takes():
    body, labels = BODIES["dense"], np.arange(40) % 2
    found = last_layer(body)
    how: dict[str, Any] = dict(epsilon=1.0, delta=1e-3, steps=5, draws=2, shares=[0.0, 1.0], theory=False)
    plan = plan_share(found.inputs(IMAGES), labels, W=found.W, activation=found.activation, **how)
    # nothing is left open
    assert [list(runs.worlds) for runs in plan.runs.values()] == [["nothing hidden"]] * 3
