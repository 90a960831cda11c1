"""Measures of features against closed forms, invariances and negative controls."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from empirical import digits
from empirical.features.collapse import neural_collapse
from empirical.features.measures import cosine_similarity, knn_accuracy, linear_cka
from empirical.features.watch import MEASURES, FeatureWatch
from empirical.networks.embed import embed

# sums of a few thousand terms of order 1 in doubles
ROUNDING = 1e-10


def rotation(size: int, rng: np.random.Generator) -> np.ndarray:
    return np.linalg.qr(rng.normal(size=(size, size)))[0]


def simplex(classes: int, features: int, rng: np.random.Generator) -> np.ndarray:
    """Vertices of a regular simplex about 0, shape (classes, features), turned at random."""
    vertices = np.eye(classes) - 1 / classes
    return np.pad(vertices, ((0, 0), (0, features - classes))) @ rotation(features, rng)


def linear(weight: np.ndarray, bias: bool = True) -> nn.Linear:
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=bias).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor(weight))
        if bias:
            head.bias.zero_()
    return head


class Body(nn.Module):
    """Has one part of its own in evaluation mode while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.features = 4
        self.linear = nn.Linear(64, 4)
        self.dropout = nn.Dropout()
        self.norm = nn.BatchNorm1d(4)
        self.norm.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.dropout(self.linear(x.flatten(1))))


def test_embedding_is_in_evaluation_mode_and_restores_every_mode():
    body = Body()
    images = np.random.default_rng(0).normal(size=(7, 1, 8, 8)).astype(np.float32)
    images.flags.writeable = False
    whole = embed(body, images)
    assert whole.shape == (7, 4)
    assert whole.dtype == np.float32
    np.testing.assert_allclose(embed(body, torch.tensor(images), batch=3), whole, atol=1e-6)
    assert (body.training, body.dropout.training, body.norm.training) == (True, True, False)
    assert all(p.grad is None for p in body.parameters())
    body.dropout.eval()  # the control: dropout in training mode would have been seen
    with torch.no_grad():
        np.testing.assert_allclose(body(torch.tensor(images)).numpy(), whole, atol=1e-6)
        assert abs(body.train()(torch.tensor(images)).numpy() - whole).max() > 0.1


def test_modes_are_restored_after_an_error():
    body = Body()
    with pytest.raises(RuntimeError, match="shapes"):
        embed(body, np.zeros((2, 1, 5, 5), np.float32))
    assert body.training
    assert not body.norm.training
    with pytest.raises(ValueError, match=r"images must have the shape .* got \(0, 1, 8, 8\)"):
        embed(body, np.zeros((0, 1, 8, 8), np.float32))


def test_neighbours_are_near_by_angle():
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    directions = np.array([[1.0, 0.2], [0.2, 1.0]])[labels]
    points = directions * rng.lognormal(0, 3, size=(200, 1))
    assert knn_accuracy(points[:100], labels[:100], points[100:], labels[100:]) == 1
    # labels that the points do not tell: half are right, within five standard errors
    coin = rng.integers(0, 2, 200)
    noise = rng.normal(size=(200, 2))
    right = knn_accuracy(noise[:100], coin[:100], noise[100:], coin[100:])
    assert abs(right - 0.5) < 5 * math.sqrt(0.25 / 100)


def test_neighbours_match_a_direct_vote():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(60, 3)), rng.normal(size=(40, 3))
    known, asked = rng.integers(0, 2, 60), rng.integers(0, 2, 40)
    cosines = (b / np.linalg.norm(b, axis=1)[:, None]) @ (a / np.linalg.norm(a, axis=1)[:, None]).T
    votes = known[np.argsort(-cosines, axis=1)[:, :5]].mean(axis=1) > 0.5
    assert knn_accuracy(a, known, b, asked, neighbours=5) == (votes == asked).mean()


