"""The pages are in plain words: short sentences that say who does what."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from elbocli.main import elbo

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])

LONGEST = 35
"""Words of a sentence: most have less than 20, one that lists formats or files needs more."""

FIRST = ("Of", "As", "What", "Which", "Where", "Whoever", "Whatever")
"""Words that a statement does not begin with, because its subject and verb then come late. Questions may."""

BETTER = {
    "afresh": "again",
    "anew": "again",
    "beforehand is": "before … is",
    "ere": "before",
    "for want of": "for lack of",
    "go on with": "continue",
    "goes on with": "continues",
    "gone on with": "continued",
    "had better": "should",
    "lean on": "borrow from, depend on",
    "reckoned": "estimated",
    "said, it": "if you say it, it",
    "silent one": "one that prints nothing",
    "stands left": "the part before",
    "stands right": "the part after",
    "tells what": "measures, shows",
    "told of": "reported",
    "what becomes of": "what happens to, what elbo does with",
    "what holds only": "a folder that holds only",
    "what is missing it says": "it names what is missing",
    "will do:": "works:, may be",
}
"""Phrases that readers stumbled over, and plainer ones."""

CODE = re.compile(r"^ *```.*?^ *```$", re.M | re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
PICTURE_OR_LINK = re.compile(r"!?\[([^]]*)\]\([^)]*\)")
NEW_TEXT = re.compile(r"\n\s*\n|\n(?=\s*(?:[-*] |\d+\. |[|#>]))")
"""Where a paragraph, an item, a row or a heading begins."""
SENTENCE_END = re.compile(r"(?<=[.?!])[*)”]* +(?=\S)")


def sentences(page: str) -> list[str]:
    """Sentences of Markdown, each on one line, with `code` for inline code. Headings and cells of tables count."""
    page = COMMENT.sub("", CODE.sub("\n", page))
    page = PICTURE_OR_LINK.sub(r"\1", re.sub(r"`[^`]*`", "`code`", page))
    found = []
    for text in NEW_TEXT.split(page):
        cells = text.replace("\\|", "/").split("|") if text.lstrip().startswith("|") else [text]
        for cell in cells:
            plain = re.sub(r"^\s*(?:[-*>]|\d+\.) ", "", cell)
            found += [sentence.strip("* ") for sentence in SENTENCE_END.split(" ".join(plain.split()))]
    return [sentence for sentence in found if re.search(r"\w", sentence)]


def trouble(sentence: str) -> list[str]:
    """Faults of a sentence, each with a remedy."""
    words = re.findall(r"[^\W\d_][\w'-]*", sentence)
    found = [f"{len(words)} words: make two sentences of it"] if len(words) > LONGEST else []
    if words and sentence.startswith(words[0]) and words[0] in FIRST and sentence.endswith("."):
        found.append(f"begins with {words[0]}: say who does what")
    for phrase, better in BETTER.items():
        if re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", sentence, re.I):
            found.append(f"{phrase!r}: say {better!r}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_sentence_is_plain(page: Path) -> None:
    found = sentences(page.read_text())
    assert found, "the page has text"
    assert [f"{wrong}: {sentence}" for sentence in found for wrong in trouble(sentence)] == []


@pytest.mark.parametrize(
    "page",
    [
        "What holds only one folder is that folder.",
        "Text.\n\n- Of AdamW.\n",
        "| what | is |\n|---|---|\n| `x` | It works. Where it lies above training, it knows its images. |\n",
        "**Bold.** As the schedule\nfollows, it changes.",
        "Noise levels seen rarely lean\non their neighbours.",
        "See [what becomes of](x.md) them.",
        "## What becomes of them",
        "1. It ends; the same command is gone on with.",
        " ".join(["word"] * (LONGEST + 1)) + ".",
    ],
)
def test_a_sentence_that_is_not_plain_is_noticed(page: str) -> None:
    assert [wrong for sentence in sentences(page) for wrong in trouble(sentence)]


@pytest.mark.parametrize(
    "page",
    [
        "What does it cost? It costs little.",
        "## Of mice\n\n## What it says\n\nIt says so.",
        "```\na `date is gone on with\n```\n",
        "Write `gone on with` there.",
        "There is a theorem: where it holds, use it.",
        (" ".join(["word"] * LONGEST) + ". ") * 2,
        ("- " + " ".join(["word"] * LONGEST) + "\n") * 2,
    ],
)
def test_a_plain_sentence_passes(page: str) -> None:
    assert [wrong for sentence in sentences(page) for wrong in trouble(sentence)] == []


def rows(page: str) -> list[str]:
    """Rows of tables of Markdown."""
    return [line for line in page.splitlines() if line.startswith("| ")]


def commands_without_row(page: str) -> list[str]:
    """Commands of `elbo --help` that begin no row of a table, and so are not found by reading it."""
    first = {row.split("`")[1].split()[1] for row in rows(page) if row.startswith("| `elbo ")}
    return sorted(set(elbo.list_commands(click.Context(elbo))) - first)


def pages_without_link(page: str) -> list[str]:
    """Pages of docs/ to which no row of a table leads."""
    linked = {link for row in rows(page) for link in re.findall(r"\]\(docs/(\w[\w-]*\.md)", row)}
    return sorted({path.name for path in (ROOT / "docs").glob("*.md")} - linked)


def test_the_readme_has_a_row_for_every_command_and_page() -> None:
    page = (ROOT / "README.md").read_text()
    assert commands_without_row(page) == [] and pages_without_link(page) == []


def test_a_command_or_page_that_only_the_text_names_is_noticed() -> None:
    page = (
        "`elbo prep` packs. [Prep](docs/prep.md)\n| `elbo adapt RUN` | x | `elbo bound` |\n| [x](docs/sweep.md#y) | |\n"
    )
    assert {"prep", "bound"} <= set(commands_without_row(page)) and "adapt" not in commands_without_row(page)
    assert "prep.md" in pages_without_link(page) and "sweep.md" not in pages_without_link(page)


def test_no_line_of_the_readme_is_much_longer_than_the_others() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert [line for line in lines if len(line) > 130 and not line.startswith(("|", "!["))] == []


NAMED_FILE = re.compile(r"(?<![\w/])(?:elbocli|examples|man|tests)/[\w/-]+\.(?:md|py|sh|yaml|toml|txt)(?!\w)")
"""A file of the repository, as text or code names it."""


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_that_a_page_names_is_there(page: Path) -> None:
    assert [name for name in NAMED_FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []


def test_files_that_a_page_names_are_found() -> None:
    page = "(`tests/core/test_no.py` draws; see examples/x/demo.sh.) Not run/tests/a.py, nor examples/networks/."
    assert NAMED_FILE.findall(page) == ["tests/core/test_no.py", "examples/x/demo.sh"]
