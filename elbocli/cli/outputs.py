"""Results of commands that make a file: to standard output, or into the file of -o."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from elbocli.cli.types import STREAM


def hand_out(text: str, out: Path, report: dict[str, Any] | None = None) -> None:
    """Write a file's text to `out`, where - is standard output.

    report: an object that standard output gets instead, as JSON; then the text goes to a file alone. Raises DataError.
    """
    from elbocli.files.atomic import write_text

    if report is not None:
        click.echo(json.dumps(report, indent=1, allow_nan=False))
    elif out == STREAM:
        click.echo(text, nl=False)
    if out != STREAM:
        write_text(out, text)
