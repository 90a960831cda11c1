"""What a sweep is: fixed parameters, swept parameters, and what is recorded of each cell."""

from __future__ import annotations

import hashlib
import itertools
import math
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from langevin.support import validate
from langevin.sweeps.parameters import Parameter, label, parameters, plain, require_known

Values = dict[str, Any]

# each combination is checked before the first cell runs, in tens of microseconds
_MOST_CELLS = 10**7


@dataclass(frozen=True)
class Variable:
    """The record of a cell: dimensions and shape within a cell, and attributes."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    attrs: dict[str, str]

    @property
    def nbytes(self) -> int:
        """Bytes of a cell, before compression."""
        return 8 * math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Variables of a cell and coordinates of its dimensions, each with dimensions and attributes."""

    variables: dict[str, Variable]
    coords: dict[str, tuple[tuple[str, ...], np.ndarray, dict[str, str]]] = field(default_factory=dict)

    @property
    def cell_bytes(self) -> int:
        """Bytes of a cell, before compression."""
        return sum(variable.nbytes for variable in self.variables.values())


class Kind(Protocol):
    """What can be swept. Implementations derive from this, hold no state, and are sent to workers."""

    name: str
    parameters: dict[str, Parameter]
    record: type  # data class of what [record] may say
    packages: tuple[str, ...] = ()  # whose versions affect the bits
    alone: bool = False  # whether a process can compute only one cell at a time

    def check(self, values: Values, record: Any) -> None:
        """Refuse an invalid combination of values."""

    def idle(self, values: Values) -> Collection[str]:
        """Parameters without effect, given the values of the others."""
        return ()

    def layout(self, grid: Grid) -> Layout:
        """What is stored of each cell."""
        ...

    def memory(self, values: Values, record: Any) -> float:
        """Least peak memory of a cell in bytes; 0 if it is unknown."""
        return 0.0

    def files(self, values: Values) -> list[str]:
        """Return the files that the values name."""
        return []

    def located(self, values: Values, out: Path) -> Values:
        """The same values with absolute paths, for workers in other folders."""
        return values

    def compute(self, values: Values, record: Any) -> tuple[dict[str, np.ndarray], str | None]:
        """Variables of a cell, and an error if they are incomplete."""
        ...


