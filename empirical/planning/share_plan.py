"""A plan, and which share it recommends."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from bounds.allocation.advice import Advice
from empirical.planning.comparison import as_good_as, best_of, deficit_of, standard_error, within_error
from empirical.planning.settings import Activation
from empirical.privacy.history import History
from empirical.recipe import Head, Recipe
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    import xarray as xr

    from bounds.allocation.forecast import ProbingForecast
    from empirical.planning.private_choice import Released

_PHASES = ("lp", "fft")


@dataclass(frozen=True, eq=False)
class HeadRuns:
    """What the shares come to from one kind of head.

    Attributes
    ----------
    accuracy, loss : ndarray, shape (m, draws)
        Held-out accuracy and mean training loss at the end of each simulated run, weighted means over the
        worlds. The draws, of head, noise and batches, are common to shares and heads. Each is of the rate
        that all other draws choose.
    lr : ndarray, shape (m,)
        Chosen learning rate of full fine-tuning; NaN for share 1.
    lp_lr : float
        Chosen learning rate of probing.
    choice : ndarray, shape (m,)
        Standard error of the mean accuracies that comes from the choice of the rate.
    worlds : mapping of str to ndarray, shape (m, draws)
        Accuracy in each world, at the chosen rates.
    weights : sequence of float
        Of the worlds.
    """

    accuracy: FloatArray
    loss: FloatArray
    lr: FloatArray
    lp_lr: float
    choice: FloatArray
    worlds: Mapping[str, FloatArray] = field(default_factory=dict)
    weights: Sequence[float] | FloatArray = ()

    @property
    def best(self) -> int:
        """Place of the share with the highest mean accuracy (on ties, the lowest loss)."""
        return best_of(self.accuracy, self.loss)

    @property
    def recommended(self) -> int:
        """Place of the largest share that is within one standard error of the best."""
        return int(np.flatnonzero(within_error(self.accuracy, self.loss, self.choice))[-1])

    @property
    def error(self) -> FloatArray:
        """Standard error of the mean accuracies, the choice of the rate included."""
        return np.hypot(standard_error(self.accuracy), self.choice)

    @property
    def regret(self) -> FloatArray:
        """Weighted mean over the worlds of the accuracy lost to a world's own best share, shape (m,)."""
        means = [values.mean(1) for values in self.worlds.values()]
        return np.tensordot(self.weights, [mean.max() - mean for mean in means], 1)