@pytest.mark.parametrize(("p", "q"), [(5, 8), (300, 5)])  # by covariances, and by Gram matrices
def test_cka_is_that_of_the_centred_kernels(p, q):
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(60, p)) + 3, rng.normal(size=(60, q))
    b[:, :2] += a[:, :2]
    centring = np.eye(60) - 1 / 60
    K, L = centring @ a @ a.T @ centring, centring @ b @ b.T @ centring
    expected = np.trace(K @ L) / math.sqrt(np.trace(K @ K) * np.trace(L @ L))
    assert linear_cka(a, b) == pytest.approx(expected, abs=ROUNDING)
    assert linear_cka(b, a) == pytest.approx(expected, abs=ROUNDING)


def test_cka_keeps_under_rotation_scale_and_shift_alone():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(80, 6)) * [3, 2, 1, 1, 1, 0.5]
    b = np.tanh(a) + rng.normal(size=(80, 6))
    moved = -2.5 * a @ rotation(6, rng) + 7
    assert linear_cka(a, moved) == pytest.approx(1, abs=ROUNDING)
    assert linear_cka(moved, b) == pytest.approx(linear_cka(a, b), abs=ROUNDING)
    # not under other linear maps, nor is it high for unrelated features
    assert linear_cka(a, a * [1, 1, 1, 1, 9, 9]) < 0.9
    unrelated = rng.permutation(a)
    assert linear_cka(a, unrelated) < 3 * 6 / 80
    assert math.isnan(linear_cka(a, np.ones((80, 2))))


def test_cosine_is_of_each_sample():
    a = np.random.default_rng(4).normal(size=(30, 5))
    assert cosine_similarity(a, 3 * a) == pytest.approx(1)
    assert cosine_similarity(a, -a) == pytest.approx(-1)
    assert cosine_similarity(a, np.zeros_like(a)) == 0
    with pytest.raises(ValueError, match=r"same shape, got \(30, 5\) and \(30, 4\)"):
        cosine_similarity(a, a[:, :4])


@pytest.mark.parametrize("classes", [2, 3, 10])
def test_a_simplex_is_collapsed(classes):
    rng = np.random.default_rng(classes)
    vertices = simplex(classes, 12, rng)
    labels = np.arange(7 * classes) % classes
    collapse = neural_collapse(3 * vertices[labels] + rng.normal(size=12), labels, linear(0.2 * vertices))
    # the shift of all features is no matter to any but the head's choice
    assert np.array(collapse[:4]) == pytest.approx(0, abs=ROUNDING)
    assert neural_collapse(vertices[labels], labels, linear(vertices, bias=False)).nc4 == 0


def test_random_features_are_not_collapsed():
    rng = np.random.default_rng(5)
    labels = np.arange(400) % 4
    collapse = neural_collapse(rng.normal(size=(400, 8)), labels, linear(rng.normal(size=(4, 8))))
    # variance 1 within, 1/100 of a class mean, in 3 directions: 3 * 100 / 4 in order of magnitude
    assert 20 < collapse.nc1 < 300
    assert collapse.nc2_norms > 0.05
    assert collapse.nc2_angles > 0.05
    # matrices of norm 1 that are unrelated are sqrt(2) apart, by about 2 / sqrt(4 * 8)
    assert abs(collapse.nc3 - 2) < 5 * 2 / math.sqrt(32)
    assert collapse.nc4 > 0.3


def test_nc1_is_the_trace_with_the_pseudo_inverse():
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(3), [5, 9, 16])
    x = rng.normal(size=(30, 5)) + 2 * rng.normal(size=(3, 5))[labels]
    means = np.array([x[labels == c].mean(axis=0) for c in range(3)])
    centred = means - means.mean(axis=0)
    within = (x - means[labels]).T @ (x - means[labels]) / 30
    between = centred.T @ centred / 3
    expected = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3
    assert neural_collapse(x, labels).nc1 == pytest.approx(expected, rel=1e-8)


