"""Processor time of every command's `--help`, from a wheel with its bytecode, against a program of click with as many options.

An editable install is no measure: it may have to compile at every start, and is found by a hook that costs time as well.
"""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import click
from compare import Row, compare, processor_time
from release import install, make_wheel

from elbocli.main import elbo

BOUND = 1.5
ROUNDS = 31


def bare(path: Path, options: int) -> None:
    """Write a click program."""
    lines = [f'@click.option("--option-{i}", type=int, default={i}, help="Value of option {i}.")' for i in range(options)]
    path.write_text("\n".join(["import click", "@click.command()", *lines, "def main(**options): pass", "main()", ""]))


def rows(small: bool) -> Iterator[Row]:
    """Yield the group's help, and each command's."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python = install(make_wheel(folder), folder / "env")
        peer = folder / "peer.py"
        environment = {**os.environ, "PYTHONPATH": ""}

        def run(*line: str | Path) -> str:
            return subprocess.run(line, check=True, capture_output=True, text=True, cwd=folder, env=environment).stdout

        commands = ("",) if small else ("", *elbo.list_commands(click.Context(elbo)))
        for command in commands:
            words = [*filter(None, [command]), "--help"]
            options = sum(line.startswith("  -") for line in run(python.with_name("elbo"), *words).splitlines())
            bare(peer, options - 1)  # click adds --help
            yield compare(
                f"start-up, {' '.join(['elbo', *words])} / click, {options} options",
                lambda words=words: run(python.with_name("elbo"), *words),
                lambda: run(python, peer, "--help"),
                BOUND,
                rounds=1 if small else ROUNDS,
                clock=processor_time,
            )
