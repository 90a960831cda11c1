"""How much of a privacy budget should go to linear probing, asked of frozen features before the training."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bounds.allocation.advice import Advice, split_advice
from empirical.history import History, plan
from empirical.plan_settings import Activation, PlanSettings
from empirical.standin import Outcomes, Settings, Split, StandIn
from empirical.tabular import held_out
from langevin import _labels, _validate
from langevin._random import RNG, generator
from langevin._validate import FloatArray
from langevin.problem import Weights

if TYPE_CHECKING:
    import xarray as xr

    from empirical.recipe import Recipe

# learning rates times clip that a search starts from; it goes on by the same factor
RATES = tuple(3.0**k for k in range(-3, 2))
_FACTOR, _FARTHEST = 3.0, 4
# of the comparison of shares
LEVEL = 0.05
# draws of a round, at least two; standard errors at which a share is clearly worse, and so known well enough
_ROUND, _CLEARLY = 16, 4
# rows and entries of W that a simulation has at most, rows and heads that theory has
_ROWS, _ENTRIES, _THEORY_ROWS, _THEORY_HEADS = 4096, 2**16, 256, 4


def standard_error(values: FloatArray) -> FloatArray:
    """Of the means over the draws, the last axis; NaN where one is infinite."""
    with np.errstate(invalid="ignore"):
        return values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


@dataclass(frozen=True, eq=False)
class SharePlan:
    """A split of a budget, and what it rests on; see `plan_share`.

    Attributes
    ----------
    shares : ndarray, shape (m,)
        Shares of the steps, and of the budget, for linear probing.
    accuracy, loss : ndarray, shape (m, draws)
        Held-out accuracy and mean training loss at the end of each simulated run. The draws, of head, noise
        and batches, are common to the shares.
    lr : ndarray, shape (m,)
        Best learning rate of full fine-tuning; NaN for share 1.
    lp_lr : float
        Best learning rate of probing.
    history : History
        What the recommended run releases, by the accountant.
    theory : mapping of str to Advice
        For two classes one, for more one for each class against the rest.
    epsilon, clip : float
    batch : float
        Expected batch.
    simulated : str
        What was simulated.
    notes : tuple of str
        What was cut, split off or assumed, and the caveats.
    classes : tuple of str
        Names of the classes.
    activation : {"relu", "linear"}
        Of the simulated layer.
    trained : int
        Samples of ``X`` that are not held out.
    caveats : tuple of str
        Those notes without which accuracies are misread.
    """

    shares: FloatArray
    accuracy: FloatArray
    loss: FloatArray
    lr: FloatArray
    lp_lr: float
    history: History
    theory: Mapping[str, Advice]
    epsilon: float
    clip: float
    batch: float
    simulated: str
    notes: tuple[str, ...]
    classes: tuple[str, ...] = ()
    activation: Activation = "relu"
    trained: int = 0
    caveats: tuple[str, ...] = ()

    @property
    def best(self) -> int:
        """Index of the share with the highest mean accuracy; of equals the one with the lowest loss."""
        return _best(self.accuracy, self.loss)

    @property
    def recommended(self) -> int:
        """Index of the largest share that is within one standard error of the best."""
        return _recommended(self.accuracy, self.loss)

    @property
    def share(self) -> float:
        """The recommended share."""
        return float(self.shares[self.recommended])

    @property
    def deficit(self) -> tuple[FloatArray, FloatArray]:
        """Accuracy lost against the best share, mean and standard error, paired by draws."""
        return _deficit(self.accuracy, self.loss)

    @property
    def as_good(self) -> FloatArray:
        """Shares that are not worse than the best by a paired t-test at 5 %: how flat the optimum is."""
        return self.shares[_as_good(self.accuracy, self.loss)]

    @property
    def loss_share(self) -> float:
        """The share with the lowest mean training loss, which is another question."""
        return float(self.shares[self.loss.mean(1).argmin()])

    @property
    def recipe(self) -> Recipe:
        """The recommended run, for `empirical.train.finetune`.

        Its learning rates are those that were best in the simulation.
        """
        from empirical.recipe import Recipe

        lr = float(self.lr[self.recommended])
        settings: dict[str, Any] = dict(
            steps=self.history.steps,
            batch=self.batch,
            epsilon=self.epsilon,
            delta=self.history.delta,
            clip=self.clip,
        )
        if self.share == 1:
            return Recipe("lp", lr=self.lp_lr, **settings)
        if self.share == 0:
            return Recipe("fft", lr=lr, **settings)
        return Recipe("lp-fft", lp_share=self.share, lp_lr=self.lp_lr, lr=lr, **settings)

    @property
    def expected(self) -> tuple[float, float]:
        """Held-out accuracy of the recommended share in the simulation, mean and standard error."""
        values = self.accuracy[self.recommended]
        return float(values.mean()), float(standard_error(values))

    @property
    def command(self) -> str:
        """The recommended run as a command, without the options for data and body."""
        return self._command([], self.batch)

    def command_for(self, data: str, label: str = "y") -> str:
        """The recommended run on a file of the features, as a command.

        The body is the simulated layer, see `empirical.layer`. The command samples at the rate of the plan:
        where it holds out a part of the file, the expected batch is smaller in proportion. A head ``v`` of
        the file is not used: the command draws a Gaussian one.

        Parameters
        ----------
        data : str
            The file that the plan was made from.
        label : str
            Column of its labels.
        """
        named = [] if label == "y" else ["--label", label]
        body = ["--body", "layer", "--body-options", f"activation={self.activation}"]
        assert self.history.samples is not None
        sampled = self.batch / self.history.samples
        return self._command(["--data", data, *named, *body], sampled * self.trained)

    def _command(self, about: list[str], batch: float) -> str:
        recipe = replace(self.recipe, batch=batch)
        share = ["--lp-share", f"{recipe.lp_share:g}"] if recipe.method == "lp-fft" else []
        rates = {"--lr": recipe.lr, "--lp-lr": recipe.lp_lr}
        named = [text for name, rate in rates.items() if rate is not None for text in (name, f"{rate:.6g}")]
        numbers = ("steps", "batch", "epsilon", "delta", "clip")
        rest = [text for name in numbers for text in (f"--{name}", f"{getattr(recipe, name):.10g}")]
        words = ["--method", recipe.method, *share, *named, *rest]
        return f"python -m empirical.finetune {shlex.join([*about, *words])}"

    @property
    def phases(self) -> list[dict[str, Any]]:
        """The equivalent DP-SGD, phase by phase."""
        rates = {"lp": self.lp_lr, "fft": float(self.lr[self.recommended])}
        return [
            {
                "method": m.name,
                "steps": m.steps,
                "learning rate": rates[m.name],
                "noise multiplier": m.noise_multiplier,
                "sample rate": m.sample_rate,
                "expected batch": self.batch,
                "clip": self.clip,
            }
            for m in self.history.mechanisms
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries, for JSON; NaN where there is no number."""
        lost, error = self.deficit
        draws = self.accuracy.shape[1]
        accuracy, accuracy_error = self.expected
        return {
            "recommended lp share": self.share,
            "expected held-out accuracy": accuracy,
            "expected held-out accuracy standard error": accuracy_error,
            "classes": list(self.classes),
            "share of the highest accuracy": float(self.shares[self.best]),
            "as good": self.as_good.tolist(),
            "DP-SGD": self.phases,
            "command": self.command,
            "epsilon": self.epsilon,
            "delta": self.history.delta,
            "samples": self.history.samples,
            "neighbours": self.history.neighbours,
            "simulation": {
                "of": self.simulated,
                "draws": draws,
                "shares": self.shares.tolist(),
                "accuracy": self.accuracy.mean(1).tolist(),
                "accuracy standard error": standard_error(self.accuracy).tolist(),
                "accuracy lost": lost.tolist(),
                "accuracy lost standard error": error.tolist(),
                "loss": self.loss.mean(1).tolist(),
                "loss standard error": standard_error(self.loss).tolist(),
                "loss-optimal share": self.loss_share,
                "lp learning rate": self.lp_lr,
                "fft learning rates": self.lr.tolist(),
            },
            "theory": {name: advice.to_dict() for name, advice in self.theory.items()},
            "notes": list(self.notes),
            "caveats": list(self.caveats),
        }

    def to_dataset(self) -> xr.Dataset:
        """Every simulated run over ``(share, draw)``, and the record in the attributes."""
        import json

        import xarray as xr

        about = {
            "accuracy": (self.accuracy, "held-out accuracy at the end", "1"),
            "loss": (self.loss, "mean training loss at the end", "loss"),
        }
        variables: dict[str, Any] = {
            name: (("share", "draw"), values, {"long_name": meaning, "units": units})
            for name, (values, meaning, units) in about.items()
        }
        variables["lr"] = ("share", self.lr, {"long_name": "learning rate of full fine-tuning", "units": "1"})
        record = {"title": "plan of a privacy budget", "plan": json.dumps(self.to_dict())}
        draws = np.arange(self.accuracy.shape[1])
        return xr.Dataset(variables, {"share": self.shares, "draw": draws}, record)


