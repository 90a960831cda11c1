"""The theory pages: each has a figure, statements in words, proofs with an end; the table is complete."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import bounds

ROOT = Path(__file__).resolve().parents[2]
THEORY = ROOT / "docs" / "theory"
PAGES = sorted(path.name for path in THEORY.glob("*.md"))
COLUMNS = ["statement", "in words", "figure", "function", "test"]
FUNCTIONS = {f"bounds.{name}" for name in dir(bounds) if inspect.isfunction(getattr(bounds, name))}
ROLE = re.compile(r"\{py:\w+\}`([\w.]+)`")
# what ends the text that belongs to a statement
NEXT = re.compile(r"^#{1,6} |^\*(?:Statements?\b|Proof)", re.M)


def rows(text: str) -> list[list[str]]:
    """Return the cells of the table of statements."""
    lines = iter(text.splitlines())
    for line in lines:
        if cells(line) == COLUMNS:
            next(lines)
            break
    found = []
    for line in lines:
        if not line.startswith("|"):
            break
        found.append(cells(line))
    return found


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def places(page: Path) -> set[str]:
    """Return the labels and the anchors of the headings of a page."""
    slug = pytest.importorskip("myst_parser.slugs").github_slugify
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf8"), flags=re.M | re.S)
    headings = re.findall(r"^#{1,3} (.+)$", text, re.M)
    return {slug(heading) for heading in headings} | set(re.findall(r"^\(([\w-]+)\)=$", text, re.M))


def faults(row: list[str]) -> list[str]:
    """List what is wrong with a row: links, scripts, functions or tests that do not exist, missing cells."""
    statement, words, figure, function, test = row
    found = []
    link = re.fullmatch(r"\[.+\]\(([\w-]+\.md)(?:#([\w-]+))?\)", statement)
    if link is None or not (THEORY / link[1]).exists():
        found.append(f"{statement}: no page")
    elif link[2] and link[2] not in places(THEORY / link[1]):
        found.append(f"{statement}: no such place")
    if not words:
        found.append(f"{statement}: no words")
    shown = re.fullmatch(r"\[.+\]\(\.\./generated/gallery/(\w+)\.rst\)", figure)
    if figure != "none" and not (shown and list((ROOT / "figures").glob(f"*/{shown[1]}.py"))):
        found.append(f"{statement}: no script of {figure}")
    tests = [f"tests/{name}" for name in re.findall(r"`([\w/]+\.py)`", test)]
    missing = [name for name in tests if not (ROOT / name).exists()]
    found += [f"{statement}: no {name}" for name in missing or (["test"] if not tests else [])]
    code = "\n".join((ROOT / name).read_text(encoding="utf8") for name in tests if name not in missing)
    functions = ROLE.findall(function)
    for name in functions or [""]:
        package, _, attribute = name.rpartition(".")
        if not package or not hasattr(importlib.import_module(package), attribute):
            found.append(f"{statement}: no function {name}")
        elif not re.search(rf"\b{attribute}\b", code):
            found.append(f"{statement}: no test uses {name}")
    return found


ROWS = rows((THEORY / "index.md").read_text(encoding="utf8"))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_a_row_of_the_table_leads_to_what_exists(row):
    assert faults(row) == []


def test_every_function_of_bounds_is_in_the_table():
    listed = {name for row in ROWS for name in ROLE.findall(row[3])}
    assert not FUNCTIONS - listed


@pytest.mark.parametrize(
    ("column", "cell", "fault"),
    [
        (0, "[4b](nowhere.md#4b-sandwich)", "no page"),
        (0, "[4b](loss.md#4b-sandwiches)", "no such place"),
        (1, "", "no words"),
        (2, "[loss](../generated/gallery/fig_nothing.rst)", "no script"),
        (3, "{py:func}`bounds.sandwiches`", "no function"),
        (3, "", "no function"),
        (3, "{py:func}`bounds.lp_stability`", "no test uses"),
        (4, "`theory/test_nothing.py`", "no tests/theory/test_nothing.py"),
        (4, "", "no test"),
    ],
)
def test_a_faulty_row_is_found(column, cell, fault):
    row = next(row for row in ROWS if row[0] == "[4b](loss.md#4b-sandwich)")
    changed = [*row[:column], cell, *row[column + 1 :]]
    assert any(fault in text for text in faults(changed))


def figures_of(text: str) -> list[tuple[str, str]]:
    """Return the script and the alternative text of each figure of a page."""
    block = r"^```\{figure\} \.\./generated/figures/(\w+)\.png\n:alt: (.+)\n"
    return re.findall(block, text, re.M)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_a_figure_of_the_gallery(name):
    shown = figures_of((THEORY / name).read_text(encoding="utf8"))
    assert shown
    for script, description in shown:
        assert list((ROOT / "figures").glob(f"*/{script}.py"))
        assert len(description) > 40


def without_words(text: str) -> list[str]:
    """List the statements that are not said in words before the next statement, proof or heading."""
    return [
        text[found.start() : found.start() + 60]
        for found in re.finditer(r"^\*Statements?\b", text, re.M)
        if "*In words:*" not in after(text, found.end())
    ]


def without_end(text: str) -> list[str]:
    """List the proofs that do not end before the next statement, proof or heading."""
    return [
        text[found.start() : found.start() + 60]
        for found in re.finditer(r"^\*Proof\b", text, re.M)
        if "∎" not in after(text, found.end())
    ]


def after(text: str, start: int) -> str:
    """Return the text up to the next statement, proof or heading."""
    end = NEXT.search(text, start)
    return text[start : end.start() if end else len(text)]


@pytest.mark.parametrize("name", PAGES)
def test_statements_are_said_in_words_and_proofs_end(name):
    text = (THEORY / name).read_text(encoding="utf8")
    assert without_words(text) == []
    assert without_end(text) == []


def test_a_statement_without_words_and_a_proof_without_end_are_found():
    text = "*Statement.* It holds.\n\n*Proof.* Clear.\n\n## Next\n\n*In words:* Late. ∎\n"
    assert (len(without_words(text)), len(without_end(text))) == (1, 1)
    good = "*Statement.* It holds.\n\n*In words:* It does.\n\n*Proof.* Clear. ∎\n"
    assert (without_words(good), without_end(good)) == ([], [])


def unknown_tests(text: str, known: set[str]) -> set[str]:
    """Return the tests that a page names and that do not exist."""
    return set(re.findall(r"\btest_\w+(?:\.py)?", text)) - known


@pytest.fixture(scope="module")
def known_tests():
    files = list((ROOT / "tests").rglob("test_*.py"))
    functions = {name for file in files for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    return functions | {file.name for file in files}


@pytest.mark.parametrize("name", PAGES)
def test_the_tests_that_a_page_names_exist(name, known_tests):
    assert not unknown_tests((THEORY / name).read_text(encoding="utf8"), known_tests)


def test_an_unknown_test_is_found(known_tests):
    assert unknown_tests("`test_privacy.py`, `test_of_nothing`", known_tests) == {"test_of_nothing"}
