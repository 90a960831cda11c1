"""A plan, and which share it recommends."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bounds.allocation.advice import Advice
from empirical.planning.settings import Activation
from empirical.privacy.history import History
from langevin.support.validate import FloatArray

if TYPE_CHECKING:
    import xarray as xr

    from empirical.recipe import Recipe

# of the comparison of shares
LEVEL = 0.05


def standard_error(values: FloatArray) -> FloatArray:
    """Of the means over the draws, the last axis; NaN where one is infinite."""
    with np.errstate(invalid="ignore"):
        return values.std(-1, ddof=1) / math.sqrt(values.shape[-1])


@dataclass(frozen=True, eq=False)
class SharePlan:
    """A split of a budget, with its basis; see `plan_share`.

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
        """Return the index of the share with the highest mean accuracy (on ties, the lowest loss)."""
        return best_share_of(self.accuracy, self.loss)

    @property
    def recommended(self) -> int:
        """Index of the largest share that is within one standard error of the best."""
        return recommended_share(self.accuracy, self.loss)

    @property
    def share(self) -> float:
        """The recommended share."""
        return float(self.shares[self.recommended])

    @property
    def deficit(self) -> tuple[FloatArray, FloatArray]:
        """Accuracy lost against the best share, mean and standard error, paired by draws."""
        return deficit_of(self.accuracy, self.loss)

    @property
    def as_good(self) -> FloatArray:
        """Shares that are not worse than the best by a paired t-test at 5 %: the flatness of the optimum."""
        return self.shares[as_good_as(self.accuracy, self.loss)]

    @property
    def loss_share(self) -> float:
        """The share with the lowest mean training loss, which is a different criterion."""
        return float(self.shares[self.loss.mean(1).argmin()])

    @property
    def recipe(self) -> Recipe:
        """The recommended run, for `empirical.train.fine_tuning.finetune`.

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


def best_share_of(accuracy: FloatArray, loss: FloatArray) -> int:
    """Return the place of the highest mean accuracy over the draws (on ties, the lowest mean loss).

    A share of which a run left the range of numbers comes after all others.
    """
    whole = np.isfinite(loss).all(1)
    return int(np.lexsort((loss.mean(1), -accuracy.mean(1), ~whole))[0])


def deficit_of(accuracy: FloatArray, loss: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Accuracy lost against the best share, mean and standard error, paired by draws."""
    lost = accuracy[best_share_of(accuracy, loss)] - accuracy
    return lost.mean(1), standard_error(lost)


def as_good_as(accuracy: FloatArray, loss: FloatArray) -> NDArray[np.bool_]:
    """Tell which shares are not worse than the best by a paired t-test."""
    from scipy.stats import t

    mean, error = deficit_of(accuracy, loss)
    most = t.ppf(1 - LEVEL / 2, accuracy.shape[1] - 1) * error
    return (mean <= most) & np.isfinite(loss).all(1)


def recommended_share(accuracy: FloatArray, loss: FloatArray) -> int:
    """Place of the largest share within one standard error of the best."""
    mean, error = deficit_of(accuracy, loss)
    # one lost run alone makes the error as large as the deficit
    return int(np.flatnonzero((mean <= error) & np.isfinite(loss).all(1))[-1])
