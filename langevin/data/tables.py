"""Read tables of features and labels from ``.csv`` and ``.parquet`` files of any origin."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from langevin.support import validate
from langevin.support.labels import plain
from langevin.support.validate import FloatArray

# what stands for no number, and for no label: a class may be called None
_NO_NUMBER = ("", "NA", "N/A", "n/a", "NaN", "nan", "NAN", "<NA>", "null", "NULL", "None", "none", "#N/A")
_NO_LABEL = ("", "NA", "N/A", "NaN", "nan", "<NA>", "null", "NULL", "#N/A")
# columns that a message lists
_LISTED = 20
# times that a table is in memory while it is read
_COPIES = 3
# names and values of the columns, in order, and what was left out; None stands for a missing value, or NaN
_Columns = tuple[dict[str, NDArray[Any]], list[str]]


class Table(NamedTuple):
    """Features and labels, the names of the features, and what was ignored."""

    X: FloatArray
    y: NDArray[Any]
    features: tuple[str, ...]
    notes: tuple[str, ...]


def read(path: Path, label: str) -> Table:
    """Read a table; see `langevin.from_file`.

    Parameters
    ----------
    path : Path
        Ending in .csv or .parquet.
    label : str
        Column of the labels; all others are features.
    """
    columns: Callable[[Path, str], _Columns] = (
        _csv_columns if path.suffix.lower() == ".csv" else _parquet_columns
    )
    try:
        found, notes = columns(path, label)
    except (ValueError, MemoryError, ImportError):
        raise
    except Exception as error:  # of a damaged file libraries raise almost anything
        raise unreadable(path, f"{type(error).__name__}: {error}") from error
    return _table(path, found, notes, label)


def unreadable(path: Path, why: str, remedy: str = "write it again") -> ValueError:
    """Return the error for a file that cannot be read."""
    return ValueError(f"data file {str(path)!r} cannot be read ({why}): {remedy}")


def _table(path: Path, found: dict[str, NDArray[Any]], notes: list[str], label: str) -> Table:
    """Split columns into labels and features."""
    labels = found.pop(label)
    if not len(labels):
        raise ValueError(f"data file {str(path)!r} must have rows, got none below the names of its columns")
    if not found:
        raise ValueError(f"data file {str(path)!r} needs a column of features besides {label!r}, got none")
    y = plain(f"label {label!r}", labels)
    other = [name for name, values in found.items() if values.dtype.kind not in "biuf"]
    if other:
        row, value = _first_text(found[other[0]])
        raise ValueError(
            f"data file {str(path)!r} must have numbers in all columns but {label!r}, got {value!r} in row "
            f"{row} (counted from 0) of {other[0]!r}: leave out, or encode as numbers, {listed(other)}"
        )
    X = np.empty((len(labels), len(found)))
    for place, (name, values) in enumerate(found.items()):
        X[:, place] = values
        wrong = ~np.isfinite(X[:, place])
        if wrong.any():
            row = int(wrong.argmax())
            what = "no value" if np.isnan(X[row, place]) else f"{X[row, place]:g}"
            raise ValueError(
                f"data file {str(path)!r} must have a finite number in every cell, got {what} in row {row} "
                f"(counted from 0) of {name!r} ({int(wrong.sum())} such cells in this column): remove or "
                "impute them"
            )
    return Table(X, y, tuple(found), tuple(notes))


def _first_text(values: NDArray[Any]) -> tuple[int, Any]:
    """Return row and value of the first cell that is not a number, otherwise of the first cell."""
    for row, value in enumerate(values.tolist()):
        if value is not None and not _is_number(value):
            return row, value
    return 0, values.tolist()[0]


def listed(names: Sequence[str]) -> str:
    """Format a few names for a message."""
    more = f", ... ({len(names)} columns)" if len(names) > _LISTED else ""
    return ", ".join(repr(name) for name in names[:_LISTED]) + more


def _check_names(path: Path, names: list[str], label: str) -> None:
    """Refuse columns without names, duplicate names, and a label that is not a column."""
    for place, name in enumerate(names):
        if not name.strip():
            raise ValueError(f"data file {str(path)!r} must name its columns, got no name for number {place}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(
            f"data file {str(path)!r} must have columns of different names, got {listed(twice)} twice"
        )
    if label not in names:
        hint = ": the first line must name the columns" if all(map(_is_number, names)) else ""
        raise ValueError(
            f"label must be a column of {str(path)!r}, got {label!r}, which is none of {listed(names)}{hint}"
        )


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    # which Python reads as a number, and pandas does not
    return "_" not in str(value)


# --- csv -------------------------------------------------------------------------------------


def _csv_columns(path: Path, label: str) -> _Columns:
    import pandas as pd

    names = _header(path)
    # DataFrame.to_csv writes row numbers as a first column without a name, read_csv names it so
    unnamed = list(itertools.takewhile(lambda name: not name or name.startswith("Unnamed: "), names))
    kept = names[len(unnamed) :]
    notes = [f"taken for row numbers, and left out: the first column, {name!r}" for name in unnamed]
    _check_names(path, kept, label)
    _fits_csv(path, len(names))
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as text:
            frame = pd.read_csv(
                text,
                header=0,
                names=names,
                skipinitialspace=True,
                keep_default_na=False,
                na_values={name: _NO_LABEL if name == label else _NO_NUMBER for name in kept},
                low_memory=False,
            )
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except pd.errors.ParserError as error:
        raise unreadable(path, str(error).removeprefix("Error tokenizing data. ").strip()) from None
    if not isinstance(frame.index, pd.RangeIndex):
        # cells beyond the names would be an index
        raise unreadable(path, "its rows have more cells than its first line has names")
    return {name: frame[name].to_numpy() for name in kept}, notes


def _header(path: Path) -> list[str]:
    """Read the names of the columns from the first line of a CSV file."""
    try:
        with path.open("r", encoding="utf-8-sig", newline="") as text:
            rows = csv.reader(text, skipinitialspace=True)
            names = next((row for row in rows if any(row)), [])
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except csv.Error as error:
        raise unreadable(path, str(error)) from None
    if not names:
        raise ValueError(f"data file {str(path)!r} must hold a table, but it is empty")
    other = next((mark for mark in (";", "\t", "|") if len(names) == 1 and mark in names[0]), None)
    if other is not None:
        raise ValueError(
            f"data file {str(path)!r} must be separated by commas, got a first line separated by {other!r}: "
            "write it with commas, and with decimal points"
        )
    return names


def _fits_csv(path: Path, columns: int) -> None:
    """Refuse a table that does not fit into memory, from its size and its number of lines."""
    lines = 0
    with path.open("rb") as raw:
        while block := raw.read(2**24):
            lines += max(block.count(b"\n"), block.count(b"\r"))
    needed = 8.0 * _COPIES * (lines + 1) * columns + 2 * path.stat().st_size
    validate.memory(needed, f"data file {path}", "take fewer rows or columns")


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    return unreadable(path, f"it is no UTF-8 text: {error.reason} at byte {error.start}", "save it as UTF-8")


# --- parquet ---------------------------------------------------------------------------------


def _parquet_columns(path: Path, label: str) -> _Columns:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        raise ImportError(
            f"data file {str(path)!r} needs pyarrow, which is not installed: pip install pyarrow, or the "
            "extra 'data'"
        ) from None
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            schema = file.schema_arrow
            index = _pandas_index(schema)
            names = [name for name in schema.names if name not in index]
            _check_names(path, names, label)
            needed = 8.0 * _COPIES * file.metadata.num_rows * len(names) + 2 * path.stat().st_size
            validate.memory(needed, f"data file {path}", "take fewer rows or columns")
            table = file.read(names, use_threads=False)
            found = {name: _parquet_values(table.column(name)) for name in names}
    except (pa.ArrowException, OSError) as error:
        raise unreadable(path, str(error)) from None
    notes = [f"left out, as pandas kept them as an index: {listed(index)}"] if index else []
    return found, notes


def _pandas_index(schema: Any) -> list[str]:
    """Return the columns that pandas wrote as the index of a DataFrame."""
    about = schema.pandas_metadata or {}
    return [name for name in about.get("index_columns", []) if isinstance(name, str) and name in schema.names]


def _parquet_values(column: Any) -> NDArray[Any]:
    """A column as numbers, NaN where one is missing, or as objects, None where one is missing."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_decimal(column.type):
        column = column.cast("float64")
    numbers = types.is_integer(column.type) or types.is_floating(column.type)
    if numbers or (types.is_boolean(column.type) and not column.null_count):
        return column.to_numpy()
    return np.fromiter(column.to_pylist(), object, len(column))
