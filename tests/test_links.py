"""The README leads to every command and page, and each file that a page names is there."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from elbocli.main import elbo

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED_FILE = re.compile(r"(?<![\w/])(?:elbocli|examples|man|tests)/[\w/-]+\.(?:md|py|sh|yaml|toml|txt)(?!\w)")
"""A file of the repository, as text or code names it."""


def test_the_readme_has_a_row_for_every_command_and_page() -> None:
    rows = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| ")]
    named = {row.split("`")[1].split()[1] for row in rows if row.startswith("| `elbo ")}
    linked = {link for row in rows for link in re.findall(r"\]\(docs/(\w[\w-]*\.md)", row)}
    assert named == set(elbo.list_commands(click.Context(elbo)))
    assert linked >= {path.name for path in (ROOT / "docs").glob("*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_that_a_page_names_is_there(page: Path) -> None:
    assert [name for name in NAMED_FILE.findall(page.read_text()) if not (ROOT / name).exists()] == []
