"""What the documentation's own extensions of Sphinx make: notebooks, folded proofs, lists of names."""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXTENSIONS = ROOT / "docs" / "ext"
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf8")
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if "generated" not in page.parts and re.search(r"^```(python|sh)$", page.read_text(encoding="utf8"), re.M)
}


@pytest.fixture
def extension(monkeypatch):
    """Import an extension as Sphinx does."""
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    return importlib.import_module


def cells(extension, page, macros=None):
    pytest.importorskip("nbformat")
    return json.loads(extension("notebooks").notebook(page, macros or {}))["cells"]


@pytest.mark.parametrize("name", PAGES)
def test_a_notebook_has_the_code_of_its_page_and_nothing_of_sphinx(extension, name):
    found = cells(extension, PAGES[name])
    code = ["".join(cell["source"]) for cell in found if cell["cell_type"] == "code"]
    blocks = re.findall(r"^```(?:python|sh)\n(.*?)^```", PAGES[name], re.M | re.S)
    plain = [re.sub(r"^!", "", text, flags=re.M).replace(" ", "") for text in code]
    assert plain == [block.replace("\\\n", "").replace(" ", "").rstrip("\n") for block in blocks]
    prose = "\n".join("".join(cell["source"]) for cell in found if cell["cell_type"] == "markdown")
    assert not re.search(r"\{[\w:]+\}`|^```\{|\]\((?!https?:)[\w./#-]+\)|^\([\w-]+\)=$", prose, re.M)


def test_what_a_notebook_replaces(extension):
    page = (
        "(here)=\n# A page\n\nSee {py:func}`bounds.epsilon`, {doc}`that <there>` and [this](a.md#b), $\\E x$."
        "\n\n```{note}\nMind.\n```\n\n```{toctree}\na\n```\n\n```sh\n# first\nmake \\\n  docs\n```\n\n"
        "```text\nmake x\n```\n"
    )
    first, text, code, last = cells(extension, page, {r"\E": r"\mathbb{E}", r"\d": r"\mathrm{d}"})
    assert "".join(first["source"]) == r"$\newcommand{\E}{\mathbb{E}}$"
    assert "".join(text["source"]) == "# A page\n\nSee `bounds.epsilon`, `that` and this, $\\E x$.\n\n> Mind."
    assert "".join(code["source"]) == "# first\n!make    docs"
    assert "".join(last["source"]) == "```text\nmake x\n```"


@pytest.mark.parametrize(("language", "offered"), [("python", True), ("sh", False)])
def test_a_page_with_python_code_is_offered_as_a_notebook(extension, tmp_path, language, offered):
    pytest.importorskip("nbformat")
    env = SimpleNamespace(doc2path=lambda name: Path(f"{name}.md"))
    app = SimpleNamespace(srcdir=tmp_path, env=env, config=SimpleNamespace(notebook_macros={}))
    source = [f"# A\n\n```{language}\nx\n```\n"]
    extension("notebooks").offer(app, "a", source)
    assert ("This page as a notebook" in source[0]) == offered
    assert (tmp_path / "generated" / "notebooks" / "a.ipynb").exists() == offered


def build(folder, text, extensions):
    """Build a site of one page and return what Sphinx said, and the page."""
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    source, site = folder / "source", folder / "site"
    source.mkdir()
    (source / "index.md").write_text(text, encoding="utf8")
    path = f"import sys\nsys.path.insert(0, {str(EXTENSIONS)!r})\nextensions = {extensions!r}\n"
    (source / "conf.py").write_text(path, encoding="utf8")
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-b", "html", str(source), str(site)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    index = (site / "searchindex.js").read_text(encoding="utf8")
    return done.stderr, (site / "index.html").read_text(encoding="utf8"), index


def test_proofs_are_folded_and_found_by_the_search(tmp_path):
    text = (
        "# A\n\n*Statement.* It holds.\n\n*Proof of the floor.* Consider bananas.\n\n- one\n\nDone. ∎\n\n"
        "Afterwards.\n\n*Derivation.* By apples.\n\nFinally.\n"
    )
    said, page, index = build(tmp_path, text, ["myst_parser", "proofs"])
    assert not said
    first, second = re.findall(r'<details class="proof">(.*?)</details>', page, re.S)
    lines = (
        "<summary>Proof of the floor</summary>",
        "<p>Consider bananas.</p>",
        '<ul class="simple">',
        "<li><p>one</p></li>",
        "</ul>",
        "<p>Done. ∎</p>",
    )
    assert first.strip() == "\n".join(lines)
    assert second.strip() == "<summary>Derivation</summary>\n<p>By apples.</p>"
    assert "banana" in index


def test_a_proof_without_an_end_is_a_warning(tmp_path):
    said, page, _ = build(tmp_path, "# A\n\n*Proof.* Clear.\n", ["myst_parser", "proofs"])
    assert "this proof has no end" in said
    assert "<details" not in page


def test_every_exported_name_has_a_line_in_the_index(extension):
    pytest.importorskip("sphinx")
    api = extension("api")
    for package in api.PACKAGES:
        lines = api.names(package).splitlines()
        exported = {name for own in api.exports(package).values() for name in own}
        assert len(lines) == len(exported) > 20
        for line in lines:
            found = re.fullmatch(rf"- :py:obj:`{package}\.(\w+)`: (\S.{{10,}})", line)
            assert found, line
            assert found[1] in exported
            assert not re.search(r"\[\d\]_", found[2])


def test_each_statement_is_in_the_table_of_its_page(extension):
    pytest.importorskip("sphinx")
    table, theory = extension("statements").table, ROOT / "docs" / "theory"
    index = (theory / "index.md").read_text(encoding="utf8")
    pages = [page.name for page in sorted(theory.glob("*.md")) if page.name != "index.md"]
    rows = [row for page in pages for row in table(index, page).splitlines()[2:]]
    listed = index.partition("| statement |")[2].partition("\n\n")[0].splitlines()[2:]
    assert len(listed) > 30
    assert sorted(rows) == sorted(listed)
    assert "(loss.md#" in table(index, "loss.md")
    # a page that ends like another one
    assert table(index, "oss.md") == ""
