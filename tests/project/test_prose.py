"""The prose of the project is plain technical English."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("langevin", "bounds", "explorer", "empirical", "docs", "figures", "benchmarks", "tests")
FILES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if "generated" not in page.parts),
    *(
        module
        for folder in FOLDERS
        for module in sorted((ROOT / folder).rglob("*.py"))
        if module != Path(__file__)
    ),
]
# what to avoid, and what to write instead
PHRASES = {
    r"in the place of": "replaces, instead of",
    r"\banew\b": "again",
    r"\blest\b": "otherwise, so that ... not",
    r"\bbeside\b": "next to, compared with",
    r"[;,] else\b": "otherwise",
    r"\bbut for\b": "except",
    r"\bat hand\b": "available",
    r"\bbe it\b": "whether",
    r"\bis told\b": "learns, receives",
    r"\bgo(es)? on (where|to the same)\b": "resumes",
    r"\bnext to nothing\b": "almost nothing",
    r"\bturns? (it|them) round\b": "inverts, solves the inverse problem",
    r"\bto the letter\b": "without change",
    r"\bas a rule\b|\bis the rule\b": "usually, common",
    r"\bsays? what there is\b|\bnames? what there is\b": "lists",
    r"\bover each other\b|\bone over the other\b": "together",
    r"'s doing\b": "comes from",
    r"\bwhence\b|\bhitherto\b|\bthereof\b": "from which, so far, of it",
    r"\b(paths?|steps?|runs?|bytes|cells?|images|scripts?|one|two|index) an? (step|path|second|neuron|cell"
    r"|class|figure|sample|worker|combination|variable|store|folder)\b": "per",
}


def prose(path: Path) -> str:
    """Return the text of a page without its code, or the comments and strings of a module."""
    text = path.read_text(encoding="utf8")
    if path.suffix == ".py":
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", None))
        return "\n".join(token.string for token in tokens if token.type in kinds)
    text = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    return re.sub(r"`[^`]*`", "", text)


def found(text: str) -> list[str]:
    """List the phrases to avoid in a text, each with its alternative."""
    text = " ".join(text.split())
    return [
        f"{match.group()!r}: write {better}"
        for phrase, better in PHRASES.items()
        for match in re.finditer(phrase, text, re.I)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain(path):
    assert found(prose(path)) == []


@pytest.mark.parametrize(
    "text",
    [
        "Repeated, it goes on where\nit was.",
        "It lays one over the other.",
        "Give a head, else it is drawn anew.",
    ],
)
def test_a_phrase_to_avoid_is_found(text):
    assert found(text)


def test_comments_and_strings_are_read_and_code_is_not(tmp_path):
    (tmp_path / "module.py").write_text('x = 1 if y else 2  # anew\nmessage = "beside"\n')
    assert len(found(prose(tmp_path / "module.py"))) == 2
    (tmp_path / "page.md").write_text("`anew`\n\n```text\nanew\n```\n")
    assert found(prose(tmp_path / "page.md")) == []
