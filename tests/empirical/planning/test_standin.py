"""The net that plans are tried on: its steps are those of clipped descent, its noise that of DP-SGD."""

import os
import signal
import threading

import numpy as np
import pytest
from scipy.special import expit, log_softmax, softmax

from empirical.planning import stand_in
from empirical.planning.stand_in import Settings, Split, StandIn
from langevin import DPSGD
from langevin.engine import noise
from tests.langevin.engine.batches import members

random = np.random.default_rng(0)
X, LABELS = np.abs(random.standard_normal((30, 5))), random.integers(3, size=30)
W, V = random.standard_normal((4, 5)), random.standard_normal((3, 4))


def net(activation="relu", **changes):
    fields = dict(X=X, labels=LABELS, X_test=X, labels_test=LABELS, W=W, v=V, classes=3)
    return StandIn(**{**fields, "activation": activation, **changes})


def clipped_descent(activation, lp_steps, steps, rates, clip, classes):
    """Sample by sample, by automatic differentiation."""
    import torch

    start = V if classes == 3 else V[:1]
    first, head = (torch.tensor(part, dtype=torch.float64, requires_grad=True) for part in (W, start))
    phi = torch.relu if activation == "relu" else lambda z: z
    x, y = torch.tensor(X), torch.tensor(LABELS % classes)

    def cost(f, label):
        if classes == 2:
            return torch.nn.functional.softplus(-(2 * label - 1) * f[..., 0]).mean()
        return torch.nn.functional.cross_entropy(f, label)

    for step in range(steps):
        trained = [head] if step < lp_steps else [first, head]
        total = [torch.zeros_like(p) for p in trained]
        for i in range(len(x)):
            loss = cost(phi(x[i] @ first.T) @ head.T, y[i])
            gradients = torch.autograd.grad(loss, trained)
            norm = torch.sqrt(torch.stack([(g**2).sum() for g in gradients]).sum())
            factor = min(1.0, clip / float(norm))
            total = [t + factor * g for t, g in zip(total, gradients, strict=True)]
        with torch.no_grad():
            for p, t in zip(trained, total, strict=True):
                p -= rates[step >= lp_steps] / len(x) * t
    f = (phi(x @ first.T) @ head.T).detach()
    said = f.argmax(1) if classes == 3 else (f[:, 0] > 0).long()
    return float((said == y).double().mean()), float(cost(f, y))


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("lp_steps", [0, 3, 6])
@pytest.mark.parametrize("classes", [2, 3])
def test_without_noise_it_descends_by_clipped_gradients(activation, lp_steps, classes):
    how = Settings(steps=6, batch=30.0, noise_multiplier=0.0, clip=0.7)
    labels = LABELS % classes
    tried = net(activation, labels=labels, labels_test=labels, classes=classes, v=V if classes == 3 else V[0])
    ends = tried.run(how, [Split(lp_steps, 0.9, 0.4)], [np.random.SeedSequence(0)])
    accuracy, loss = ends.accuracy[0, 0], ends.loss[0, 0]
    expected = clipped_descent(activation, lp_steps, 6, (0.9, 0.4), 0.7, classes)
    assert accuracy == pytest.approx(expected[0])
    # single precision
    assert loss == pytest.approx(expected[1], rel=1e-5)
    other = clipped_descent(activation, lp_steps, 6, (0.9, 0.4), 0.8, classes)
    assert loss != pytest.approx(other[1], rel=1e-4)


