"""Results of commands that make a file: to standard output, or into the file of -o."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from elbocli.cli.types import STREAM


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in columns that are as wide as their longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip())


def print_json(value: Any) -> None:
    """Print a result as indented JSON. Raises ValueError for NaN."""
    import json  # a millisecond, which help does without

    click.echo(json.dumps(value, indent=1, allow_nan=False))


def hand_out(text: str, out: Path, report: dict[str, Any] | None = None) -> None:
    """Write a file's text to `out`, where - is standard output.

    report: an object that standard output gets instead, as JSON; then the text goes to a file alone. Raises DataError.
    """
    from elbocli.files.atomic import write_text

    if report is not None:
        print_json(report)
    elif out == STREAM:
        click.echo(text, nl=False)
    if out != STREAM:
        write_text(out, text)
