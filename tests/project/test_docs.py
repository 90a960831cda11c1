"""The code of README and documentation runs and gives what they show; links lead to existing files."""

import itertools
import re

import pytest

from tests.project.documents import ROOT, RUNS, SILENT, blocks, faults, rewrite, run

PAGES = {
    str(page.relative_to(ROOT)): page
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
    if "generated" not in page.parts
}


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if blocks(page.read_text())])
def test_code_blocks_of_a_page_run_and_show_what_comes(tmp_path, name):
    page = PAGES[name]
    unknown = {block.language for block in blocks(page.read_text(encoding="utf8"))} - RUNS - SILENT
    assert not unknown, "unknown language of a block: use python or sh, or text for a block that is not run"
    assert faults(page, tmp_path) == []


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("```python\nx = 1\n```\n\n```sh\nfalse\n```\n", "CalledProcessError"),
        ("```python\nx = 1\n```\n\n```python\nassert x == 2\n```\n", "AssertionError"),
        ("```sh\npython -m langevin.simulate --no-such-option\n```\n", "CalledProcessError"),
    ],
)
def test_a_page_that_fails_is_detected(tmp_path, page, error):
    with pytest.raises(AssertionError, match=error):
        run(page, tmp_path)


SHOWN = "```python\nprint(1, 2)\nprint('abc')\n```\n\n```output\n{}\n```\n"


@pytest.mark.parametrize("shown", ["1 2\nabc", "1 ...\nabc", "1 2\n...", "1 2  \nabc\n"])
def test_an_output_that_comes_passes(tmp_path, shown):
    page = tmp_path / "page.md"
    page.write_text(SHOWN.format(shown))
    assert faults(page, tmp_path) == []


@pytest.mark.parametrize(
    "shown", ["1 3\nabc", "1 2", "1 2\nabc\nd", "abc\n1 2", "1 2 abc", "...", "", "2 ...", "1 2\nab..."]
)
def test_an_output_that_does_not_come_is_found(tmp_path, shown):
    page = tmp_path / "page.md"
    page.write_text(SHOWN.format(shown))
    found = faults(page, tmp_path)
    # the last is what comes: of a line, dots may stand for any part
    assert bool(found) == (shown != "1 2\nab...")


@pytest.mark.parametrize(
    "text", ["```output\n1\n```\n", SHOWN.replace("```\n\n```output", "```\nx\n```output")]
)
def test_an_output_without_its_block_is_refused(text):
    with pytest.raises(ValueError, match="output must follow the block that prints it"):
        blocks(text)


def test_a_picture_is_what_the_code_draws(tmp_path):
    draw = "import matplotlib.pyplot as plt\nplt.plot([0, {}])\nplt.savefig('a.png')\n"
    page, folder = tmp_path / "page.md", tmp_path / "run"
    folder.mkdir()
    text = "```python\n{}```\n\n![a line](pictures/a.png)\n"
    page.write_text(text.format(draw.format(1)))
    assert faults(page, folder) == ["pictures/a.png is not what the page's code draws"]
    rewrite(page)
    assert faults(page, folder) == []
    # another line, on the same axes
    page.write_text(text.format(draw.format("1, 0.99")))
    assert faults(page, folder) == ["pictures/a.png is not what the page's code draws"]


def test_outputs_are_rewritten_where_they_are_wrong(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(SHOWN.format("1 ...\nabc") + SHOWN.format("1 3\nabc"))
    rewrite(page)
    assert page.read_text() == SHOWN.format("1 ...\nabc") + SHOWN.format("1 2\nabc")


def test_a_block_of_toml_becomes_a_file(tmp_path):
    text = "```toml\n# a.toml\nx = 1\n```\n\n```python\nprint(open('a.toml').read())\n```\n"
    assert run(text, tmp_path) == ["", "# a.toml\nx = 1\n\n"]


def test_targets_of_make_exist():
    makefile = (ROOT / "Makefile").read_text()
    for name, page in PAGES.items():
        for target in re.findall(r"`make ([a-z-]+)`|^make ([a-z-]+)", page.read_text(), re.M):
            assert f"\n{''.join(target)}:" in makefile, (name, target)


@pytest.mark.parametrize("name", PAGES)
def test_links_and_pictures_exist(name):
    text = re.sub(r"```.*?```", "", PAGES[name].read_text(encoding="utf8"), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, _ = target.partition("#")
        if not target.startswith(("https://", "mailto:")) and path and "generated/" not in path:
            assert (PAGES[name].parent / path).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_the_gallery_have_a_script(name):
    topics = re.findall(r"generated/gallery/((?:fig|tab)_\w+)", PAGES[name].read_text(encoding="utf8"))
    assert set(topics) <= {path.stem for path in (ROOT / "figures").glob("*/*.py")}


def broken_formulas(text: str) -> list[str]:
    """List displayed formulas within an item that stand in the middle of its text.

    Markdown takes their dollars for those of a formula in the line.
    """
    lines = text.splitlines()
    return [
        line for before, line in itertools.pairwise(lines) if re.match(r" +\$\$", line) and before.strip()
    ]


@pytest.mark.parametrize("name", PAGES)
def test_displayed_formulas_of_items_stand_apart(name):
    assert broken_formulas(PAGES[name].read_text(encoding="utf8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [("1. At least\n   $$a,$$\n   then.\n", 1), ("1. At least\n\n   $$a,$$\n\n   then.\n", 0)],
)
def test_a_broken_formula_is_found(text, count):
    assert len(broken_formulas(text)) == count


def broken_sentences(text: str) -> list[str]:
    """List lines of paragraphs that Markdown reads as an item, a quotation or a heading.

    Such a line begins with ``1.``, a sign or a hash, after a line that ends within a sentence.
    """
    # the text of a directive, such as a note, is part of the page
    text = re.sub(
        r"^```(\{)?[^\n]*\n(.*?)^```", lambda found: found[2] if found[1] else "", text, flags=re.M | re.S
    )
    starts = re.compile(r"(?:1[.)]|[-+*>]|#{1,6}) ")
    inside = re.compile(r"\s|[-+*>|#:!]|\d+[.)] |$")
    pairs = itertools.pairwise(text.splitlines())
    return [
        line
        for before, line in pairs
        if starts.match(line) and not inside.match(before) and re.search(r"[\w,$})\]]$", before.rstrip())
    ]


@pytest.mark.parametrize("name", PAGES)
def test_no_sentence_turns_into_a_list(name):
    assert broken_sentences(PAGES[name].read_text(encoding="utf8")) == []


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("until a margin first reaches\n1. After that it changes.\n", 1),
        ("the sum $a\n- b$ is small\n", 1),
        ("a loss of more\n> 3 is large\n", 1),
        ("```{note}\nuntil a margin first reaches\n1. After that it changes.\n```\n", 1),
        ("*Statement.*\n1. The first.\n2. The second.\n", 0),
        ("Two things:\n\n- a\n- b\n", 0),
        ("Two things:\n- a thing\n- another\n", 0),
        ("```sh\nls\n# a comment\n```\n", 0),
        ("in 2 out of\n2. This stays a sentence, as no list begins with 2.\n", 0),
    ],
)
def test_a_broken_sentence_is_found(text, count):
    assert len(broken_sentences(text)) == count