@dataclass(frozen=True, eq=False)
class SharePlan:
    """A split of a budget and a head to start from, with their basis; see `plan_share`.

    Attributes
    ----------
    shares : ndarray, shape (m,)
        Shares of the steps, and of the budget, for linear probing.
    runs : mapping of str to HeadRuns
        By kind of head.
    history : History
        What the recommended run releases, by the accountant.
    theory : mapping of str to Advice
        What the theorems say, by a name of the classes.
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
    forecast : ProbingForecast or None
        What theory alone says of probing (8'(c)).
    released : Released or None
        The private choice, if the plan is one.
    """

    shares: FloatArray
    runs: Mapping[Head, HeadRuns]
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
    forecast: ProbingForecast | None = None
    released: Released | None = None

    @property
    def head(self) -> Head:
        """The recommended head, see `chosen_head`, or that of the private choice."""
        if self.released is not None:
            return self.released.head
        return chosen_head(self.runs)

    @property
    def recommended(self) -> int:
        """Index of the largest share that is within one standard error of the best."""
        return self._own.recommended if self.released is None else self.released.place

    @property
    def _own(self) -> HeadRuns:
        return self.runs[self.head]

    @property
    def accuracy(self) -> FloatArray:
        """Held-out accuracy from the recommended head, shape (m, draws)."""
        return self._own.accuracy

    @property
    def loss(self) -> FloatArray:
        """Mean training loss from the recommended head, shape (m, draws)."""
        return self._own.loss

    @property
    def lr(self) -> FloatArray:
        """Learning rate of full fine-tuning from the recommended head, shape (m,); NaN for share 1."""
        return self._own.lr

    @property
    def lp_lr(self) -> float:
        """Learning rate of probing from the recommended head."""
        return self._own.lp_lr

    @property
    def best(self) -> int:
        """Index of the share with the highest mean accuracy (on ties, the lowest loss)."""
        return self._own.best

    @property
    def share(self) -> float:
        """The recommended share."""
        return float(self.shares[self.recommended])

    @property
    def deficit(self) -> tuple[FloatArray, FloatArray]:
        """Accuracy lost against the best share, mean and standard error, paired by draws.

        The error includes the choice of the rates.
        """
        return deficit_of(self.accuracy, self.loss, self._own.choice)

    @property
    def as_good(self) -> FloatArray:
        """Shares that are not worse than the best by a paired t-test at 5 %: the flatness of the optimum."""
        return self.shares[as_good_as(self.accuracy, self.loss, self._own.choice)]

    @property
    def loss_share(self) -> float:
        """The share with the lowest mean training loss, which is a different criterion."""
        return float(self.shares[self.loss.mean(1).argmin()])

    @property
    def probing_needed(self) -> bool | None:
        """Whether every run without probing is worse than the best beyond noise; None without share 0."""
        if self.shares[0] != 0:
            return None
        accuracy, loss, choice = (
            np.concatenate([getattr(runs, name) for runs in self.runs.values()])
            for name in ("accuracy", "loss", "choice")
        )
        return not as_good_as(accuracy, loss, choice)[:: len(self.shares)].any()

    @property
    def unprobed(self) -> Head | None:
        """The head whose share 0 is not worse than the best beyond noise, the most accurate of them."""
        if self.probing_needed is not False:
            return None
        return max(self.runs, key=lambda head: self.runs[head].accuracy[0].mean())

    @property
    def steps(self) -> int:
        """Steps of DP-SGD, both phases together."""
        return sum(m.steps for m in self.history.mechanisms if m.name in _PHASES)

    @property
    def recipe(self) -> Recipe:
        """The recommended run, for `empirical.train.fine_tuning.finetune`.

        Its learning rates are those that were best in the simulation.
        """
        lr = float(self.lr[self.recommended])
        settings: dict[str, Any] = dict(
            steps=self.steps,
            batch=self.batch,
            epsilon=self.training_epsilon,
            delta=self.history.delta,
            clip=self.clip,
            head=self.head,
        )
        if self.share == 1:
            return Recipe("lp", lr=self.lp_lr, **settings)
        if self.share == 0:
            return Recipe("fft", lr=lr, **settings)
        return Recipe("lp-fft", lp_share=self.share, lp_lr=self.lp_lr, lr=lr, **settings)

    @property
    def training_epsilon(self) -> float:
        """What the training spends: the whole budget, less what a private plan has spent."""
        return self.epsilon if self.released is None else self.epsilon - self.released.epsilon

    @property
    def expected(self) -> tuple[float, float]:
        """Held-out accuracy of the recommended share in the simulation, mean and standard error."""
        return float(self.accuracy[self.recommended].mean()), float(self._own.error[self.recommended])

    @property
    def by_world(self) -> dict[str, float]:
        """Held-out accuracy of the recommended share in each world that features leave open."""
        return {name: float(values[self.recommended].mean()) for name, values in self._own.worlds.items()}

    @property
    def command(self) -> str:
        """The recommended run as a command, without the options for data and body."""
        return self.command_with([])

    def command_with(self, words: Sequence[str]) -> str:
        """The recommended run as a command, with options for data and body."""
        return self._command(list(words), self.batch)

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
        head = [] if recipe.head == Recipe.head else ["--head", recipe.head]
        words = ["--method", recipe.method, *share, *head, *named, *rest]
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
            if m.name in _PHASES
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
            "head": self.head,
            "linear probing needed": self.probing_needed,
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
                "rate choice standard error": self._own.choice.tolist(),
                "worlds": {name: values.mean(1).tolist() for name, values in self._own.worlds.items()},
                "mean regret over the worlds": self._own.regret.tolist(),
                "loss-optimal share": self.loss_share,
                "lp learning rate": self.lp_lr,
                "fft learning rates": self.lr.tolist(),
            },
            "heads": {head: self._of(runs) for head, runs in self.runs.items()},
            "theory": {name: advice.to_dict() for name, advice in self.theory.items()},
            "probing by theory": None if self.forecast is None else _proposal(self.forecast),
            "notes": list(self.notes),
            "caveats": list(self.caveats),
        }

    def _of(self, runs: HeadRuns) -> dict[str, Any]:
        """What a head comes to at its own share."""
        place = runs.recommended
        return {
            "lp share": float(self.shares[place]),
            "accuracy": float(runs.accuracy[place].mean()),
            "accuracy standard error": float(runs.error[place]),
        }

    def to_dataset(self) -> xr.Dataset:
        """Every simulated run over ``(head, share, draw)``, and the record in the attributes."""
        import json

        import xarray as xr

        about = {
            "accuracy": ("held-out accuracy at the end", "1", ("draw",)),
            "loss": ("mean training loss at the end", "loss", ("draw",)),
            "lr": ("learning rate of full fine-tuning", "1", ()),
        }
        variables: dict[str, Any] = {
            name: (
                ("head", "share", *rest),
                np.array([getattr(runs, name) for runs in self.runs.values()]),
                {"long_name": meaning, "units": units},
            )
            for name, (meaning, units, rest) in about.items()
        }
        record = {"title": "plan of a privacy budget", "plan": json.dumps(self.to_dict())}
        coords = {"head": list(self.runs), "share": self.shares, "draw": np.arange(self.accuracy.shape[1])}
        return xr.Dataset(variables, coords, record)


def _proposal(found: ProbingForecast) -> dict[str, Any]:
    """What theory alone proposes for probing, as plain data."""
    numbers = {name: getattr(found.dpsgd, name) for name in ("steps", "learning_rate", "clip", "sample_rate")}
    return numbers | {"accuracy": found.test_accuracy, "valid": found.valid, "reason": found.reason}


def chosen_head(runs: Mapping[Head, HeadRuns]) -> Head:
    """The first head that is not worse than the best by a paired t-test, each at its own share."""
    places = {head: found.recommended for head, found in runs.items()}
    accuracy, loss, choice = (
        np.array([getattr(found, name)[places[head]] for head, found in runs.items()])
        for name in ("accuracy", "loss", "choice")
    )
    return list(runs)[int(as_good_as(accuracy, loss, choice).argmax())]