def dp_sgd(tried, how, split, seed, weight=1.0):
    """Accuracy and loss at the end of a draw, in NumPy, by the draw's head, batches and noise."""
    draw, n, rate = tried._draw(how, seed), len(tried.X), min(1.0, how.batch / len(tried.X))
    W, v = tried.W.copy(), draw.v.reshape(len(tried.W), -1).copy()
    wanted = np.eye(3)[tried.labels] if tried.classes == 3 else tried.labels[:, None]
    for step in range(how.steps):
        probing = step < split.lp_steps
        lr = split.lp_lr if probing else split.lr
        z = tried.X @ W.T
        A = np.maximum(z, 0)
        delta = (softmax(A @ v, 1) if tried.classes == 3 else expit(A @ v)) - wanted
        back = (delta @ v.T) * (z > 0) * (not probing)
        norms = np.hypot(
            *(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1) for a, b in ((delta, A), (back, tried.X)))
        )
        cut = members(n, rate, 0, step, draw.key) * np.minimum(1, how.clip / norms) * weight / (rate * n)
        shape = (W.shape[0], W.shape[1], v.shape[1])
        xi_W, xi_v = noise.weight_noise(draw.key, 0, step, *shape, precision="single")
        spread = how.noise_multiplier * how.clip / how.batch
        v += lr * (spread * xi_v.reshape(v.shape) - A.T @ (cut[:, None] * delta))
        W += lr * (spread * xi_W - (cut[:, None] * back).T @ tried.X) * (not probing)
    f = np.maximum(tried.X @ W.T, 0) @ v
    if tried.classes == 3:
        said, losses = f.argmax(1), -log_softmax(f, 1)[np.arange(n), tried.labels]
    else:
        said, losses = f[:, 0] > 0, np.logaddexp(0, (1 - 2 * tried.labels) * f[:, 0])
    return (said == tried.labels).mean(), losses.mean()


@pytest.mark.parametrize("batch", [9.0, 60.0], ids=["Poisson", "more than all"])
@pytest.mark.parametrize("classes", [2, 3])
def test_a_draw_is_dp_sgd_by_its_batches_and_noise(classes, batch):
    labels = LABELS % classes
    tried = net(v=None, labels=labels, labels_test=labels, classes=classes)
    how = Settings(steps=12, batch=batch, noise_multiplier=3.0, clip=0.7)
    splits = [Split(0, 0.9, 0.4), Split(5, 0.9, 0.4), Split(12, 0.9, 0.4)]
    seeds = [np.random.SeedSequence(4, spawn_key=(i,)) for i in range(3)]
    ends = tried.run(how, splits, seeds)
    expected = np.array([[dp_sgd(tried, how, split, seed) for seed in seeds] for split in splits])
    # single precision
    assert ends.loss == pytest.approx(expected[..., 1], rel=1e-4)
    assert ends.accuracy == pytest.approx(expected[..., 0], abs=1.5 / len(X))
    # the controls: other draws, and batches without their weight
    assert np.abs(np.roll(ends.loss, 1, axis=1) / ends.loss - 1).max() > 1e-2
    if batch < len(X):
        wrong = [dp_sgd(tried, how, splits[0], seed, weight=batch / len(X))[1] for seed in seeds]
        assert np.abs(ends.loss[0] / wrong - 1).max() > 1e-2


def test_its_noise_is_that_of_the_multiplier():
    # gradients are clipped to nothing: a head that starts at zero is noise, and so are its outputs
    how = Settings(steps=50, batch=6.0, noise_multiplier=1e8, clip=1e-9)
    # one sample with each label, so that the loss is logsumexp(f) - mean(f)
    same = dict(X=np.ones((3, 1)), labels=np.arange(3), X_test=np.ones((3, 1)), labels_test=np.arange(3))
    probed = net("linear", **same, W=np.eye(1), v=np.zeros((3, 1)))
    streams = [np.random.SeedSequence(0, spawn_key=(draw,)) for draw in range(400)]
    (losses,) = probed.run(how, [Split(50, 0.5, 0.5)], streams).loss

    def expected(multiplier):
        variance = 50 * (0.5 * multiplier * 1e-9 / 6.0) ** 2
        # to second order, of three independent outputs
        return np.log(3) + variance * (1 - 1 / 3) / 2

    error = losses.std(ddof=1) / len(losses) ** 0.5
    assert abs(losses.mean() - expected(1e8)) < 4 * error
    assert abs(losses.mean() - expected(4e8 / 3)) > 4 * error


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_the_noise_of_full_fine_tuning_reaches_both_layers(classes, scale):
    # no signal at all: W and V are walks of their noise, and outputs products of what they came to
    steps, lr, batch, multiplier, clip = 5, 0.5, 6.0, 2e9, 1e-9
    # one sample with each label, so that odd powers of the outputs cancel
    shape = dict(X=np.ones((classes, 1)), X_test=np.ones((classes, 1)), labels=np.arange(classes))
    head = np.zeros(1) if classes == 2 else np.zeros((3, 1))
    tried = net("linear", **shape, labels_test=shape["labels"], W=np.zeros((1, 1)), v=head, classes=classes)
    streams = [np.random.SeedSequence(2, spawn_key=(draw,)) for draw in range(4000)]
    how = Settings(steps=steps, batch=batch, noise_multiplier=multiplier * scale, clip=clip)
    (losses,) = tried.run(how, [Split(0, lr, lr)], streams).loss
    variance = steps * (lr * multiplier * clip / batch) ** 2
    # to second order in the outputs, whose variance is the product of the layers'
    factor = 1 / 8 if classes == 2 else (1 - 1 / 3) / 2
    expected = np.log(classes) + factor * variance**2
    error = losses.std(ddof=1) / len(losses) ** 0.5
    near = abs(losses.mean() - expected) < 4 * error
    # the control: a fifth more noise is seen
    assert near == (scale == 1.0)


