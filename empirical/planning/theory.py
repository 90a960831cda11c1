"""What the theorems say of the inputs of a plan."""

from __future__ import annotations

import numpy as np

from bounds.allocation.advice import Advice, split_advice
from bounds.allocation.forecast import ProbingForecast, probing_forecast
from empirical.planning.inputs import Inputs, some_rows
from empirical.planning.settings import PlanSettings
from empirical.planning.stand_in import Split, StandIn
from empirical.planning.trials import Trials
from empirical.recipe import Head
from langevin.model.weights import Weights
from langevin.support.validate import FloatArray

# rows and heads that the theorems are evaluated on at most, and entries of the features of a forecast
_ROWS, _HEADS, _ENTRIES = 256, 4, 2**24
# with which the minimum share aligns all heads, over the batches
_CONFIDENCE = 0.95


def advice(inputs: Inputs, trials: Trials, head: Head, lr: float, shares: FloatArray) -> dict[str, Advice]:
    """Evaluate the theorems at probing's rate on some rows."""
    net, names, how = inputs.net, inputs.names, trials.hows[head]
    random = np.random.default_rng(np.random.SeedSequence(trials.root, spawn_key=(2,)))
    count = min(max(_ROWS, len(names)), len(net.X))
    rows = np.sort(some_rows(net.labels, count, random))
    (leg,) = how.legs(Split(how.steps, lr, lr), count)
    heads = [net.head(how, random) for _ in range(1 if net.v is not None else _HEADS)]
    rate = how.sample_rate(count)
    said = split_advice(
        net.problem(rows),
        [Weights(net.W, found.T) for found in heads],
        sigma=leg.phase.sigma,
        clip=how.clip,
        time=leg.phase.time,
        shares=shares,
        dt=leg.dt,
        sample_rate=rate,
        confidence=None if rate == 1 else _CONFIDENCE,
    )
    return {" and ".join(names) if len(names) == 2 else f"{len(names)} classes": said}


def forecast(net: StandIn, chosen: PlanSettings) -> ProbingForecast | None:
    """What theory alone expects of probing, at settings of its own (8'(c)).

    Of as many rows as there are private samples, repeated where there are fewer. None if that is too much to
    compute, or the features are 0 throughout.
    """
    samples = chosen.samples
    assert samples is not None
    if samples * len(net.W) > _ENTRIES or net.classes > len(net.X):
        return None
    train, test = (np.asarray(net.activate(X @ net.W.T)) for X in (net.X, net.X_test))
    rows = np.arange(samples) % len(train)
    if not (train.any() and test.any()) or len(np.unique(net.labels[rows])) < net.classes:
        return None
    names = np.array([f"{label:04d}" for label in range(net.classes)])
    return probing_forecast(
        train[rows],
        names[net.labels[rows]],
        test,
        names[net.labels_test],
        chosen.epsilon,
        chosen.delta,
    )
