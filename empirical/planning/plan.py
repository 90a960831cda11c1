"""Splitting a budget between probing and fine-tuning, by simulation of each share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from empirical.planning import hedge, private_choice, theory
from empirical.planning.comparison import standard_error
from empirical.planning.inputs import numbered_classes, prepare_inputs, require_informative, source_of
from empirical.planning.search import RATES, Lane, Start, lanes_of, raced, resolved, stacked
from empirical.planning.settings import PlanSettings
from empirical.planning.share_plan import HeadRuns, SharePlan
from empirical.planning.stand_in import Settings, StandIn
from empirical.planning.trials import Trials
from empirical.privacy.history import History, plan
from empirical.recipe import Head, Recipe
from langevin.support import validate
from langevin.support.rng import RNG, generator

# the kind of a head that is given
GIVEN: Sequence[Head] = ("gaussian",)


def plan_share(
    X: ArrayLike,
    y: ArrayLike,
    *,
    W: ArrayLike | None = None,
    v: ArrayLike | None = None,
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    X_source: ArrayLike | None = None,
    y_source: ArrayLike | None = None,
    keep: str | Path | None = None,
    rng: RNG = 0,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> SharePlan:
    """Recommend a head and the share of a privacy budget for linear probing before full fine-tuning.

    What the theorems say is gathered (`bounds.split_advice`, `bounds.probing_forecast`), and each share is
    simulated from each kind of head, with the noise that the budget buys, at its best learning rates.
    Recommended is the largest share whose mean held-out accuracy is within one standard error of the highest:
    of shares that draws do not tell apart the one that costs least to compute and leaves the body most as it
    was; and the first head for which that is as good. The simulation is of a two-layer net instead of the
    network, see `StandIn`: what full fine-tuning changes there is ``W``.

    Rates are searched in rounds, those of a further head around the best of the one before. All heads, shares
    and rates have their draws in common; the number of draws doubles in each round, and of each share's rates
    those that are worse beyond noise, and the larger of those that are not, are dropped until half are left.
    Chosen is the smallest rate within one standard error of the best, and the errors of the report include
    that choice. As in the paper, tuning is not paid for in epsilon.

    Without ``W`` features do not show whether full fine-tuning can help. Shares are then judged in two
    worlds, with nothing hidden from probing and with as much hidden as `hidden_world` says, by their mean
    regret.

    **A plan read off private data is itself a release, which is not accounted for here.** Give features of
    public data that resemble the private ones, and the number of private ``samples``. With ``plan_epsilon``
    the held-out rows may be private: see `release`.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Frozen features; or, with ``W``, the inputs of a first layer.
    y : array_like, shape (n,)
        Labels, numbers or text, of two or more classes; a Series, Categorical or Index of pandas, too.
    W : array_like, shape (h, d), optional
        First layer, as the last one of the body (its bias as a column, with a column of ones in ``X``), see
        `empirical.last_layer`. Without it the features are the hidden layer, ``W`` the identity.
    v : array_like, shape (h,) or (h, classes), optional
        Head; without it those of the kinds ``heads``, a new one for each draw.
    X_test, y_test : array_like, optional
        Held-out data; without them a fifth of each class is split off.
    X_source, y_source : array_like, optional
        Without ``W``: the same body's features of public data *without* the shift of ``X``. They tell how
        much the shift hides: how much better a linear classifier does on them.
    keep : path, optional
        File that finished runs are added to and taken from: a plan that was interrupted resumes.
    rng : int, Generator or None
        Source of randomness (SPEC 7).
    progress : callable, optional
        Called with the number of runs done.
    **settings
        Fields of `PlanSettings`: ``epsilon``, which is required, and ``delta``, ``clip``, ``samples``,
        ``steps``, ``batch``, ``shares``, ``activation``, ``heads``, ``hedge``, ``draws``, ``resolution``,
        ``device``, ``theory``, ``plan_epsilon``.

    Returns
    -------
    SharePlan

    Raises
    ------
    ValueError, TypeError
        On bad arguments, by name.
    ArithmeticError
        If runs of every share leave the range of numbers.

    Examples
    --------
    >>> from langevin import orthogonally_separable
    >>> data = orthogonally_separable(samples=100, dim=4, rng=0)
    >>> found = plan_share(data.X, data.y, epsilon=1.0, delta=1e-3, steps=20, shares=[0, 0.5, 1], draws=4)
    >>> found.share in found.as_good, found.history.mechanisms[0].noise_multiplier > 0
    (True, True)
    """
    from langevin.support.threads import aside, one_blas_thread
    from langevin.sweeps.records import Records

    chosen = PlanSettings(**settings)
    root = int(generator(rng, "plan").integers(2**63))
    random = np.random.default_rng(np.random.SeedSequence(root))
    if W is None:
        require_informative(validate.array("X", X, 2))
    private = chosen.plan_epsilon is not None
    if private and (X_test is None or y_test is None):
        raise ValueError(
            "plan_epsilon must be None without X_test and y_test, the private held-out rows: a simulation "
            "trained on private rows has no bounded sensitivity; give public rows as X and y"
        )
    samples = len(numbered_classes(y)[1]) if chosen.samples is None else chosen.samples
    batch = samples / 10 if chosen.batch is None else chosen.batch
    chosen = replace(chosen, samples=samples, batch=batch)
    passes = chosen.steps * min(1.0, batch / samples)
    given = X, y, W, v, X_test, y_test, chosen.activation, random
    inputs = prepare_inputs(*given, passes=passes, private=private)
    inputs = inputs._replace(net=replace(inputs.net, device=chosen.device))
    source = source_of(X_source, y_source)
    heads = chosen.heads if v is None else GIVEN
    releases: dict[Head, History] = {head: _releases(chosen, head) for head in heads}
    hows: dict[Head, Settings] = {head: _settings(chosen, head, releases[head]) for head in heads}
    known = W is not None or not chosen.hedge or private
    worlds, open_ = hedge.worlds_of(inputs.net, layer=known, source=source, random=random)
    # the forecast takes one thread, for a part of what the simulation takes
    with one_blas_thread(), Records(keep, "keep") as kept:
        task = aside(theory.forecast, inputs.net, chosen) if chosen.theory else None
        trials = Trials(list(worlds.values()), hows, root, kept, progress)
        runs, caveats = _compared(trials, list(worlds), heads, chosen)
        shares = np.array(chosen.lengths) / chosen.steps
        said = theory.advice(inputs, trials, heads[0], runs[heads[0]].lp_lr, shares) if chosen.theory else {}
        forecast = None if task is None else task.result()
    if not any(np.isfinite(found.loss).all(1).any() for found in runs.values()):
        raise ArithmeticError(
            "every share had a run that left the range of numbers: scale the features X, or the head v"
        )
    found = SharePlan(
        shares,
        runs,
        History([], chosen.delta),
        said,
        chosen.epsilon,
        chosen.clip,
        batch,
        inputs.net.method,
        (),
        inputs.names,
        inputs.net.activation,
        inputs.trained,
        forecast=forecast,
    )
    if inputs.private is not None:
        found = replace(found, released=private_choice.release(trials, found, inputs.private, chosen))
    caveats = (*open_, *caveats, *_limits(inputs.net, found, chosen.resolution))
    return replace(
        found,
        history=_history(chosen, releases[found.head], found.share),
        notes=(*inputs.notes, *caveats),
        caveats=caveats,
    )


def _compared(
    trials: Trials, worlds: Sequence[str], heads: Sequence[Head], chosen: PlanSettings
) -> tuple[dict[Head, HeadRuns], list[str]]:
    """Race the rates of all heads and shares; and what to say of rates at an end of what was tried."""
    rates = [rate / chosen.clip for rate in RATES]
    lanes: dict[Head, list[Lane]] = {}
    start = Start(rates, rates)
    for head in heads:
        lanes[head], start = lanes_of(trials, head, chosen.lengths, start, chosen.draws)
    every = [lane for own in lanes.values() for lane in own]
    draws = raced(trials, every, chosen.draws, chosen.resolution)
    runs: dict[Head, HeadRuns] = {
        head: _runs(trials, worlds, head, own, draws) for head, own in lanes.items()
    }
    edges = [
        f"{head} head at share {split.lp_steps / chosen.steps:g}, {max(lane.rates):.3g}"
        for head, own in lanes.items()
        for lane in own
        for split in lane.splits[-1:]
        if lane.last
    ]
    said = "the best rate is the last that was tried, another may be better: {}; scale X, or change clip"
    return runs, [said.format("; ".join(edges))] if edges else []


def _runs(trials: Trials, worlds: Sequence[str], head: Head, lanes: Sequence[Lane], draws: int) -> HeadRuns:
    accuracy, loss, choice = stacked(trials, lanes, draws)
    rates = [lane.choose(trials, draws)[0] for lane in lanes]
    splits = [lane.split(rate) for lane, rate in zip(lanes, rates, strict=True)]
    by_world = trials.by_world(head, splits, draws).accuracy
    lr = [split.lr if split.lp_steps < trials.steps else np.nan for split in splits]
    named = dict(zip(worlds, by_world, strict=True))
    return HeadRuns(accuracy, loss, np.array(lr), splits[0].lp_lr, choice, named, trials.weights)


def _releases(chosen: PlanSettings, head: Head) -> History:
    """What a run from a kind of head releases, with calibrated noise."""
    assert chosen.samples is not None
    assert chosen.batch is not None
    training = Recipe(
        "fft", steps=chosen.steps, batch=chosen.batch, epsilon=chosen.training_epsilon, delta=chosen.delta
    )
    return replace(training, head=head).history(chosen.samples)


def _settings(chosen: PlanSettings, head: Head, history: History) -> Settings:
    nu = history["fft"].noise_multiplier
    noise = history["prototypes"].noise_multiplier if head == "prototype" else 0.0
    assert chosen.samples is not None
    assert chosen.batch is not None
    assert nu is not None
    assert noise is not None
    of_prototypes = noise / chosen.samples
    return Settings(chosen.steps, chosen.batch, nu, chosen.clip, head, of_prototypes, chosen.samples)


def _history(chosen: PlanSettings, history: History, share: float) -> History:
    """The same releases, phase by phase."""
    assert chosen.samples is not None
    assert chosen.batch is not None
    first = [m for m in history.mechanisms if m.name == "prototypes"]
    return plan(
        chosen.samples,
        chosen.batch,
        delta=chosen.delta,
        steps=chosen.steps,
        lp_share=share,
        noise_multiplier=history["fft"].noise_multiplier,
        clip=chosen.clip,
        releases=first,
    )


def _limits(net: StandIn, found: SharePlan, resolution: float) -> list[str]:
    """Notes for the reader of the accuracies."""
    said = []
    _, error = found.deficit
    if resolution and not resolved(found.accuracy, found.loss, found.runs[found.head].choice, resolution):
        said.append(
            f"after {found.accuracy.shape[1]} draws shares are compared with the best to "
            f"{error.max():.2g} of accuracy, not to the resolution of {resolution:g}: take more draws"
        )
    largest = np.bincount(net.labels_test).max() / len(net.labels_test)
    best = found.accuracy[found.best]
    said.append(f"the largest class alone makes up {largest:.1%} of the held-out samples")
    held_out = (largest * (1 - largest) / len(net.labels_test)) ** 0.5
    if best.mean() - 2 * np.hypot(standard_error(best), held_out) <= largest:
        said[-1] += ": NO share is better than always guessing it, nothing was learnt that accuracy shows"
    return said