def test_poisson_batches_step_as_far_as_all_samples_on_average():
    def settings(batch):
        return Settings(steps=1, batch=batch, noise_multiplier=0.0, clip=0.7)

    streams = [np.random.SeedSequence(3, spawn_key=(draw,)) for draw in range(3000)]
    split = [Split(0, 0.02, 0.02)]
    (whole,) = net().run(settings(30.0), split, streams[:1]).loss
    (parts,) = net().run(settings(6.0), split, streams).loss
    (start,) = net().run(settings(30.0), [Split(0, 1e-9, 1e-9)], streams[:1]).loss
    error = parts.std(ddof=1) / len(parts) ** 0.5
    # a small step: the loss falls by what the sum of gradients is, whose mean is that of all samples
    assert abs(parts.mean() - whole[0]) < 4 * error
    assert start[0] - whole[0] > 20 * error


def test_fewer_rows_have_the_sampling_noise_of_all_samples():
    split, batch = [Split(0, 0.3, 0.3)], 60.0
    draws = [np.random.SeedSequence(3, spawn_key=(draw,)) for draw in range(2000)]

    def losses(repeated, samples=None):
        tiled = net(X=np.tile(X, (repeated, 1)), labels=np.tile(LABELS, repeated))
        return tiled.run(Settings(1, batch, 0.0, 0.7, samples=samples), split, draws).loss[0]

    # the same mean gradient, of 300 samples and of a tenth of them
    whole, few = losses(10), losses(1, samples=300)
    assert abs(few.mean() - whole.mean()) < 4 * np.hypot(few.std(), whole.std()) / len(draws) ** 0.5
    assert few.std() == pytest.approx(whole.std(), rel=4 / len(draws) ** 0.5)
    # the controls: with a batch of all samples there is none, and with fewer samples less
    assert losses(1).std() < 1e-3 * whole.std()
    assert losses(1, samples=75).std() < 0.8 * whole.std()


def test_phases_are_those_of_dp_sgd():
    how = Settings(steps=10, batch=20.0, noise_multiplier=1.5, clip=0.5)
    lp, fft = how.legs(Split(4, 0.3, 0.1), samples=100, sample_rate=0.2)
    for leg, steps, rate in ((lp, 4, 0.3), (fft, 6, 0.1)):
        dpsgd = DPSGD(rate, 1.5, 0.5, steps, sample_rate=0.2, samples=100)
        expected = dpsgd.phase(leg.phase.method)
        assert leg.phase.time == pytest.approx(expected.time)
        assert leg.phase.sigma == pytest.approx(expected.sigma)
        assert leg.phase.sample_rate == expected.sample_rate
        assert (leg.steps, leg.dt) == (steps, dpsgd.dt)
    # with half of the rows the mean gradient's noise is the same: a step moves as much
    (few,) = how.legs(Split(0, 0.3, 0.1), samples=50)
    step = few.phase.sigma * np.sqrt(2 * few.dt)
    assert step == pytest.approx(fft.phase.sigma * np.sqrt(2 * fft.dt))
    # the theory of full batches leaves the sampling out
    assert few.phase.sample_rate == 1