def test_each_measure_of_collapse_sees_its_own_break():
    rng = np.random.default_rng(7)
    vertices = simplex(4, 6, rng)
    labels = np.arange(40) % 4
    longer = vertices * [[1], [1], [1], [2]]
    assert neural_collapse(longer[labels], labels).nc2_norms > 0.1
    spread = vertices[labels] + 0.1 * rng.normal(size=(40, 6))
    assert neural_collapse(spread, labels).nc1 > 0.01
    swapped = neural_collapse(vertices[labels], labels, linear(vertices[[1, 0, 2, 3]]))
    assert swapped.nc3 > 0.5
    assert swapped.nc4 == 0.5
    square = np.array([[1, 0], [0, 1], [-1, 0], [0, -1.0]])
    flat = neural_collapse(square[labels], labels)
    assert flat.nc2_norms == pytest.approx(0, abs=ROUNDING)
    # four cosines 0 and two -1, against -1/3
    assert flat.nc2_angles == pytest.approx((4 / 3 + 2 * 2 / 3) / 6)


def test_what_is_not_defined_is_nan():
    labels = np.arange(8) % 2
    assert np.isnan(neural_collapse(np.ones((8, 3)), labels)).all()
    x = np.random.default_rng(8).normal(size=(8, 3))
    for head in (None, linear(np.zeros((2, 3)))):
        found = neural_collapse(x, labels, head)
        assert np.isfinite(found[:3]).all()
        assert np.isnan(found[3:]).all()


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 2, 0, 2], [0, 1, 2, 3]])
def test_classes_must_be_the_heads(labels):
    head = linear(np.ones((2, 3)))
    with pytest.raises(ValueError, match="labels must hold each of at least two classes"):
        neural_collapse(np.ones((4, 3)), np.array(labels), head)
    with pytest.raises(ValueError, match=r"labels must have the shape \(4,\)"):
        neural_collapse(np.ones((4, 3)), np.zeros(3, int))


def test_a_watch_tells_what_changed():
    task = digits(rng=0)
    torch.manual_seed(0)
    body, random = (nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU()) for _ in range(2))
    head = nn.Linear(16, 10)
    watch = FeatureWatch(task, body, train=300, test=100, random=random, rng=3)
    start = watch(body, head)
    assert list(start) == list(MEASURES)
    assert start["cka"] == pytest.approx(1)
    assert start["cosine"] == pytest.approx(1)
    assert set(watch.baselines) == {"pixels", "random", "pretrained"}
    assert watch.baselines["pretrained"] == start["knn_accuracy"]
    assert watch(random)["knn_accuracy"] == watch.baselines["random"]
    assert watch(random)["cka"] < 0.99
    assert math.isnan(watch(random)["nc3"])
    # the same images for the same seed, others for another
    same = FeatureWatch(task, body, train=300, test=100, rng=3)
    other = FeatureWatch(task, body, train=300, test=100, rng=4)
    assert same(random, head) == watch(random, head)
    assert other(random, head) != watch(random, head)
    # it keeps what the body was, not the body
    with torch.no_grad():
        for p in body.parameters():
            p.mul_(-1)
    assert watch(body)["cosine"] < 0.5


def test_a_watch_without_neurons_left():
    """A dead body is at chance and has no classes to collapse."""
    task = digits(rng=0)
    body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU())
    watch = FeatureWatch(task, body, train=300, test=100)
    linear = body[1]
    assert isinstance(linear, nn.Linear)
    with torch.no_grad():
        linear.weight.zero_()
        linear.bias.fill_(-1)
    dead = watch(body)
    assert dead["knn_accuracy"] < 0.3
    assert dead["cosine"] == 0
    assert math.isnan(dead["cka"])
    assert math.isnan(dead["nc1"])


def test_a_watch_needs_each_class():
    with pytest.raises(ValueError, match="train must be at least 10"):
        FeatureWatch(digits(), nn.Flatten(), train=9)