def plan_share(
    X: ArrayLike,
    y: ArrayLike,
    *,
    W: ArrayLike | None = None,
    v: ArrayLike | None = None,
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    rng: RNG = 0,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> SharePlan:
    """Recommend the share of a privacy budget that should probe before full fine-tuning.

    What the theorems say is gathered (`bounds.advice.split_advice`), and each share is simulated with the
    noise that the budget buys, at its best learning rates. Recommended is the largest share whose mean
    held-out accuracy is within one standard error of the highest: of shares that draws do not tell apart the
    one that costs least to compute and leaves the body most as it was. The simulation is of a two-layer net
    instead of the network, see `StandIn`: what full fine-tuning changes there is ``W``. Rates are searched
    in factors of 3, until none at an end is best, on draws of their own: probing's first, then for each share
    full fine-tuning's after that probing. As in the paper, tuning is not paid for in epsilon.

    **A plan read off private data is itself a release, which is not accounted for here.** Give features of
    public data that resemble the private ones, and the number of private ``samples``.

    Parameters
    ----------
    X : array_like, shape (n, d)
        Frozen features; or, with ``W``, the inputs of a first layer.
    y : array_like, shape (n,)
        Labels, numbers or text, of two or more classes; a Series, Categorical or Index of pandas, too.
    W : array_like, shape (h, d), optional
        First layer, as the last one of the body (its bias as a column, with a column of ones in ``X``).
        Without it the features are the hidden layer, ``W`` the identity: full fine-tuning is a map of the
        features on top, which knows nothing of the layers below, and under a strong shift too much probing is
        planned.
    v : array_like, shape (h,) or (classes, h), optional
        Head; without it Gaussian ones of scale ``1 / sqrt(h)``, a new one for each draw.
    X_test, y_test : array_like, optional
        Held-out data; without them a fifth of each class is split off.
    rng : int, Generator or None
        Source of randomness (SPEC 7).
    progress : callable, optional
        Called with the number of runs done.
    **settings
        Fields of `PlanSettings`: ``epsilon``, which is required, and ``delta``, ``clip``, ``samples``,
        ``steps``, ``batch``, ``shares``, ``activation``, ``draws``, ``tuning_draws``, ``resolution``,
        ``theory``.

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
    >>> found = plan_share(
    ...     data.X, data.y, epsilon=1.0, delta=1e-3, steps=20, shares=[0, 0.5, 1], draws=2, tuning_draws=1
    ... )
    >>> found.share in found.as_good, found.history.mechanisms[0].noise_multiplier > 0
    (True, True)
    """
    from langevin._engine import one_blas_thread

    chosen = PlanSettings(**settings)
    root = int(generator(rng, "plan").integers(2**63))
    random = np.random.default_rng(np.random.SeedSequence(root))
    inputs = _inputs(X, y, W, v, X_test, y_test, chosen.activation, random)
    samples = inputs.rows if chosen.samples is None else chosen.samples
    batch = samples / 10 if chosen.batch is None else chosen.batch
    chosen = replace(chosen, samples=samples, batch=batch)
    lengths = chosen.lengths
    released: dict[str, Any] = dict(delta=chosen.delta, steps=chosen.steps, clip=chosen.clip)
    nu = _noise_multiplier(plan(samples, batch, **released), chosen.epsilon)
    trials = _Trials(inputs.net, Settings(chosen.steps, batch, nu, chosen.clip), root, progress)
    with one_blas_thread():
        splits, edges = _tuned(trials, lengths, chosen.tuning_draws)
        ends = _compared(trials, splits, chosen.draws, chosen.resolution)
        shares = np.array(lengths) / chosen.steps
        said = _theory(inputs, trials, splits[0].lp_lr, shares) if chosen.theory else {}
    if not np.isfinite(ends.loss).all(1).any():
        raise ArithmeticError(
            "every share had a run that left the range of numbers: scale the features X, or the head v"
        )
    caveats = (*edges, *_limits(inputs.net, ends, chosen.resolution))
    share = float(shares[_recommended(*ends)])
    return SharePlan(
        shares,
        *ends,
        np.array([split.lr if split.lp_steps < chosen.steps else np.nan for split in splits]),
        splits[0].lp_lr,
        plan(samples, batch, lp_share=share, noise_multiplier=nu, **released),
        said,
        chosen.epsilon,
        chosen.clip,
        batch,
        inputs.net.method,
        (*inputs.notes, *caveats),
        inputs.names,
        inputs.net.activation,
        inputs.trained,
        caveats,
    )


@functools.lru_cache
def _noise_multiplier(history: History, epsilon: float) -> float:
    from empirical.accounting import calibrate

    found = calibrate(history, epsilon).mechanisms[0].noise_multiplier
    assert found is not None
    return found


# --- the data ----------------------------------------------------------------------------------


class _Inputs(NamedTuple):
    """The net to simulate, names of the classes, numbers of rows and of those that train; what was done."""

    net: StandIn
    names: tuple[str, ...]
    rows: int
    trained: int
    notes: tuple[str, ...]


def _inputs(
    X: ArrayLike,
    y: ArrayLike,
    W: ArrayLike | None,
    v: ArrayLike | None,
    X_test: ArrayLike | None,
    y_test: ArrayLike | None,
    activation: Activation | None,
    random: np.random.Generator,
) -> _Inputs:
    """Check the arrays, and make a net of them that a simulation can afford."""
    features, (names, labels) = _validate.array("X", X, 2), _classes(y)
    _validate.same_length("X", features, "y", labels)
    rows, notes = len(labels), []
    if (X_test is None) != (y_test is None):
        raise ValueError("X_test and y_test must be given together: one of them is None")
    if X_test is None or y_test is None:
        test, train = held_out(names, labels, random)
        held, held_labels = features[test], labels[test]
        features, labels = features[train], labels[train]
        notes.append(f"{len(held)} of {rows} samples were held out to measure accuracy")
    else:
        held = _validate.array("X_test", X_test, 2)
        _same_columns("X_test", held, features)
        _, held_labels = _labels.classes("y_test", y_test, names)
        _validate.same_length("X_test", held, "y_test", held_labels)
    trained = len(labels)
    if trained > _ROWS:
        kept = random.permutation(trained)[:_ROWS]
        notes.append(f"simulated on {_ROWS} of {trained} training samples")
        features, labels = features[kept], labels[kept]
    if activation is None:
        activation = "linear" if W is None and features.min() < 0 else "relu"
        if activation == "linear":
            notes.append("some features are negative: full fine-tuning is a linear map of them")
    layer, head = _start(features, W, v, len(names))
    if W is None:
        notes.append(
            "without W, full fine-tuning is a layer on top of the features, none below them: where the body "
            "has to change, too much probing is planned"
        )
    features, held, layer, cut = _cut(features, held, layer)
    net = StandIn(features, labels, held, held_labels, layer, head, len(names), activation)
    return _Inputs(net, names, rows, trained, (*notes, *cut))


def _start(
    X: FloatArray, W: ArrayLike | None, v: ArrayLike | None, classes: int
) -> tuple[FloatArray, FloatArray | None]:
    """First layer and head at the start."""
    layer = np.eye(X.shape[1]) if W is None else _validate.array("W", W, 2)
    _same_columns("W", layer, X)
    head = None if v is None else _validate.array("v", v, 1 if classes == 2 else 2)
    shape = (len(layer),) if classes == 2 else (classes, len(layer))
    if head is not None and head.shape != shape:
        raise ValueError(f"v must have the shape {shape}, got {head.shape}")
    return layer, head


def _same_columns(name: str, values: FloatArray, X: FloatArray) -> None:
    if values.shape[1] != X.shape[1]:
        raise ValueError(f"{name} must have as many columns as X, got {values.shape[1]} and {X.shape[1]}")


def _classes(y: ArrayLike) -> tuple[tuple[str, ...], NDArray[Any]]:
    """Names of the classes, sorted, and the number of each sample's."""
    names, numbers = _labels.classes("y", y)
    if len(names) < 2:
        raise ValueError(f"y must hold two or more classes, got {len(names)}: {', '.join(names)}")
    if len(names) > len(numbers) / 2:
        raise ValueError(
            f"y must hold two samples or more of each class, got {len(names)} different values among "
            f"{len(numbers)}: give more samples; for regression there is no plan"
        )
    return names, numbers


def _cut(
    X: FloatArray, X_test: FloatArray, W: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, list[str]]:
    """The same net in the leading principal directions of its inputs, as many as a simulation can afford."""
    most = max(1, _ENTRIES // len(W))
    if X.shape[1] <= most:
        return X, X_test, W, []
    from sklearn.utils.extmath import randomized_svd

    _, sizes, basis = randomized_svd(X, min(most, len(X)), random_state=0)
    kept = float((sizes**2).sum() / max((X**2).sum(), 1e-300))
    note = f"simulated in {len(basis)} of {X.shape[1]} directions, which hold {kept:.1%} of the inputs' size"
    return X @ basis.T, X_test @ basis.T, W @ basis.T, [note]


# --- simulation and theory ---------------------------------------------------------------------


class _Trials:
    """Runs of a stand-in, counted."""

    def __init__(
        self, net: StandIn, how: Settings, root: int, progress: Callable[[int], None] | None
    ) -> None:
        self.net, self.how, self.root, self.progress = net, how, root, progress
        self.done = 0

    def run(self, splits: Sequence[Split], *, stage: int, draws: range) -> Outcomes:
        """Where the draws of one stage end, the same ones for all splits."""
        streams = [np.random.SeedSequence(self.root, spawn_key=(stage, i)) for i in draws]
        ends = self.net.run(self.how, splits, streams)
        self.done += len(splits) * len(draws)
        if self.progress is not None:
            self.progress(self.done)
        return ends


def _tuned(trials: _Trials, lengths: Sequence[int], draws: int) -> tuple[list[Split], list[str]]:
    """Each length of probing at its best rates: probing's own, then that of what follows it.

    And what to say of rates at an end of what was tried.
    """
    steps, clip = trials.how.steps, trials.how.clip

    def scores(splits: Sequence[Split]) -> list[tuple[float, float]]:
        ends = trials.run(splits, stage=0, draws=range(draws))
        return list(zip(ends.accuracy.mean(1).tolist(), (-ends.loss.mean(1)).tolist(), strict=True))

    start = [rate / clip for rate in RATES]
    lp_lr, last = _search(lambda rates: scores([Split(steps, rate, rate) for rate in rates]), start)
    found, edges = [], {f"probing's, {lp_lr:.3g}"} if last else set()
    for n in lengths:
        lr = lp_lr
        if n < steps:
            lr, last = _search(lambda rates, n=n: scores([Split(n, lp_lr, rate) for rate in rates]), start)
            edges |= {f"full fine-tuning's at share {n / steps:g}, {lr:.3g}"} if last else set()
        found.append(Split(n, lp_lr, lr))
    said = "the best rate is the last that was tried, another may be better: {}; scale X, or change clip"
    return found, [said.format("; ".join(sorted(edges)))] if edges else []


def _compared(trials: _Trials, splits: Sequence[Split], draws: int, resolution: float) -> Outcomes:
    """Runs of all splits, round by round, until all are known well enough beside the best."""
    accuracy, loss = np.empty((2, len(splits), 0))
    while accuracy.shape[1] < draws:
        done = accuracy.shape[1]
        ends = trials.run(splits, stage=1, draws=range(done, min(done + _ROUND, draws)))
        accuracy, loss = np.hstack([accuracy, ends.accuracy]), np.hstack([loss, ends.loss])
        if _resolved(accuracy, loss, resolution):
            break
    return Outcomes(accuracy, loss)


def _resolved(accuracy: FloatArray, loss: FloatArray, resolution: float) -> bool:
    """Whether all shares are known well enough beside the best."""
    mean, error = _deficit(accuracy, loss)
    return bool((error <= np.maximum(resolution, mean / _CLEARLY)).all())


def _limits(net: StandIn, ends: Outcomes, resolution: float) -> list[str]:
    """What a reader of the accuracies has to know."""
    said = []
    if resolution and not _resolved(*ends, resolution):
        _, error = _deficit(*ends)
        said.append(
            f"after {ends.accuracy.shape[1]} draws shares are known beside the best to {error.max():.2g} of "
            f"accuracy, not to the resolution of {resolution:g}: take more draws"
        )
    largest = np.bincount(net.labels_test).max() / len(net.labels_test)
    best = ends.accuracy[_best(*ends)]
    said.append(f"the largest class alone makes up {largest:.1%} of the held-out samples")
    if best.mean() - 2 * standard_error(best) <= largest:
        said[-1] += ": NO share is better than always guessing it, nothing was learnt that accuracy shows"
    return said


def _search(
    scores: Callable[[Sequence[float]], Sequence[tuple[float, float]]], start: Sequence[float]
) -> tuple[float, bool]:
    """The rate of the highest accuracy, of equals of the lowest loss; and whether to look further.

    From ``start`` on outwards as long as one at an end is more accurate than all others: on data that are
    easily told apart loss alone would ask for ever larger rates.
    """
    tried = dict(zip(start, scores(start), strict=True))
    while True:
        best = max(tried, key=tried.__getitem__)
        others = max(accuracy for rate, (accuracy, _) in tried.items() if rate != best)
        last = best in (min(tried), max(tried)) and tried[best][0] > others
        if not last or len(tried) == len(start) + _FARTHEST:
            return best, last
        new = best * _FACTOR if best == max(tried) else best / _FACTOR
        (tried[new],) = scores([new])


def _best(accuracy: FloatArray, loss: FloatArray) -> int:
    """Place of the highest mean accuracy over the draws; of equals, of the lowest mean loss.

    A share of which a run left the range of numbers comes after all others.
    """
    whole = np.isfinite(loss).all(1)
    return int(np.lexsort((loss.mean(1), -accuracy.mean(1), ~whole))[0])


def _deficit(accuracy: FloatArray, loss: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Accuracy lost against the best share, mean and standard error, paired by draws."""
    lost = accuracy[_best(accuracy, loss)] - accuracy
    return lost.mean(1), standard_error(lost)


def _as_good(accuracy: FloatArray, loss: FloatArray) -> NDArray[np.bool_]:
    """Which shares are not worse than the best by a paired t-test."""
    from scipy.stats import t

    mean, error = _deficit(accuracy, loss)
    most = t.ppf(1 - LEVEL / 2, accuracy.shape[1] - 1) * error
    return (mean <= most) & np.isfinite(loss).all(1)


def _recommended(accuracy: FloatArray, loss: FloatArray) -> int:
    """Place of the largest share within one standard error of the best."""
    mean, error = _deficit(accuracy, loss)
    # one lost run alone makes the error as large as the deficit
    return int(np.flatnonzero((mean <= error) & np.isfinite(loss).all(1))[-1])


def _theory(inputs: _Inputs, trials: _Trials, lr: float, shares: FloatArray) -> dict[str, Advice]:
    """What the theorems say, at probing's rate and on some rows, of two classes or of each and the rest."""
    net, names, how = inputs.net, inputs.names, trials.how
    random = np.random.default_rng(np.random.SeedSequence(trials.root, spawn_key=(2,)))
    count = min(_THEORY_ROWS, len(net.X))
    rows = np.sort(random.permutation(len(net.X))[:count])
    (phase,) = how.phases(Split(how.steps, lr, lr), count)
    heads = [net.head(random) for _ in range(1 if net.v is not None else _THEORY_HEADS)]
    said = {}
    for label in range(1 if len(names) == 2 else 0, len(names)):
        other = names[0] if len(names) == 2 else "the rest"
        own = [head if len(names) == 2 else head[label] for head in heads]
        said[f"{names[label]} against {other}"] = split_advice(
            net.problem(label, rows),
            [Weights(net.W, v) for v in own],
            sigma=phase.sigma,
            clip=how.clip,
            time=phase.time,
            shares=shares,
        )
    return said