@pytest.mark.parametrize("classes", [2, 3])
def test_a_draw_is_the_same_to_the_last_bit_alone_and_together(classes, monkeypatch):
    how = Settings(steps=90, batch=7.0, noise_multiplier=1.0, clip=1.0)
    labels = LABELS % classes
    tried = net(v=None, labels=labels, labels_test=labels, classes=classes)
    streams = [np.random.SeedSequence(1, spawn_key=(draw,)) for draw in range(11)]
    # which share probing, or a part of it, or none
    splits = [Split(0, 0.5, 0.5), Split(70, 0.5, 0.25), Split(90, 0.5, 0.5), Split(70, 0.1, 0.25)]
    together = tried.run(how, splits, streams)
    for threads in (1, 5):
        monkeypatch.setattr(stand_in, "available_threads", lambda threads=threads: threads)
        again = tried.run(how, splits[::-1], streams)
        assert np.array_equal(again.loss[::-1], together.loss)
        assert np.array_equal(again.accuracy[::-1], together.accuracy)
    for i, split in enumerate(splits):
        for j in (0, 7, 10):
            alone = tried.run(how, [split], [streams[j]])
            assert alone.loss[0, 0] == together.loss[i, j]
            assert alone.accuracy[0, 0] == together.accuracy[i, j]
    assert len(np.unique(together.loss)) == together.loss.size


@pytest.mark.parametrize("classes", [2, 3])
def test_heads_are_those_of_fine_tuning(classes):
    labels = LABELS % classes
    tried = net(v=None, labels=labels, labels_test=labels, classes=classes)
    draws = np.random.default_rng(0)

    def head(kind, noise=0.0):
        return tried.head(Settings(4, 10.0, 1.0, 1.0, kind, noise), draws)

    assert not head("zero").any()
    units = np.maximum(X @ W.T, 0)
    units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-300)
    sums = np.array([units[labels == label].sum(0) for label in range(classes)])
    rows = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    # two classes have one output
    assert head("prototype") == pytest.approx(rows if classes == 3 else rows[1] - rows[0])
    # noise of the sums, relative to the number of samples
    noisy = np.array([head("prototype", 0.5 / len(X)) for _ in range(2000)]).reshape(2000, -1)
    drawn = np.random.default_rng(1).standard_normal((2000, *sums.shape))

    def expected(multiplier):
        of = sums + multiplier * drawn
        of /= np.linalg.norm(of, axis=2, keepdims=True)
        return (of if classes == 3 else of[:, 1] - of[:, 0]).reshape(2000, -1)

    error = noisy.std(0) / 2000**0.5
    assert (np.abs(noisy.mean(0) - expected(0.5).mean(0)) < 4 * 2**0.5 * error).all()
    # the control
    assert (np.abs(noisy.mean(0) - expected(1.0).mean(0)) > 4 * 2**0.5 * error).any()


def test_an_interrupt_ends_runs_at_once():
    # which would take minutes
    how = Settings(steps=10**7, batch=7.0, noise_multiplier=1.0, clip=1.0)
    tried, streams = net(), [np.random.SeedSequence(1, spawn_key=(draw,)) for draw in range(20)]
    tried.run(Settings(1, 7.0, 1.0, 1.0), [Split(0, 0.1, 0.1)], streams)
    started = threading.active_count()
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        tried.run(how, [Split(10**6, 0.1, 0.1), Split(0, 0.1, 0.1)], streams)
    timer.join()
    assert threading.active_count() == started


@pytest.mark.parametrize("classes", [2, 3])
def test_a_run_that_leaves_the_range_is_right_nowhere(classes):
    how = Settings(steps=5, batch=30.0, noise_multiplier=0.0, clip=1e200)
    tried = net(
        labels=LABELS % classes, labels_test=LABELS % classes, classes=classes, v=V if classes == 3 else V[0]
    )
    ends = tried.run(how, [Split(0, 1e150, 1e150), Split(0, 0.1, 0.1)], [np.random.SeedSequence(0)])
    assert (ends.accuracy[0, 0], ends.loss[0, 0]) == (0.0, np.inf)
    assert np.isfinite(ends.loss[1, 0])
