"""What each statement covers, declared with it; everything else is refused by name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

from langevin.model.problem import Problem
from langevin.model.schedule import Phase, Schedule

F = TypeVar("F", bound=Callable)

ANY = ("any",)
CLIPPED = ("flat", "normalised")
# of a scalar head: a statement that also covers the clipping of K outputs says so
ALL = ("none", *CLIPPED)
# of K outputs, in linear probing alone
PROBING = ("margin", "column")
METHODS = {"lp": "linear probing", "fft": "full fine-tuning"}
CLIPPING = {
    "none": "without clipping",
    "flat": "with flat clipping",
    "normalised": "with normalised clipping",
    "margin": "with margin clipping",
    "column": "with column clipping",
}


@dataclass(frozen=True)
class Covers:
    """Networks, losses and phases that a statement covers.

    Attributes
    ----------
    losses, activations : tuple of str
        Names that the proof covers; `ANY` if it uses no property of the loss or the activation.
    lp, fft : tuple of str
        Clipping covered in linear probing and in full fine-tuning: "none", "flat", "normalised", and in
        linear probing "margin", "column". Empty: the method is not covered.
    late_lp : tuple of str or None
        The same for linear probing after full fine-tuning; None: as ``lp``.
    binary : bool
        Whether the labels must be -1 and +1.
    outputs : bool
        Whether K outputs are covered; otherwise only a scalar head.
    batches : bool
        Whether Poisson sampling, a ``sample_rate`` below 1, is covered; otherwise only full batches.
    chain : bool
        Whether the statement takes ``dt``: it then is of the Euler-Maruyama chain in these steps, and covers
        Poisson sampling.

    Examples
    --------
    >>> covers = Covers(("square",), ANY, lp=("none",), fft=())
    >>> covers.refuses(Problem([[1.0]], [1.0]))
    "the loss 'logistic' is not covered, only 'square'"
    >>> covers.refuses_phases(Schedule.fft(time=1.0))
    'full fine-tuning is not covered'
    >>> covers.refuses_phases(Schedule.lp(time=1.0, sample_rate=0.1))
    'sample_rate=0.1 is not covered, only full batches'
    >>> replace(covers, chain=True).refuses_phases(Schedule.lp(time=1.0, sample_rate=0.1))
    'sample_rate=0.1 is not covered, only full batches: give dt, for the chain in such steps'
    >>> replace(covers, chain=True).at(0.1).refuses_phases(Schedule.lp(time=1.0, sample_rate=0.1))
    ''
    """

    losses: tuple[str, ...]
    activations: tuple[str, ...]
    lp: tuple[str, ...] = ALL
    fft: tuple[str, ...] = ALL
    late_lp: tuple[str, ...] | None = None
    binary: bool = False
    outputs: bool = False
    batches: bool = False
    chain: bool = False

    def at(self, dt: float | None) -> Covers:
        """What is covered with this ``dt``; None: of the diffusion."""
        return self if dt is None else replace(self, batches=self.batches or self.chain)

    def refuses(self, problem: Problem) -> str:
        """Return why the problem is not covered, or ''."""
        choices = ("loss", problem.loss, self.losses), ("activation", problem.activation, self.activations)
        reasons = [
            f"the {what} {name!r} is not covered, only {' or '.join(map(repr, covered))}"
            for what, name, covered in choices
            if covered != ANY and name not in covered
        ]
        if problem.outputs_dim > 1 and not self.outputs:
            reasons.append(f"K = {problem.outputs_dim} outputs are not covered, only a scalar head")
        if self.binary and (problem.outputs_dim > 1 or not problem.classification):
            reasons.append("the labels are not -1 and +1")
        return "; ".join(reasons)

    def require(self, problem: Problem) -> None:
        """Raise `ValueError` for a problem that is not covered, where no band can hold the reason."""
        reason = self.refuses(problem)
        if reason:
            raise ValueError(f"problem is not covered by this bound: {reason}")

    def phases(self, schedule: Schedule) -> list[bool]:
        """Whether each phase is covered."""
        return [not reason for reason in self.reasons(schedule)]

    def refuses_phases(self, schedule: Schedule) -> str:
        """Return why the first phase that is not covered is not, or ''."""
        return next(filter(None, self.reasons(schedule)), "")

    def reasons(self, schedule: Schedule) -> list[str]:
        """Return why each phase is not covered, or ''."""
        reasons, late = [], False
        for phase in schedule:
            late |= phase.method == "fft"
            covered = {"lp": self.lp, "fft": self.fft}[phase.method]
            method = METHODS[phase.method]
            if late and phase.method == "lp" and self.late_lp is not None:
                covered, method = self.late_lp, f"{method} after full fine-tuning"
            kind = clipping(phase)
            if kind not in covered:
                reasons.append(f"{method}{' ' + CLIPPING[kind] if covered else ''} is not covered")
            else:
                reason = "" if self.batches else sampling(phase)
                remedy = ": give dt, for the chain in such steps" if reason and self.chain else ""
                reasons.append(reason + remedy)
        return reasons

    def __str__(self) -> str:
        names = {"losses": self.losses, "activations": self.activations}
        kinds = {METHODS["lp"]: self.lp, METHODS["fft"]: self.fft}
        if self.late_lp is not None:
            kinds[f"{METHODS['lp']} after {METHODS['fft']}"] = self.late_lp
        words = [f"{what}: {', '.join(covered)}" for what, covered in names.items()]
        words += [
            f"clipping in {method}: {', '.join(covered)}" if covered else f"{method}: not covered"
            for method, covered in kinds.items()
        ]
        words += ["labels: -1 and +1"] * self.binary
        words += ["heads: scalar or K outputs"] * self.outputs
        words += ["batches: full or Poisson"] * self.batches
        words += ["batches: full; Poisson with dt"] * (self.chain and not self.batches)
        return "; ".join(words)


def clipping(phase: Phase) -> str:
    """Kind of clipping of a phase, "none" without."""
    return "none" if phase.clip is None else phase.clipping


def sampling(phase: Phase) -> str:
    """Return why a statement on full batches does not cover a phase, or ''."""
    if phase.sample_rate == 1:
        return ""
    return f"sample_rate={phase.sample_rate:g} is not covered, only full batches"


_DECLARED: dict[Callable, Mapping[str, Covers]] = {}


def declares(covers: Covers | Mapping[str, Covers]) -> Callable[[F], F]:
    """Decorate a bound with what it covers, which also goes into its docstring.

    Parameters
    ----------
    covers : Covers or mapping of str to Covers
        Of the statement, or of each of its forms: those that ``kind`` chooses from, or alternatives.
    """
    kinds = {"": covers} if isinstance(covers, Covers) else covers

    def mark(function: F) -> F:
        _DECLARED[function] = kinds
        text = inspect.getdoc(function)
        if text:
            lines = "\n".join(f"    {f'``{kind}``: ' if kind else ''}{c}.\n" for kind, c in kinds.items())
            section = re.search(r"^\w+\n-{3,}$", text, re.MULTILINE)
            at = section.start() if section else len(text)
            function.__doc__ = f"{text[:at].rstrip()}\n\nCovers\n{lines}\n{text[at:]}"
        return function

    return mark


def declared(function: Callable) -> Mapping[str, Covers]:
    """What a bound covers, by its kinds ('' if it has one).

    Raises
    ------
    LookupError
        If it does not say.
    """
    if function not in _DECLARED:
        raise LookupError(f"{function.__name__} does not declare what it covers: decorate it with `declares`")
    return _DECLARED[function]


def table() -> dict[str, Mapping[str, Covers]]:
    """What each public bound on a problem covers, by its name."""
    import bounds

    functions = ((name, getattr(bounds, name)) for name in dir(bounds))
    return {
        name: declared(function)
        for name, function in functions
        if inspect.isfunction(function) and "problem" in inspect.signature(function).parameters
    }
