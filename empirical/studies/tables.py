"""Results of a grid: means with standard errors, paired differences, the best share; as text or Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from langevin.support import validate

if TYPE_CHECKING:
    import xarray as xr

# familywise, for all claims of a table
LEVEL = 0.05
# characters with another meaning in LaTeX, or none
_LATEX = str.maketrans(
    {character: "\\" + character for character in "&%_#${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"±": r"$\pm$", "ε": r"$\varepsilon$"}
)
# from all of the budget on full fine-tuning to all on probing
_SHARED = ("fft", "lp-fft", "lp")


def summary(run: xr.Dataset, measure: str = "test_accuracy") -> xr.Dataset:
    """Mean and standard error over the seeds.

    Parameters
    ----------
    run : xarray.Dataset
        From `run_grid`.
    measure : str

    Returns
    -------
    xarray.Dataset
        ``mean``, ``standard_error`` (NaN of one seed) and ``count``, the number of seeds without NaN.

    Examples
    --------
    >>> import xarray as xr
    >>> run = xr.Dataset({"test_accuracy": (("arm", "epsilon", "seed"), [[[0.5, 0.7]]])})
    >>> found = summary(run)
    >>> round(found["mean"].item(), 6), round(found.standard_error.item(), 6)
    (0.6, 0.1)
    """
    import xarray as xr

    values = run[validate.choice("measure", measure, [str(name) for name in run.data_vars])]
    count = values.notnull().sum("seed")
    spread = (
        values.std("seed", ddof=1).where(count > 1)
        if values.sizes["seed"] > 1
        else values.mean("seed") * np.nan
    )
    return xr.Dataset(
        {"mean": values.mean("seed"), "standard_error": spread / np.sqrt(count), "count": count}
    )


def paired(run: xr.Dataset, reference: str, measure: str = "test_accuracy") -> xr.Dataset:
    """Differences from one arm, seed by seed, with the same split and body.

    Parameters
    ----------
    run : xarray.Dataset
        From `run_grid`.
    reference : str
        Name of an arm.
    measure : str

    Returns
    -------
    xarray.Dataset
        As `summary`, and ``significant``: whether the difference is nonzero by a t-test, at a familywise
        level of 5 % for all arms and budgets of ``run`` (Holm). Differences that are equal for all seeds are
        not tested.

    Raises
    ------
    ValueError
        If there is no such arm.
    """
    from scipy.stats import t

    validate.choice("reference", reference, [str(arm) for arm in run.arm.values])
    values = run[[measure]]
    found = summary(values - values.sel(arm=reference, drop=True), measure)
    mean, error, count = (found[name].values for name in ("mean", "standard_error", "count"))
    testable = (count > 1) & (error > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = np.where(testable, 2 * t.sf(np.abs(mean) / error, np.maximum(count - 1, 1)), np.nan)
    return found.assign(significant=(found["mean"].dims, _holm(p)))


def _holm(p: np.ndarray) -> np.ndarray:
    """Which hypotheses are rejected at the familywise level `LEVEL`; NaN is no hypothesis."""
    rejected = np.zeros(p.size, dtype=bool)
    order = np.argsort(p.ravel())
    tested = int(np.isfinite(p).sum())
    for rank, place in enumerate(order[:tested]):
        if p.flat[place] > LEVEL / (tested - rank):
            break
        rejected[place] = True
    return rejected.reshape(p.shape)


def best_share(run: xr.Dataset, measure: str = "test_accuracy") -> xr.Dataset:
    """The share of the budget for probing with the highest mean, "fft" as share 0 and "lp" as share 1.

    Parameters
    ----------
    run : xarray.Dataset
        From `run_grid`, with at least two of these arms.
    measure : str

    Returns
    -------
    xarray.Dataset
        Over ``epsilon``: ``share``, the ``runner_up``, and the ``gain`` over it, paired by seed, with its
        ``standard_error``. Choosing the best of several favours luck: a gain within two standard errors
        leaves the order open. NaN if an arm has no results.

    Raises
    ------
    ValueError
        With fewer than two such arms.
    """
    import xarray as xr

    shared = run.sel(arm=[method in _SHARED for method in run.method.values])
    if shared.sizes["arm"] < 2:
        raise ValueError(
            f"run must have at least two arms of {', '.join(_SHARED)}, got {[str(a) for a in run.arm.values]}"
        )
    rows = []
    for epsilon in shared.epsilon.values:
        values = shared[[measure]].sel(epsilon=epsilon)
        mean = values[measure].mean("seed").values
        if not np.isfinite(mean).all():
            rows.append([math.nan] * 4)
            continue
        next_, first = np.argsort(mean, kind="stable")[-2:]
        gain = summary(values.isel(arm=first, drop=True) - values.isel(arm=next_, drop=True), measure)
        share = shared.share.values
        rows.append([share[first], share[next_], float(gain["mean"]), float(gain.standard_error)])
    names = ("share", "runner_up", "gain", "standard_error")
    columns = dict(zip(names, np.array(rows).T, strict=True))
    return xr.Dataset(
        {name: ("epsilon", column) for name, column in columns.items()}, {"epsilon": shared.epsilon.values}
    )


class Table:
    """A table of text with a header.

    Parameters
    ----------
    header : sequence of str
    rows : iterable of sequence of str
    labels : int
        Number of leading columns of text, left-aligned; the others are numbers.

    Examples
    --------
    >>> print(Table(["arm", "accuracy"], [["lp", "0.5"]]).text())
    arm  accuracy
    lp        0.5
    """

    def __init__(self, header: Sequence[str], rows: Iterable[Sequence[str]], labels: int = 1) -> None:
        self.header, self.rows, self.labels = list(header), [list(row) for row in rows], labels

    def _padded(self) -> list[list[str]]:
        lines = [self.header, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.header))]
        return [
            [
                cell.ljust(width) if i < self.labels else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ]
            for line in lines
        ]

    def text(self) -> str:
        """Aligned columns, for a terminal."""
        return "\n".join("  ".join(line).rstrip() for line in self._padded())

    def markdown(self) -> str:
        """A Markdown table."""
        header, *rows = ("| " + " | ".join(line) + " |" for line in self._padded())
        rule = "|" + "---|" * self.labels + "---:|" * (len(self.header) - self.labels)
        return "\n".join([header, rule, *rows])

    def latex(self) -> str:
        """A LaTeX table in the style of the package booktabs."""
        columns = "l" * self.labels + "r" * (len(self.header) - self.labels)
        header, *rows = (
            " & ".join(cell.strip().translate(_LATEX) for cell in line) + r" \\"
            for line in (self.header, *self.rows)
        )
        body = [r"\toprule", header, r"\midrule", *rows, r"\bottomrule"]
        return "\n".join([rf"\begin{{tabular}}{{{columns}}}", *body, r"\end{tabular}"])


def table(run: xr.Dataset, reference: str | None = None, measure: str = "test_accuracy") -> Table:
    """One row per arm, one column per budget: means, or differences from an arm, with standard errors.

    Parameters
    ----------
    run : xarray.Dataset
        From `run_grid`.
    reference : str, optional
        Arm from which paired differences are taken; significant ones, by `paired`, have a star.
    measure : str

    Returns
    -------
    Table
    """
    found = summary(run, measure) if reference is None else paired(run, reference, measure)

    def cell(arm: str, epsilon: float) -> str:
        at = found.sel(arm=arm, epsilon=epsilon)
        star = "" if reference is None else "*" if at.significant else " "
        return number(float(at["mean"]), float(at.standard_error), signed=reference is not None) + star

    arms = [str(arm) for arm in run.arm.values if arm != reference]
    epsilons = [float(epsilon) for epsilon in run.epsilon.values]
    title = measure.replace("_", " ") + (f" less that of {reference}" if reference else "")
    header = [title, *(f"epsilon {epsilon:g}" for epsilon in epsilons)]
    return Table(header, ([arm, *(cell(arm, epsilon) for epsilon in epsilons)] for arm in arms))


def shares_table(run: xr.Dataset, measure: str = "test_accuracy") -> Table:
    """One row per budget: `best_share`."""
    found = best_share(run, measure)
    rows = []
    for epsilon in found.epsilon.values:
        at = {str(name): float(value) for name, value in found.sel(epsilon=epsilon).data_vars.items()}
        gain = number(at["gain"], at["standard_error"], signed=True)
        known = math.isfinite(at["share"])
        rows.append([f"{epsilon:g}", *(f"{at[n]:g}" if known else "-" for n in ("share", "runner_up")), gain])
    return Table(["epsilon", "best lp share", "runner-up", "gain"], rows)


def number(mean: float, error: float, *, signed: bool = False) -> str:
    """Format a mean and its standard error with three decimals; a dash if there is none."""
    if not math.isfinite(mean):
        return "-"
    text = f"{mean:+.3f}" if signed else f"{mean:.3f}"
    return f"{text} ± {error:.3f}" if math.isfinite(error) else text