@dataclass(frozen=True)
class Grid:
    """A grid: all combinations of the swept values, one cell each.

    A cell is what the same parameters give alone, to the last bit: its seed is the value of ``seed``, fixed
    or swept. Cells with the same seed share data, weights and noise, so their differences are paired.

    Parameters
    ----------
    kind : Kind
        `langevin.sweeps.SIMULATIONS`, or `empirical.studies.sweeps.FINETUNINGS`.
    sweep : mapping
        For each swept parameter a list of values; or ``{"count": 5, "start": 0}`` for consecutive integers;
        or ``{"from": 0.1, "to": 10, "count": 5, "spacing": "log"}``, including both ends.
    fixed : mapping
        Values of other parameters; the others have their defaults.
    record : mapping
        What to record; see the kind.

    Raises
    ------
    ValueError, TypeError
        On unknown names, values of the wrong type, and any combination that the kind refuses, which the
        message names.

    Examples
    --------
    >>> from langevin.sweeps import SIMULATIONS
    >>> sweep = {"sigma": [0.1, 0.3], "seed": {"count": 5}}
    >>> grid = Grid(SIMULATIONS, sweep, {"time": 0.1, "dt": 0.01})
    >>> grid.dims, grid.shape, grid.values((1, 4))["sigma"]
    (('sigma', 'seed'), (2, 5), 0.3)
    """

    kind: Kind
    sweep: Mapping[str, Any]
    fixed: Mapping[str, Any] = field(default_factory=dict)
    record: Any = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = getattr(self.kind, "parameters", None)
        if known is None:
            raise TypeError(
                "kind must be langevin.sweeps.SIMULATIONS or empirical.studies.sweeps.FINETUNINGS, "
                f"got {self.kind!r}"
            )
        self._check_names(known)
        axes = {name: _axis(known[name], given) for name, given in self.sweep.items()}
        cells = math.prod(len(values) for values in axes.values())
        if cells > _MOST_CELLS:
            raise ValueError(f"sweep must have at most {_MOST_CELLS} cells, got {cells}: use several sweeps")
        object.__setattr__(self, "sweep", axes)
        object.__setattr__(self, "fixed", {n: known[n].read(v) for n, v in self.fixed.items()})
        if isinstance(self.record, Mapping):
            options = parameters(self.kind.record)
            require_known("[record]", self.record, options)
            read = {name: options[name].read(value) for name, value in self.record.items()}
            object.__setattr__(self, "record", self.kind.record(**read))
        validate.instance("record", self.record, self.kind.record)
        self._check_combinations()

    def _check_names(self, known: Mapping[str, Parameter]) -> None:
        for what, given in (("fixed", self.fixed), ("sweep", self.sweep)):
            if not isinstance(given, Mapping):
                raise TypeError(f"{what} must be a table, got {given!r}")
            require_known(f"[{what}]", given, known)
        if not self.sweep:
            raise ValueError("[sweep] is empty: name at least one parameter")
        for name in self.sweep:
            if name in self.fixed:
                raise ValueError(f"{name!r} is in both [fixed] and [sweep]: remove one")
            if not known[name].recorded:
                raise ValueError(f"cannot sweep {name!r}: it does not affect results; set it under [fixed]")

    def _check_combinations(self) -> None:
        unused = set(self.sweep)
        for values in self.combinations():
            try:
                self.kind.check(values, self.record)
                unused.intersection_update(self.kind.idle(values))
            except (ValueError, TypeError) as error:
                raise type(error)(f"{error} (at {self.describe(values)})") from None
        for name in self.sweep:
            if name in unused:
                raise ValueError(
                    f"cannot sweep {name!r}: no cell uses it with these values of the others; remove it, or "
                    "change them"
                )

    @classmethod
    def read(cls, path: str | Path, kinds: Mapping[str, Callable[[], Kind]]) -> tuple[Grid, str | None]:
        """Read a grid from a TOML file with ``kind``, ``out``, and tables ``fixed``, ``sweep``, ``record``.

        Parameters
        ----------
        path : path
        kinds : mapping
            From the name of a kind to a function that returns it.

        Returns
        -------
        tuple of Grid and (str or None)
            The grid, and the store that the file names.

        Raises
        ------
        ValueError, TypeError
            Also if the file is missing or not TOML.
        """
        try:
            with Path(path).open("rb") as file:
                table = tomllib.load(file)
        except OSError as error:
            raise ValueError(f"grid must be a TOML file, got {str(path)!r}: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"grid must be a TOML file, got {str(path)!r}: {error}") from None
        require_known("the grid", table, ("kind", "out", "fixed", "sweep", "record"))
        kind = kinds[validate.choice("kind", table.get("kind"), kinds)]()
        out = table.get("out")
        if out is not None and not isinstance(out, str):
            raise TypeError(f"out must be a string, got {out!r}")
        return cls(kind, table.get("sweep", {}), table.get("fixed", {}), table.get("record", {})), out

    @property
    def dims(self) -> tuple[str, ...]:
        """Names of the swept dimensions."""
        return tuple(self.kind.parameters[name].axis for name in self.sweep)

    @property
    def shape(self) -> tuple[int, ...]:
        """Number of values of each swept parameter."""
        return tuple(len(values) for values in self.sweep.values())

    @property
    def cells(self) -> int:
        """Number of cells."""
        return math.prod(self.shape)

    def values(self, place: Sequence[int]) -> Values:
        """All parameters of the cell at ``place``."""
        defaults = {name: p.default for name, p in self.kind.parameters.items()}
        swept = {name: v[i] for (name, v), i in zip(self.sweep.items(), place, strict=True)}
        return defaults | dict(self.fixed) | swept

    def combinations(self, names: Collection[str] | None = None) -> Iterator[Values]:
        """Every combination of the swept ``names``, the others at their first value.

        By default of all but the seed, then with the smallest seed: the other seeds are equally valid.
        """
        first = self.values([0] * len(self.sweep))
        free = (
            [n for n in self.sweep if n in names]
            if names is not None
            else [n for n in self.sweep if n != "seed"]
        )
        for chosen in itertools.product(*(self.sweep[name] for name in free)):
            yield first | dict(zip(free, chosen, strict=True))
        if names is None and "seed" in self.sweep:
            yield first | {"seed": min(self.sweep["seed"])}

    def describe(self, values: Values) -> str:
        """The swept values of a cell, as text."""
        return ", ".join(f"{name} = {label(values[name])}" for name in self.sweep)

    def labels(self, name: str) -> np.ndarray:
        """Coordinate of a swept parameter: numbers or booleans if all values are, otherwise text."""
        values = self.sweep[name]
        if all(isinstance(v, bool) for v in values):
            return np.array(values)
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            return np.array(values, dtype=np.int64 if all(isinstance(v, int) for v in values) else np.float64)
        return np.array([label(v) for v in values], dtype=object)

    def as_dict(self) -> dict[str, Any]:
        """Everything that results depend on, as plain data."""
        values = self.values([0] * len(self.sweep))
        record = {name: getattr(self.record, name) for name in parameters(self.kind.record)}
        files = {f for name in self.sweep for v in self.combinations([name]) for f in self.kind.files(v)}
        return {
            "kind": self.kind.name,
            "fixed": {
                name: plain(values[name])
                for name, parameter in self.kind.parameters.items()
                if name not in self.sweep and parameter.recorded
            },
            "sweep": {name: plain(list(v)) for name, v in self.sweep.items()},
            "record": plain(record),
            "files": {name: _digest(name) for name in sorted(files)},
        }

    def extended(self, stored: Mapping[str, Any]) -> Grid:
        """The same grid with values in the order of a store, followed by new ones.

        Raises
        ------
        ValueError
            If the store sweeps other parameters, or has values that this grid lacks.
        """
        if list(stored) != list(self.sweep):
            raise ValueError(f"it sweeps {', '.join(stored)}, the grid {', '.join(self.sweep)}")
        axes = {}
        for name, values in self.sweep.items():
            given = {repr(plain(value)): value for value in values}
            lost = [value for value in stored[name] if repr(value) not in given]
            if lost:
                raise ValueError(f"its sweep.{name} has the value {lost[0]!r}, which the grid lacks")
            kept = [given.pop(repr(value)) for value in stored[name]]
            axes[name] = [*kept, *given.values()]
        return replace(self, sweep=axes)


def _axis(parameter: Parameter, given: Any) -> tuple[Any, ...]:
    name = f"sweep.{parameter.name}"
    if isinstance(given, Mapping):
        require_known(name, given, ("count", "start", "from", "to", "spacing"))
        count = validate.integer(f"{name}.count", given.get("count"), 1)
        if count > _MOST_CELLS:
            raise ValueError(f"{name}.count must be at most {_MOST_CELLS}, got {count}: use several sweeps")
        if "from" in given or "to" in given:
            require_known(name, given, ("count", "from", "to", "spacing"))
            given = _spread(name, given, count)
        else:
            require_known(name, given, ("count", "start"))
            start = validate.integer(f"{name}.start", given.get("start", 0), 0)
            given = range(start, start + count)
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray) or not len(given):
        raise TypeError(f"{name} must be a non-empty list, or a table with count, got {given!r}")
    given = given.tolist() if isinstance(given, np.ndarray) else given
    values = tuple(parameter.read(value) for value in given)
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in values):
        raise ValueError(f"{name} must be below 2^63, got {max(values)}")
    names = [label(value) for value in values]
    if len(set(values)) < len(values) or (
        len(set(names)) < len(names) and any(isinstance(v, str) for v in values)
    ):
        raise ValueError(f"{name} must not repeat values, got {list(given)}")
    return values


def _spread(name: str, given: Mapping[str, Any], count: int) -> list[float]:
    spacing = validate.choice(f"{name}.spacing", given.get("spacing", "linear"), ("linear", "log"))
    low, high = (validate.number(f"{name}.{end}", given.get(end)) for end in ("from", "to"))
    if count < 2:
        raise ValueError(f"{name}.count must be at least 2 with from and to, got {count}")
    if spacing == "log":
        low, high = validate.positive(f"{name}.from", low), validate.positive(f"{name}.to", high)
    values = np.geomspace(low, high, count) if spacing == "log" else np.linspace(low, high, count)
    return values.tolist()


def _digest(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise ValueError(f"the grid names a file that cannot be read, {path!r}: {error.strerror}") from None
