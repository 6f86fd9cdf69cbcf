"""Inputs of the fuzzer: a damaged file and a command that reads it, or a good command line with odd options, streams and signals."""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
from mutations import ODD_NUMBERS, ODD_TEXTS
from targets import TARGETS, Target

from elbocli.main import elbo

ENDS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
NO_RUNNING_FOR_EVER = {
    "--steps",
    "-n",
    "--images",
    "--draws",
    "--batch",
    "--batches",
    "--time-limit",
    "--workers",
    "--micro-batch",
}
"""Options whose large values rightly take long: they get small ones."""


@dataclass(frozen=True)
class Case:
    """One input. file: the damaged one, '' where it is the command line. ended: a signal, and the seconds until it comes."""

    name: str
    file: str
    line: list[str]
    ended: tuple[int, float] | None = None
    closed: tuple[int, ...] = ()


class Drawer:
    """Draws inputs by seed and number, each in a copy of the good folder."""

    def __init__(self, good: Path, folder: Path):
        self.good, self.folder = good, folder

    def drawn(self, seed: int | str, number: int) -> tuple[Case, Path]:
        """An input and the folder that it lies in: as many odd command lines as files of four formats."""
        random, at = Random(f"{seed}-{number}"), number % (len(TARGETS) + 4)
        return self.file_case(TARGETS[at], random) if at < len(TARGETS) else self.option_case(random)

    def file_case(self, target: Target, random: Random) -> tuple[Case, Path]:
        """A damaged file in a new folder, and a command that reads it."""
        folder = self.fresh()
        random.choice(target.mutations)(random, folder / target.file)
        return Case(target.file, target.file, random.choice(target.lines).split()), folder

    def option_case(self, random: Random) -> tuple[Case, Path]:
        """A good command line with odd options, streams and signals."""
        target = random.choice(TARGETS)
        line = random.choice(target.lines).split()
        command: Any = elbo
        for word in line:
            command = command.get_command(click.Context(command), word) if isinstance(command, click.Group) else command
        options = [each for each in command.params if isinstance(each, click.Option)]
        for _ in range(random.randint(0, 3)):
            option = random.choice(options)
            name = random.choice(option.opts)
            words = [name] if option.is_flag else [name, self.value(option, random)]
            line[(at := random.randint(1, len(line))) : at] = words
        ended = (random.choice([*ENDS]), random.random() ** 2) if random.random() < 0.2 else None
        closed = tuple(each for each in (0, 1, 2) if random.random() < 0.05)
        return Case("options", "", line, ended, closed), self.fresh()

    def value(self, option: click.Option, random: Random) -> str:
        if isinstance(option.type, click.Choice) and random.random() < 0.7:
            return str(random.choice([*option.type.choices]))
        if random.random() < 0.3:
            return random.choice(
                ["good.h5", "run", "schedule.yaml", "samples.npz", "images", "x.png", "-", "/dev/null"]
            )
        if random.random() < 0.5 or {*option.opts} & NO_RUNNING_FOR_EVER:
            return random.choice(["0", "-1", "1", "2", "3", "0.5", "nan", "1e400", "1_0", "", "x", "1,2"])
        return random.choice([*map(str, ODD_NUMBERS), *(each for each in ODD_TEXTS if "\ud800" not in each)])

    def fresh(self) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        shutil.rmtree(folder)
        shutil.copytree(self.good, folder)
        return folder

    def remove(self, folder: Path) -> None:
        """Delete an input's folder."""
        shutil.rmtree(folder, ignore_errors=True)
