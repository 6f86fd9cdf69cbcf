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
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))

from inputs import ENDS, Case, Drawer
from targets import good_folder

CORPUS = Path(__file__).parent / "corpus"
PATIENCE_S, SERIES_PATIENCE_S = 120, 900


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


class Fuzzer(Drawer):
    """Runs inputs in copies of a good folder, which it makes in `folder`."""

    def __init__(self, folder: Path):
        super().__init__(folder / "good", folder)
        self.zygote = Zygote()
        self.env = {key: value for key, value in os.environ.items() if not key.startswith("ELBO_")} | {
            "ELBO_DEVICE": "cpu"
        }
        self.good.mkdir()
        good_folder(self.good, self.plain)
        self.size = {path: path.stat().st_size for path in self.good.rglob("*") if path.is_file()}

    def plain(self, line: str, folder: Path) -> tuple[int, bytes, bytes]:
        found = self.zygote.run(["-m", "elbocli", *line.split()], folder, self.env, b"", PATIENCE_S)
        return found.returncode, found.stdout, found.stderr

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
            self.remove(folder)
        memory, seconds = peak.read_text().split() if peak.exists() else ("0", "0")
        peak.unlink(missing_ok=True)
        outcome = Found(found.returncode, float(seconds), int(memory) << 10, "", found.stderr.decode(errors="replace"))
        outcome.wrong = self.verdict(case, outcome)
        return outcome

    def series(self, seed: int | str, numbers: Sequence[int]) -> dict[int, tuple[Case, Found]]:
        """The outcomes of inputs that one process runs, as far as it comes; those that need another one are left out."""
        words = [str(Path(__file__).with_name("series.py")), str(self.good), str(self.folder), str(seed)]
        try:
            told = self.zygote.run([*words, *map(str, numbers)], self.folder, self.env, b"", SERIES_PATIENCE_S).stdout
        except subprocess.TimeoutExpired:
            return {}
        found, number = dict[int, tuple[Case, Found]](), -1
        for line in told.decode().splitlines():
            with suppress(json.JSONDecodeError):  # where the process ended, too
                told_now = json.loads(line)
                if isinstance(told_now, int):
                    number = told_now
                    continue
                name, file, words, code, seconds, memory, said = told_now
                case, outcome = Case(name, file, words), Found(code, seconds, memory, "", said)
                outcome.wrong = self.verdict(case, outcome)
                found[number] = case, outcome
        return found

    def verdict(self, case: Case, found: Found) -> str:
        """List the faults: a traceback, an unknown exit code, no sentence, an escape."""
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
    fuzzer: Fuzzer, seed: int, until: float, count: int, kept: bool = True, together: int = 1
) -> tuple[dict[str, Row], list[tuple[Case, Found]]]:
    """Run inputs until a time (of time.monotonic) or a count is reached. Returns the table and what went wrong.

    together: inputs that share a process; what is amiss there is run again in one of its own, whose outcome counts.
    """
    rows, wrong = defaultdict[str, Row](Row), []
    begin = 0
    while begin < count and time.monotonic() < until:
        numbers = range(begin, min(count, begin + together))
        shared = fuzzer.series(seed, numbers) if together > 1 else {}
        for number in numbers:
            case, found = shared.get(number, (None, None))
            if case is None or found is None or found.wrong:
                case, folder = fuzzer.drawn(seed, number)
                found = fuzzer.run(case, folder)
            rows[case.name].add(found)
            if found.wrong:
                wrong.append((case, found))
                print(f"{seed}-{number}: {found.wrong}: elbo {' '.join(case.line)}", file=sys.stderr, flush=True)
                if kept:
                    case, folder = fuzzer.drawn(seed, number)
                    keep(case, folder, found, f"{seed}-{number}")
        begin = numbers.stop
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
    parser.add_argument("--together", type=int, default=50, help="inputs that share a process")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(Path(folder))
        rows, wrong = fuzz(
            fuzzer, given.seed, time.monotonic() + 60 * given.minutes, given.count, together=given.together
        )
    print(table(rows))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
