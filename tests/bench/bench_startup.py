"""Time to `--help`, against a program of click alone with one command of as many options."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compare import Row, Skipped, compare

BOUND, ROUNDS = 2.0, 15
COMMANDS = ("", "prep", "train", "adapt", "sample", "eval", "weights", "info")
ELBO = Path(sys.executable).with_name("elbo")


def bare(path: Path, options: int) -> None:
    """Write a click program."""
    lines = [
        f'@click.option("--option-{i}", type=int, default={i}, help="What option {i} is for.")' for i in range(options)
    ]
    path.write_text("\n".join(["import click", "@click.command()", *lines, "def main(**options): pass", "main()", ""]))


def rows() -> Iterator[Row]:
    """Each command's help, and the group's."""
    if not ELBO.exists():
        raise Skipped(f"{ELBO} is not there; install elbo into this environment first")
    with tempfile.TemporaryDirectory() as temporary:
        for command in COMMANDS:
            mine = [str(ELBO), *filter(None, [command]), "--help"]
            help_text = subprocess.run(mine, check=True, capture_output=True, text=True).stdout
            options = sum(line.startswith("  -") for line in help_text.splitlines())
            peer = Path(temporary) / "peer.py"
            bare(peer, options - 1)  # click adds --help
            yield compare(
                f"start-up, {' '.join(['elbo', *mine[1:]])} / click, {options} options",
                lambda mine=mine: subprocess.run(mine, check=True, capture_output=True),
                lambda peer=peer: subprocess.run(
                    [sys.executable, str(peer), "--help"], check=True, capture_output=True
                ),
                BOUND,
                rounds=ROUNDS,
            )
