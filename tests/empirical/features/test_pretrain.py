"""Pre-training gives features, by labels and without; its controls do not."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from empirical import digits, glyphs
from empirical.features.augment import Augment, nt_xent
from empirical.features.measures import knn_accuracy
from empirical.features.pretrain import pretrain, simclr, supervised
from empirical.features.watch import FeatureWatch
from empirical.networks.embed import embed
from langevin.model.problem import FloatArray

NOTHING = Augment(crop=1, rotation=0, brightness=0, contrast=0, colour=0, noise=0)


def mlp(pixels: int, features: int, seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, features), nn.ReLU()
        )
    body.features = features  # pyright: ignore[reportArgumentType]
    return body


def convnet(seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        body = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(256, 32), nn.ReLU()),
        )
    body.features = 32  # pyright: ignore[reportArgumentType]
    return body


def in_errors(differences: list[float]) -> float:
    """Mean of paired differences over its standard error."""
    values: FloatArray = np.array(differences)
    return float(values.mean() / (values.std(ddof=1) / math.sqrt(len(values))))


def test_supervision_makes_features_and_more_than_shuffled_ones():
    learned, over_shuffled, chance = [], [], []
    for seed in range(6):
        task = digits(public=900, rng=seed)
        assert task.public is not None
        images, labels = task.normalised(task.public), task.public.labels
        mixed = np.random.default_rng(seed).permutation(labels[:600])
        start, body, control, other = (mlp(64, 8, s) for s in (seed, seed, seed, seed + 100))
        supervised(body, images[:600], labels[:600], epochs=15, rng=seed)
        supervised(control, images[:600], mixed, epochs=15, rng=seed)
        accuracies = []
        for net in (start, body, control, other):
            x = embed(net, images)  # the last 300 are held out
            accuracies.append(knn_accuracy(x[:600], labels[:600], x[600:], labels[600:]))
        learned.append(accuracies[1] - accuracies[0])
        over_shuffled.append(accuracies[1] - accuracies[2])
        chance.append(accuracies[3] - accuracies[0])
    # with 5 degrees of freedom, 4 standard errors have a chance of .5 % each way
    assert in_errors(learned) > 4
    assert in_errors(over_shuffled) > 4
    assert abs(in_errors(chance)) < 4


def test_simclr_makes_features_without_labels():
    """Above those of a random net: not more, as noise in place of the images serves about as well."""
    learned, chance = [], []
    for seed in range(4):
        task = glyphs(16, classes=5, public_classes=20, train=300, test=300, public=1500, rng=seed)
        assert task.public is not None
        body = convnet(seed)
        losses = simclr(body, task.normalised(task.public), epochs=6, batch=128, rng=seed)
        # that of embeddings which are all equal; the first epoch is already below
        assert losses[-1] < losses[0] < math.log(2 * 128 - 1)
        watch = FeatureWatch(task, body, random=convnet(seed))
        learned.append(watch.baselines["pretrained"] - watch.baselines["random"])
        chance.append(watch(convnet(seed + 100))["knn_accuracy"] - watch.baselines["random"])
    # with 3 degrees of freedom, 5 standard errors have a chance of .8 % each way
    assert in_errors(learned) > 5
    assert abs(in_errors(chance)) < 5


def test_nt_xent_is_the_sum_over_pairs():
    rng = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 3, generator=rng).double(), torch.randn(4, 3, generator=rng).double()
    views = torch.cat([a, b]).numpy()
    views = views / np.linalg.norm(views, axis=1, keepdims=True)
    total = 0.0
    for i in range(8):
        scores = {j: views[i] @ views[j] / 0.3 for j in range(8) if j != i}
        total += math.log(sum(math.exp(s) for s in scores.values())) - scores[(i + 4) % 8]
    # it computes in single precision, on scores of up to 1 / 0.3
    assert float(nt_xent(a, b, 0.3)) == pytest.approx(total / 8, rel=1e-5)
    assert float(nt_xent(a, b.flip(0), 0.3)) != pytest.approx(total / 8, rel=1e-2)


@pytest.mark.parametrize("channels", [1, 3])
def test_views_keep_the_shape_and_are_finite(channels):
    torch.manual_seed(0)
    images = torch.randn(50, channels, 9, 12)
    before = images.clone()
    views = Augment(crop=0.2, rotation=180, flip=True, contrast=0.9, noise=1)(images)
    assert views.shape == images.shape
    assert torch.isfinite(views).all()
    assert (images == before).all()
    assert (views - images).abs().mean(dim=(1, 2, 3)).min() > 0.05
    # a separate draw for each image, new each time
    same = Augment()(images[:1].expand(5, -1, -1, -1))
    assert all((x != y).any() for x, y in itertools.combinations(same, 2))


def test_views_at_no_strength_are_the_images():
    images = torch.randn(20, 3, 8, 11, generator=torch.Generator().manual_seed(0))
    # places of up to 11 pixels in single precision, times differences of neighbours
    np.testing.assert_allclose(NOTHING(images), images, atol=11 * 1e-6 * 8)


def test_each_change_is_what_it_says():
    torch.manual_seed(1)
    images = torch.randn(200, 1, 8, 8)
    nothing = vars(NOTHING)

    flipped = Augment(**{**nothing, "flip": True})(images)
    mirrored = (flipped - images.flip(3)).abs().amax(dim=(1, 2, 3)) < 1e-4
    kept = (flipped - images).abs().amax(dim=(1, 2, 3)) < 1e-4
    assert (mirrored | kept).all()
    # of 200 fair coins
    assert abs(float(mirrored.float().mean()) - 0.5) < 5 * math.sqrt(0.25 / 200)

    brighter = Augment(**{**nothing, "brightness": 0.5})(images) - images
    assert brighter.flatten(1).std(dim=1).max() < 1e-3
    assert 0.3 < brighter.abs().max() <= 0.501

    contrast = Augment(**{**nothing, "contrast": 0.5})(images).flatten(1).std(dim=1)
    ratio = contrast / images.flatten(1).std(dim=1)
    assert 0.499 < ratio.min() < 0.7
    assert 1.3 < ratio.max() < 1.501

    disc = torch.zeros(200, 1, 33, 33)
    disc[..., 20:, 15:18] = 1
    turned = Augment(**{**nothing, "rotation": 90.0})(disc)
    # turning about the centre keeps the distance of the bar from it; a cut does not
    place = torch.arange(33) - 16.0
    radius = (place[:, None] ** 2 + place**2).sqrt()
    distance = (turned * radius).sum(dim=(1, 2, 3)) / turned.sum(dim=(1, 2, 3))
    upright = (disc * radius).sum(dim=(1, 2, 3)) / disc.sum(dim=(1, 2, 3))
    # border padding lengthens the bar where the frame is turned in; less than a pixel at 33
    assert (distance - upright).abs().median() < 1
    larger = Augment(**{**nothing, "crop": 0.25})(disc)
    assert larger.sum(dim=(1, 2, 3)).std() > 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(crop=0), r"crop must lie in \(0, 1\], got 0"),
        (dict(contrast=1), "contrast must be below 1"),
        (dict(noise=-1), "noise must be zero or positive"),
    ],
)
def test_bad_changes_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augment(**options)


@pytest.mark.parametrize("kind", ["supervised", "simclr"])
def test_the_seed_decides(kind):
    task = digits(public=100)
    first, second, third = (mlp(64, 8, 0) for _ in range(3))
    first.append(nn.Dropout(0.1))  # pyright: ignore[reportCallIssue]
    second.append(nn.Dropout(0.1))  # pyright: ignore[reportCallIssue]
    third.append(nn.Dropout(0.1))  # pyright: ignore[reportCallIssue]
    second.eval()
    state = torch.random.get_rng_state()
    seen = []
    losses = pretrain(first, task, kind=kind, epochs=2, rng=5, progress=lambda *a: seen.append(a))
    assert (torch.random.get_rng_state() == state).all()
    torch.manual_seed(123)
    assert pretrain(second, task, kind=kind, epochs=2, rng=5) == losses
    assert seen == list(enumerate(losses, 1))
    assert pretrain(third, task, kind=kind, epochs=2, rng=6) != losses
    for a, b, c in zip(first.parameters(), second.parameters(), third.parameters(), strict=True):
        assert (a == b).all()
        assert (a != c).any()
        assert a.grad is None
    # modes are as they were
    assert first.training
    assert not second.training


def test_private_images_are_not_read():
    task = digits(public=100)
    other = copy.copy(task)
    dark = type(task.train)(task.train.images * 0, task.train.labels, task.train.classes)
    object.__setattr__(other, "train", dark)
    assert pretrain(mlp(64, 8, 0), task, epochs=1) == pretrain(mlp(64, 8, 0), other, epochs=1)


def test_bad_input_is_refused():
    task = digits(public=0)
    with pytest.raises(ValueError, match="task must have a public part"):
        pretrain(mlp(64, 8, 0), task)
    with pytest.raises(ValueError, match="kind must be one of 'supervised', 'simclr'; got 'mae'"):
        pretrain(mlp(64, 8, 0), task, kind="mae")  # pyright: ignore[reportArgumentType]
    task = digits()
    with pytest.raises(TypeError, match="attribute 'features'"):
        pretrain(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), task)
    assert task.public is not None
    with pytest.raises(FloatingPointError, match="use an lr below 1e"):
        supervised(mlp(64, 8, 0), task.normalised(task.public), task.public.labels, lr=1e20, epochs=3)
