"""Damaged files, odd options, closed streams and signals, through real commands, for as long as one likes.

`python tests/fuzz/fuzz.py --minutes 60 [--seed N]` prints a table as it ends; `make fuzz` runs it for an hour. An input that
elbo takes amiss is kept in tests/fuzz/corpus, which tests/fuzz/test_fuzz.py runs again: a file, and beside it NAME.json with
the place where it was and the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from forks import Zygote
from hostile_files import MOST_MEMORY, MOST_SECONDS
from mutations import ODD_NUMBERS, ODD_TEXTS
from targets import TARGETS, Target, good_folder

from elbocli.main import elbo

CORPUS = Path(__file__).parent / "corpus"
PATIENCE_S = 120
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


@dataclass
class Found:
    """The outcome. wrong: what elbo did amiss, '' for nothing."""

    code: int
    seconds: float
    memory: int
    wrong: str
    said: str = ""


@dataclass
class Row:
    """Outcomes of all inputs of a format."""

    codes: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    seconds: float = 0.0
    memory: int = 0

    def add(self, found: Found) -> None:
        self.codes[found.code] += 1
        self.wrong += bool(found.wrong)
        self.seconds, self.memory = max(self.seconds, found.seconds), max(self.memory, found.memory)


class Fuzzer:
    """Runs inputs in copies of a good folder, which it makes in `folder`."""

    def __init__(self, folder: Path):
        self.folder, self.zygote = folder, Zygote()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("ELBO_")} | {
            "ELBO_DEVICE": "cpu"
        }
        self.good = folder / "good"
        self.good.mkdir()
        good_folder(self.good, self.plain)
        self.size = {path: path.stat().st_size for path in self.good.rglob("*") if path.is_file()}

    def plain(self, line: str, folder: Path) -> tuple[int, bytes, bytes]:
        found = self.zygote.run(["-m", "elbocli", *line.split()], folder, self.env, b"", PATIENCE_S)
        return found.returncode, found.stdout, found.stderr

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

    def run(self, case: Case, folder: Path) -> Found:
        """The outcome of an input; its folder is gone afterwards."""
        peak = folder.with_suffix(".peak")
        try:
            found = self.zygote.run(
                ["-m", "elbocli", *case.line],
                folder,
                self.env,
                b"",
                PATIENCE_S,
                ended=case.ended,
                closed=list(case.closed),
                peak=str(peak),
            )
        except subprocess.TimeoutExpired:
            return Found(-9, PATIENCE_S, 0, f"no end after {PATIENCE_S} s")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        memory, seconds = peak.read_text().split() if peak.exists() else ("0", "0")
        peak.unlink(missing_ok=True)
        outcome = Found(found.returncode, float(seconds), int(memory) << 10, "", found.stderr.decode(errors="replace"))
        outcome.wrong = self.verdict(case, outcome)
        return outcome

    def verdict(self, case: Case, found: Found) -> str:
        """What is amiss: a traceback, a code that isn't said in docs/limits.md, no sentence, an escape, too much time or memory."""
        expected = {0, 1, 2, 4} | ({ENDS[signal.Signals(case.ended[0])], -case.ended[0]} if case.ended else set())
        if "Traceback" in found.said and not {"-v", "--verbose"} & {*case.line}:
            return "a traceback"
        if found.code not in expected:
            return f"code {found.code}"
        if found.code in (1, 2) and 2 not in case.closed and "error" not in found.said and "Usage" not in found.said:
            answered = case.line[0] in ("bound", "weights", "info") and found.code == 1
            return "" if answered else "no sentence"
        if "\x1b" in found.said:
            return "an escape on stderr"
        if found.memory > MOST_MEMORY:
            return f"{found.memory >> 20} MB"
        if found.seconds > MOST_SECONDS and case.file:
            return f"{found.seconds:.0f} s"
        return ""


def keep(case: Case, folder: Path, found: Found, seed: str) -> None:
    """Move an input into the corpus."""
    CORPUS.mkdir(exist_ok=True)
    name = f"{Path(case.name).stem}-{seed}"
    if case.file:
        shutil.copyfile(folder / case.file, CORPUS / name)
    shutil.rmtree(folder)
    about = {"file": case.file, "line": case.line, "ended": case.ended, "closed": case.closed, "wrong": found.wrong}
    (CORPUS / f"{name}.json").write_text(json.dumps(about | {"said": found.said[-2000:]}, indent=1) + "\n")


def kept() -> list[tuple[str, Case]]:
    """The corpus: name and input of each."""
    found = []
    for path in sorted(CORPUS.glob("*.json")):
        about = json.loads(path.read_text())
        ended = about["ended"] and (int(about["ended"][0]), float(about["ended"][1]))
        found.append((path.stem, Case(about["file"], about["file"], about["line"], ended, tuple(about["closed"]))))
    return found


def fuzz(
    fuzzer: Fuzzer, seed: int, until: float, count: int, kept: bool = True
) -> tuple[dict[str, Row], list[tuple[Case, Found]]]:
    """Run inputs until a time (of time.monotonic) or a count is reached. Returns the table and what went wrong."""
    rows, wrong = defaultdict[str, Row](Row), []
    number = 0
    while number < count and time.monotonic() < until:
        name = f"{seed}-{number}"
        at = number % (len(TARGETS) + 4)  # as many odd command lines as files of four formats

        def drawn(name: str = name, at: int = at) -> tuple[Case, Path]:
            random = Random(name)
            return fuzzer.file_case(TARGETS[at], random) if at < len(TARGETS) else fuzzer.option_case(random)

        case, folder = drawn()
        found = fuzzer.run(case, folder)
        rows[case.name].add(found)
        if found.wrong:
            wrong.append((case, found))
            print(f"{name}: {found.wrong}: elbo {' '.join(case.line)}", file=sys.stderr, flush=True)
            if kept:
                keep(*drawn(), found, name)
        number += 1
    return rows, wrong


def table(rows: dict[str, Row]) -> str:
    """Markdown: a row a format."""
    lines = [
        "| file | inputs | exit 0 | 1 | 2 | other | amiss | most s | most MB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    total = Row()
    for row in rows.values():
        total.codes += row.codes
        total.wrong += row.wrong
        total.seconds, total.memory = max(total.seconds, row.seconds), max(total.memory, row.memory)
    for name, row in [*sorted(rows.items()), ("all", total)]:
        codes = [row.codes[code] for code in (0, 1, 2)]
        other = row.codes.total() - sum(codes)
        figures = [row.codes.total(), *codes, other, row.wrong, f"{row.seconds:.1f}", row.memory >> 20]
        lines.append(f"| {name} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--count", type=int, default=1 << 40)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        rows, wrong = fuzz(fuzzer, given.seed, time.monotonic() + 60 * given.minutes, given.count)
    print(table(rows))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
