"""docs/models.md names every format that there is, and its command lines are ones that elbo takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from elbocli.importer.formats import FORMATS
from elbocli.main import elbo

PAGE = (Path(__file__).parents[2] / "docs/models.md").read_text()
LINES = [line for block in re.findall(r"^```\n(.*?)^```$", PAGE, re.M | re.S) for line in block.splitlines()]


def test_every_format_has_a_row_and_no_other_has() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| .* \| .* \|$", PAGE, re.M)
    assert rows == sorted(rows, key=rows.index) and set(rows) == set(FORMATS)


@pytest.mark.parametrize("line", LINES[1:])
def test_a_command_line_is_one_that_elbo_takes(line: str) -> None:
    program, name, *words = shlex.split(line)
    command = elbo.get_command(click.Context(elbo), name)
    assert program == "elbo" and command is not None
    command.make_context(name, words)
