"""Reading users' data: the content of files in every format, and errors in them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from sklearn.datasets import load_wine

from langevin import from_file, from_npz
from langevin.data import files
from langevin.simulate import main
from langevin.support.labels import classes, plain

LABEL = "the cultivar"
KINDS = np.array(["Barolo", "Grignolino", "Barbera"])


def wine() -> pd.DataFrame:
    """Return the wine data with text labels in the middle, and a column with a space in its name."""
    data: Any = load_wine(as_frame=True)
    frame = data.data.rename(columns={"alcohol": "alcohol content"})
    frame.insert(3, LABEL, KINDS[data.target])
    return frame


FRAME = wine()
FEATURES = FRAME.drop(columns=LABEL)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def text(content: str, name: str = "data.csv") -> str:
    Path(name).write_text(content)
    return name


# --- what is read ------------------------------------------------------------------------------

WRITERS = {
    "wine.npz": lambda path: np.savez(path, X=FEATURES.to_numpy(), y=FRAME[LABEL].to_numpy(str)),
    "wine.csv": lambda path: FRAME.to_csv(path, index=False),
    "with an index.csv": lambda path: FRAME.to_csv(path),
    "read and written again.csv": lambda path: FRAME.rename_axis("Unnamed: 0").to_csv(path),
    "as Excel saves it.csv": lambda path: FRAME.to_csv(path, index=False, encoding="utf-8-sig"),
    "as Windows ends lines.csv": lambda path: FRAME.to_csv(path, index=False, lineterminator="\r\n"),
    "WINE.CSV": lambda path: FRAME.to_csv(path, index=False),
    "wine.parquet": lambda path: FRAME.to_parquet(path, index=False),
    "shuffled.parquet": lambda path: FRAME.set_index(np.random.default_rng(0).permutation(178)).to_parquet(
        path
    ),
    "category.parquet": lambda path: FRAME.astype({LABEL: "category"}).to_parquet(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_all_formats_give_the_same_data(name):
    WRITERS[name](name)
    found = files.read(name) if name.endswith(".npz") else files.read(name, LABEL)
    np.testing.assert_allclose(found.arrays["X"], FEATURES.to_numpy(), rtol=1e-15)
    assert found.arrays["y"].tolist() == FRAME[LABEL].tolist()
    assert found.features == (() if name.endswith(".npz") else tuple(FEATURES.columns))
    # row numbers would reveal the classes of sorted rows
    assert len(found.notes) == (name.split()[0] in ("with", "read", "shuffled.parquet"))


def test_two_unnamed_columns_are_row_numbers():
    frame = pd.DataFrame({"Unnamed: 0": [5, 6], "a": [1.5, 2.5], "y": [0, 1]})
    frame.to_csv("data.csv")
    found = files.read("data.csv")
    assert found.features == ("a",)
    assert len(found.notes) == 2


def test_labels_of_a_table_keep_their_kind():
    head = "a,y\n"
    for rows, kind, names in (
        ("1,no\n2,yes\n", "U", ("no", "yes")),
        ("1,True\n2,False\n", "b", ("False", "True")),
        ("1,3\n2,10\n", "i", ("3", "10")),
        ("1,2.0\n2,1\n", "f", ("1", "2")),
        # this is a valid name of a class, but pandas would treat it as missing
        ("1,None\n2,some\n", "U", ("None", "some")),
    ):
        y = files.read(text(head + rows)).arrays["y"]
        assert y.dtype.kind == kind
        assert classes("y", y)[0] == names


def test_booleans_and_spaces_in_tables():
    found = files.read(text('a, "b, c", my label\n\n1.5, True, x\n2, False, y\n'), "my label")
    assert found.features == ("a", "b, c")
    assert found.arrays["X"].tolist() == [[1.5, 1.0], [2.0, 0.0]]
    assert found.arrays["y"].tolist() == ["x", "y"]


def test_classes_of_any_labels_are_numbered():
    found = from_file(text("a,y\n1,8\n2,3\n3,10\n4,3\n"), loss="softmax")
    assert found.classes == found.problem.class_names == ("3", "8", "10")
    assert found.problem.y.tolist() == [1, 0, 2, 0]
    v = np.arange(6.0).reshape(2, 3)
    y, y_test = ["b", "a", "c"], ["c"]
    np.savez("data.npz", X=np.eye(3), y=y, X_test=np.eye(3)[:1], y_test=y_test, W=np.ones((2, 3)), v=v)
    found = from_file("data.npz", loss="ovr")
    assert found.problem.y.tolist() == [1, 0, 2]
    assert found.problem.y_test is not None
    assert found.problem.y_test.tolist() == [2]
    assert found.v is not None
    np.testing.assert_array_equal(found.v, v)
    # of a loss of two classes there are too many
    with pytest.raises(ValueError, match="y must hold two classes, got 3"):
        from_file("data.npz")
    np.savez("targets.npz", X=np.eye(3), y=np.eye(3))
    assert from_file("targets.npz", loss="square").problem.outputs_dim == 3


# --- what is refused ---------------------------------------------------------------------------

CASES = {
    "empty": ("", "must hold a table, but it is empty"),
    "names alone": ("a,y\n", "must have rows, got none"),
    "labels alone": ("y\n1\n2\n", "needs a column of features besides 'y', got none"),
    "no such label": (
        "a,b\n1,2\n",
        "label must be a column of 'data.csv', got 'y', which is none of 'a', 'b'",
    ),
    "no names": ("1.5,2\n3,4\n", "'1.5', '2': the first line must name the columns"),
    "names twice": ("a,b,a,y\n1,2,3,4\n", "must have columns of different names, got 'a' twice"),
    "a name missing": ("a,,y\n1,2,3\n", "must name its columns, got no name for number 1"),
    "text": ("a,b,y\n1,2,0\n1,red,1\n", "got 'red' in row 1 (counted from 0) of 'b': leave out"),
    "a decimal comma": ('a,y\n"1,5",0\n', "got '1,5' in row 0 (counted from 0) of 'a'"),
    "a number with a line": ("a,y\n1,0\n1_0,1\n", "got '1_0' in row 1 (counted from 0) of 'a'"),
    "an empty cell": ("a,y\n1,0\n,1\n", "got no value in row 1 (counted from 0) of 'a' (1 such"),
    "NA": ("a,y\nNA,0\n1,1\n", "got no value in row 0 (counted from 0) of 'a'"),
    "infinity": ("a,y\n1,0\ninf,1\n", "got inf in row 1 (counted from 0) of 'a'"),
    "no label": ("a,y\n1,cat\n2,\n", "label 'y' must hold a label for each sample, got nan at index 1"),
    "no number for a label": ("a,y\n1,1\n2,NA\n", "got nan at index 1: leave such samples out"),
    "semicolons": ("a;y\n1,5;2\n", "must be separated by commas, got a first line separated by ';'"),
    "tabs": ("a\ty\n1\t2\n", "got a first line separated by '\\t'"),
    "a cell more": ("a,y\n1,2\n1,2,3\n", "Expected 2 fields in line 3, saw 3"),
    "a cell more in all": ("a,y\n1,2,3\n1,2,3\n", "its rows have more cells than its first line"),
    "a cell less": ("a,b,y\n1,2,0\n1\n", "got nan at index 1"),
    "UTF-16": ("a,y\n1,2\n".encode("utf-16"), "it is no UTF-8 text"),
    "Latin-1": ("a,y\n1,é\n".encode("latin-1"), "it is no UTF-8 text"),
}


@pytest.mark.parametrize("case", CASES)
def test_errors_in_a_table_are_named(case):
    content, message = CASES[case]
    Path("data.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError) as raised:
        files.read("data.csv")
    assert message in str(raised.value)


def test_files_of_another_kind_are_named():
    Path("folder.csv").mkdir()
    for path, message in (
        (
            "nowhere.csv",
            r"data must be a file ending in .npz, .csv or .parquet, but there is no file 'nowhere",
        ),
        ("folder.csv", "but there is no file 'folder.csv'"),
        (
            text("a,y\n1,2\n", "data.tsv"),
            "data must be a file ending in .npz, .csv or .parquet, got 'data.tsv'",
        ),
        (text("X,y\n", "data.npz"), "File is not a zip file"),
        (text("X,y\n", "data.parquet"), "cannot be read .*[Pp]arquet"),
    ):
        with pytest.raises(ValueError, match=message):
            files.read(path)


PARQUET = {
    "a missing number": (FRAME.assign(ash=FRAME.ash.where(FRAME.index != 5)), "got no value in row 5", "ash"),
    "a missing label": (FRAME.replace({LABEL: {"Barolo": None}}), "got None at index 0", LABEL),
    "text": (FRAME.assign(hue=["red"] * 178), "got 'red' in row 0", "hue"),
    "lists": (FRAME.assign(hue=[[1.0, 2.0]] * 178), "got [1.0, 2.0] in row 0", "hue"),
    "dates": (FRAME.assign(hue=pd.Timestamp("2020")), "in row 0 (counted from 0)", "hue"),
}


@pytest.mark.parametrize("case", PARQUET)
def test_errors_in_a_parquet_file_are_named(case):
    frame, message, column = PARQUET[case]
    frame.to_parquet("data.parquet")
    with pytest.raises(ValueError) as raised:
        files.read("data.parquet", LABEL)
    assert message in str(raised.value)
    assert repr(column) in str(raised.value)


def test_damaged_parquet_is_read_correctly_or_refused():
    import pyarrow as pa
    from pyarrow import parquet

    random, refused = np.random.default_rng(0), 0
    table = pa.table({"a": random.standard_normal(50), "b": random.standard_normal(50), "y": ["c", "d"] * 25})
    parquet.write_table(table, "data.parquet", write_page_checksum=True)
    content, whole = Path("data.parquet").read_bytes(), files.read("data.parquet").arrays
    for trial in range(60):
        raw = bytearray(content)
        for place in random.integers(len(raw), size=random.integers(1, 9)):
            raw[place] ^= 1 << int(random.integers(8))
        Path("data.parquet").write_bytes(raw[: random.integers(len(raw))] if trial % 4 == 0 else raw)
        try:
            found = files.read("data.parquet").arrays
        except (ValueError, MemoryError):
            refused += 1
        else:
            assert np.array_equal(found["X"], whole["X"])
            assert np.array_equal(found["y"], whole["y"])
    assert refused > 30


@pytest.mark.parametrize("name", ["wine.npz", "wine.csv", "wine.parquet"])
def test_files_that_exceed_memory_are_refused_before_reading(name, monkeypatch):
    WRITERS[name](name)
    label = "y" if name.endswith(".npz") else LABEL
    assert files.read(name, label).arrays["X"].shape == (178, 13)
    # 18 KiB of numbers
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("", (), {"available": 20_000}))
    with pytest.raises(MemoryError, match=r"data file wine\.\w+ needs .* GiB are free: take fewer"):
        files.read(name, label)


def test_missing_pyarrow_is_named(monkeypatch):
    FRAME.to_parquet("wine.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="needs pyarrow, which is not installed: pip install pyarrow"):
        files.read("wine.parquet", LABEL)
    with pytest.raises(SystemExit, match="2"):
        main(["--data", "wine.parquet", "--label", LABEL])


# --- problems of two classes -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "names"),
    [
        (["no", "yes", "no"], ("no", "yes")),
        ([True, False, True], ("False", "True")),
        ([7, 3, 7], ("3", "7")),
        ([0.0, 1.0, 0.0], ("0", "1")),
        ([1, -1, 1], ("-1", "1")),
        (np.array(["a", "b", "a"], dtype="S"), ("a", "b")),
    ],
)
def test_two_classes_of_any_kind_become_signs(y, names):
    np.savez("data.npz", X=np.eye(3), y=y, X_test=np.eye(3)[:2], y_test=y[:2])
    found = from_file("data.npz")
    assert found.classes == names
    assert found.problem.y.tolist() == [1.0 if str(label) == str(max(y)) else -1.0 for label in y]
    assert found.problem.y_test is not None
    assert found.problem.y_test.tolist() == found.problem.y[:2].tolist()
    assert from_npz("data.npz")[0].y.tolist() == found.problem.y.tolist()


def test_targets_of_a_regression_are_unchanged():
    path = text("a,price\n1,0\n2,1\n3,0.5\n", "prices.csv")
    found = from_file(path, label="price", loss="square")
    assert found.problem.y.tolist() == [0, 1, 0.5]
    assert found.classes == ()
    text("a,price\n1,low\n2,high\n", "prices.csv")
    assert from_file(path, label="price", loss="square").problem.y.tolist() == [1, -1]


def test_other_numbers_of_classes_are_refused():
    for rows, message in (("1,a\n2,b\n3,c\n", "got 3: 'a', 'b', 'c'"), ("1,a\n2,a\n", "got 1: 'a'")):
        with pytest.raises(ValueError, match=f"label 'y' must hold two classes, {message}"):
            from_file(text("x,y\n" + rows))
    # one class that is a sign is one
    assert from_file(text("x,y\n1,1\n2,1\n")).problem.y.tolist() == [1, 1]
    with pytest.raises(ValueError, match=r"path must end in \.npz"):
        from_npz("data.csv")


FEW = ["--time", "0.04", "--dt", "0.01", "--paths", "2", "--width", "4", "--no-bounds", "--quiet"]


def test_the_simulator_reads_tables_and_names_the_classes(capsys):
    FRAME[FRAME[LABEL] != "Barbera"].sample(frac=1, random_state=0).to_csv("two wines.csv")
    given = [*FEW, "--data", "two wines.csv", "--label", LABEL]
    assert main(given) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert "130 samples in 13 dimensions" in first
    assert "label 'the cultivar': -1 is 'Barolo', +1 is 'Grignolino'" in first
    assert "taken for row numbers, and left out: the first column, ''" in first
    assert main([*given, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["file"]
    assert said["classes"] == {"-1": "Barolo", "+1": "Grignolino"}
    assert said["features"] == list(FEATURES.columns)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--label", "kind"], "--label kind has no effect with data 'separable'; remove it"),
        (
            ["--data", "wine.csv"],
            "--label must be a column of 'wine.csv', got 'y', which is none of 'alcohol",
        ),
        (["--data", "wine.npz", "--label", "kind"], "--label must be left out with an .npz file"),
        (
            ["--data", "wine.csv", "--label", LABEL],
            "--label 'the cultivar' must hold two classes, got 3: 'Barbera'",
        ),
    ],
)
def test_wrong_usage_of_the_simulator_is_named(capsys, arguments, message):
    for name in ("wine.csv", "wine.npz"):
        WRITERS[name](name)
    with pytest.raises(SystemExit, match="2"):
        main([*FEW, *arguments])
    assert message in capsys.readouterr().err


# --- labels of any kind ------------------------------------------------------------------------

TEXT = ["dog", "cat", "dog"]
ALIKE = {
    "Series": pd.Series(TEXT, index=[5, 3, 9]),
    "Series of objects": pd.Series(TEXT, dtype=object),
    "Series of strings": pd.Series(TEXT, dtype="string"),
    "Series of pyarrow's strings": pd.Series(TEXT, dtype="string[pyarrow]"),
    "Series of categories": pd.Series(TEXT, dtype="category"),
    "Categorical": pd.Categorical(TEXT, categories=["dog", "cat", "eel"], ordered=True),
    "Index": pd.Index(TEXT),
    "objects": np.array(TEXT, dtype=object),
    "StringDType": np.array(TEXT, dtype=np.dtypes.StringDType()),
    "StringDType with a missing value": np.array(TEXT, dtype=np.dtypes.StringDType(na_object=None)),
    "bytes": np.array(TEXT, dtype="S"),
    "tuple": tuple(TEXT),
}


@pytest.mark.parametrize("kind", ALIKE)
def test_text_of_any_kind_equals_a_list_of_the_same_text(kind):
    names, numbers = classes("y", ALIKE[kind])
    assert names == ("cat", "dog")
    assert numbers.tolist() == [1, 0, 1]


def test_pandas_numbers_are_accepted():
    for values in (pd.Series([2, 10, 2], dtype="Int64"), pd.Series([2, 10, 2], dtype="category")):
        assert classes("y", values)[0] == ("2", "10")
    assert classes("y", pd.Series([True, False], dtype="boolean"))[0] == ("False", "True")


MISSING = {
    "None": ["a", None],
    "NaN among text": ["a", np.nan],
    "NaN": [1.0, np.nan],
    "infinity": [1.0, np.inf],
    "NA": pd.Series(["a", pd.NA], dtype="string"),
    "NA among numbers": pd.Series([1, None], dtype="Int64"),
    "no category": pd.Categorical(["a", None]),
    "NaT": np.array(["a", pd.NaT], dtype=object),
    "StringDType": np.array(["a", None], dtype=np.dtypes.StringDType(na_object=None)),
    "masked": np.ma.masked_array([1, 2], [False, True]),
}


@pytest.mark.parametrize("kind", MISSING)
def test_missing_labels_are_refused_by_name_and_index(kind):
    with pytest.raises(ValueError, match=r"y must hold a label for each sample, got .* at index 1: leave"):
        plain("y", MISSING[kind])


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", 1], "all numbers or all text, got text at index 0 and numbers at index 1"),
        (np.array([True, "a"], dtype=object), "got truth values at index 0 and text at index 1"),
        (pd.Series(pd.date_range("2020", periods=2)), "one row of numbers or text, got shape"),
        ([[1], [2]], r"one row of numbers or text, got shape \(2, 1\)"),
        ("text", r"one row of numbers or text, got shape \(\)"),
        ([[1], [2, 3]], "one row of numbers or text"),
        (np.array([[1], [2, 3]], dtype=object), "got list at index 0"),
        (np.array([1j]), "got shape"),
    ],
)
def test_invalid_labels_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        plain("y", labels)
