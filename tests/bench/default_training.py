"""The choices of `elbo train` without options, and its memory and time beside those it says: `python tests/bench/default_training.py`

A cell is a size, grey or colour, a number of images and a limit of memory. Each is trained twice by the default command in a
cgroup of that limit. First through every moment that takes memory: steps, previews and checkpoints, at once one after the
other. Then as it is, for some seconds after it has said how long it will take (--whole: to its end). Later steps of the same
run then tell how long it takes indeed. Where a larger limit changes nothing in what is chosen, the runs under the smaller one
stand for it.

A line of JSON a cell goes to FOLDER/cells.jsonl, and a cell that is there is not run again. A table in Markdown ends it.
Limits need root, and the memory controller of cgroups, version 1 or 2; without it the machine's own memory is the limit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

SIZES, CHANNELS, COUNTS, LIMITS = (8, 16, 28, 32, 48, 64), (1, 3), (300, 60_000), (2, 4, 8)
CLASSES, CHUNK = 10, 1000
MOMENTS = ("--steps", "9", "--preview-every", "8", "--save-every", "4", "--log-every", "1")
DRAWN, MIXED = 9, (1, 2, 5, 9)
"""The line of MOMENTS whose time has a preview in it, and those whose time isn't that of a step alone."""
SAID = re.compile(
    r"(?:^|: )(?:now )?([\d.e+-]+) s a step: (\d+) steps left take about (?:(\d+) h )?(?:(\d+) min|(\d+) s)?, "
)
STEP = re.compile(r"(?:^|: )(\d+)/\d+ step\b")
MB = 1e6
LOOK_S = 0.05
ELBO = [sys.executable, "-m", "elbocli"]
ENDS = (0, 128 + signal.SIGINT)
"""Exit codes of runs that ended by themselves or by this script."""


class Cell(NamedTuple):
    """side: in pixels. limit: of memory, in GB."""

    side: int
    channels: int
    images: int
    limit: int

    def __str__(self) -> str:
        return f"{self.side}-{'grey' if self.channels == 1 else 'colour'}-{self.images}-{self.limit}GB"


@dataclass
class Result:
    """Findings on a cell. Memory is in MB, times in seconds.

    resident: the kernel's VmHWM, which includes pages of files that it may take away again. anonymous: without them.
    charged: the most that the cgroup was charged. said: time left, at a step. real: what later steps make of it. drawn: a
    preview's cost, in steps. whole: whether it ran to its end. measured_at: the limit of the runs that stand for it.
    """

    cell: Cell
    preset: str = ""
    steps: int = 0
    batch: int = 0
    micro_batch: int = 0
    recomputed: bool = False
    planned: float = 0.0
    resident: float = 0.0
    anonymous: float = 0.0
    charged: float = 0.0
    said: float = math.nan
    real: float = math.nan
    step_s: float = math.nan
    drawn: float = math.nan
    whole: bool = False
    timed: bool = False
    measured_at: int = 0
    ended: list[int] = field(default_factory=list)

    @property
    def chosen(self) -> tuple[Any, ...]:
        """All but the limit that decides what is run."""
        return (*self.cell[:3], self.preset, self.steps, self.batch, self.micro_batch, self.recomputed)

    @property
    def killed(self) -> bool:
        """Whether a run ended by anything but its end, or this script's interrupt."""
        return not set(self.ended) <= {*ENDS}


class Group:
    """A cgroup with a limit of memory, or a stand-in where none can be made."""

    def __init__(self, name: str, limit: int):
        root = Path("/sys/fs/cgroup")
        first = (root / "memory").is_dir()
        self.path: Path | None = (root / "memory" if first else root) / f"elbo-{os.getpid()}-{name}"
        self._peak = "memory.max_usage_in_bytes" if first else "memory.peak"
        try:
            self.path.mkdir()
            (self.path / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
        except OSError as error:
            print(f"no cgroup, so no limit: {error}", file=sys.stderr)
            self.path = None

    @property
    def peak(self) -> int:
        """Bytes charged at most, 0 where that is not known."""
        try:
            return int((self.path / self._peak).read_text()) if self.path else 0
        except OSError:
            return 0

    def command(self, words: list[str], nice: int | None) -> list[str]:
        """The command that runs another within it. nice: of its session, for the kernel's autogroups."""
        enter = [f"echo $$ > {self.path}/cgroup.procs"] if self.path else []
        enter += [f"echo {nice} > /proc/self/autogroup"] if nice is not None else []
        return ["sh", "-c", "; ".join([*enter, 'exec "$@"']), "sh", *words]

    def close(self) -> None:
        """Remove it, once its processes are gone."""
        if self.path:
            for _ in range(100):
                try:
                    return self.path.rmdir()
                except OSError:
                    time.sleep(LOOK_S)


class Watched(NamedTuple):
    """A command that has ended: its exit code (128 + the signal), its lines and when each came, and its peaks in bytes."""

    code: int
    lines: list[tuple[float, str]]
    resident: int
    anonymous: int
    ended: float


def watched(
    words: list[str], log: Path, threads: int | None, done: Callable[[list[tuple[float, str]]], bool]
) -> Watched:
    """Run a command, whose output goes to a file, and interrupt it once `done` says so of its lines."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    peaks, lines, asked = {"VmHWM": 0, "RssAnon": 0}, list[tuple[float, str]](), False
    with open(log, "w") as out, open(log) as back:
        process = subprocess.Popen(words, stdout=out, stderr=out, env=environment, start_new_session=True)
        while process.poll() is None:
            time.sleep(LOOK_S)
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                status = ""
            for key, kilobytes in re.findall(r"^(VmHWM|RssAnon):\s+(\d+) kB", status, re.M):
                peaks[key] = max(peaks[key], 1024 * int(kilobytes))
            lines += [(time.monotonic(), line.rstrip()) for line in back]
            if not asked and done(lines):
                asked = True
                process.send_signal(signal.SIGINT)
        ended = time.monotonic()
        lines += [(ended, line.rstrip()) for line in back]
    code = process.returncode
    return Watched(code if code >= 0 else 128 - code, lines, peaks["VmHWM"], peaks["RssAnon"], ended)


def pictures(side: int, channels: int, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield images [n,H,W,C] and classes [n]: a shape of one colour on a slope of two others; the class is its shape."""
    rows, columns = np.mgrid[:side, :side].astype(np.float32) / side - 0.5
    for start in range(0, count, CHUNK):
        rng, n = np.random.default_rng([side, channels, start]), min(CHUNK, count - start)
        classes = rng.integers(CLASSES, size=n)
        centre, turn = rng.uniform(-0.15, 0.15, (2, n, 1, 1)), rng.uniform(0, math.pi, (n, 1, 1))
        y, x = rows - centre[0], columns - centre[1]
        along, across = np.abs(x * np.cos(turn) + y * np.sin(turn)), np.abs(y * np.cos(turn) - x * np.sin(turn))
        round_, square = np.hypot(along, across), np.maximum(along, across)
        distances = [round_, np.abs(round_ - 0.2) + 0.15, square, 3 * across, np.minimum(along, across) * 3]
        distance = np.choose((classes % 5)[:, None, None], distances)
        inside = 1 / (1 + np.exp((distance - 0.25) * np.where(classes < 5, side, 8)[:, None, None]))[..., None]
        shape, one, other = rng.uniform(0, 255, (3, n, 1, 1, channels))
        ground = one + (other - one) * (columns[None, ..., None] + 0.5)
        yield (inside * shape + (1 - inside) * ground).astype(np.uint8), classes


def packed(cell: Cell, folder: Path) -> Path:
    """The dataset of a cell, made where it isn't there yet, by `elbo prep`."""
    path = folder / f"{cell.side}-{cell.channels}-{cell.images}.h5"
    if not path.exists():
        images, classes = (folder / f"{path.stem}.{name}.npy" for name in ("images", "classes"))
        shape = (cell.images, cell.side, cell.side, cell.channels)
        store = np.lib.format.open_memmap(images, "w+", np.uint8, shape)
        labels, done = [], 0
        for pixels, kinds in pictures(cell.side, cell.channels, cell.images):
            store[done : done + len(pixels)] = pixels
            labels.append(kinds)
            done += len(pixels)
        store.flush()
        np.save(classes, np.concatenate(labels))
        subprocess.run([*ELBO, "prep", "-q", images, path, "--labels", classes], check=True)
        images.unlink()
        classes.unlink()
    return path


def uncached(path: Path) -> None:
    """Let the kernel forget a file's pages: whoever reads them next is charged for them."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def lines_of(run: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics.jsonl that are of steps."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [line for line in map(json.loads, text.splitlines()) if "images_per_s" in line]


def timed(result: Result, run: Watched, previews: int) -> None:
    """Compare the time that a run said first with what its later steps make of it, or with its end. previews: steps between them."""
    found = next(((when, match) for when, line in run.lines if (match := SAID.search(line))), None)
    later = [(when, int(match.group(1))) for when, line in run.lines if (match := STEP.search(line))]
    if found is None:
        return
    when, match = found
    hours, minutes, seconds = (int(part or 0) for part in match.groups()[2:])
    result.said, at = 3600 * hours + 60 * minutes + seconds, result.steps - int(match.group(2))
    ended, last = (run.ended, result.steps) if result.whole else later[-1]
    shown = len({*range(previews, last + 1, previews)} - {*range(at + 1)})
    result.step_s = (ended - when) / (last - at + result.drawn * shown)
    ahead = len({*range(previews, result.steps + 1, previews), result.steps} - {*range(at + 1)})
    result.real = ended - when if result.whole else result.step_s * (result.steps - at + result.drawn * ahead)


class Bench:
    """Runs of cells, one after the other."""

    def __init__(self, options: argparse.Namespace):
        self.options, self.folder = options, options.folder
        self.run, self.kept = self.folder / "run", self.folder / "cells.jsonl"
        found = [json.loads(line) for line in self.kept.read_text().splitlines()] if self.kept.exists() else []
        self.results = {cell: Result(**{**each, "cell": cell}) for each in found for cell in [Cell(*each["cell"])]}

    def measure(self, cell: Cell) -> None:
        """Do what isn't done yet."""
        result = self.results.get(cell)
        if result is None:
            result = self._planned(cell)
            same = [each for each in self.results.values() if each.chosen == result.chosen and not each.killed]
            if same:
                result = replace(same[0], cell=cell)
            else:
                print(f"{cell}: memory", file=sys.stderr, flush=True)
                self._memory(result)
            self._keep(result)
        if self.options.seconds and not result.timed and result.measured_at == cell.limit and not result.killed:
            print(f"{cell}: time", file=sys.stderr, flush=True)
            self._time(result)
            self._keep(result)

    def _keep(self, result: Result) -> None:
        self.results[result.cell] = result
        with open(self.kept, "a") as file:
            file.write(json.dumps(asdict(result)) + "\n")

    def _once(self, result: Result, more: tuple[str, ...], done: Callable[[list[tuple[float, str]]], bool]) -> Watched:
        """Train by the default command and `more`, within the limit."""
        shutil.rmtree(self.run, ignore_errors=True)
        data = packed(result.cell, self.folder)
        uncached(data)
        group = Group(str(result.cell), result.cell.limit * 10**9)
        words = group.command([*ELBO, "train", str(data), "-o", str(self.run), *more], self.options.autogroup)
        found = watched(words, self.folder / "log", self.options.threads, done)
        if "--dry-run" not in more:
            result.ended.append(found.code)
            result.resident = max(result.resident, found.resident / MB)
            result.anonymous = max(result.anonymous, found.anonymous / MB)
            result.charged = max(result.charged, group.peak / MB)
        if found.code not in ENDS:
            print(*(line for _, line in found.lines[-3:]), sep="\n", file=sys.stderr)
        group.close()
        return found

    def _planned(self, cell: Cell) -> Result:
        result = Result(cell)
        planned = self._once(result, ("--dry-run",), lambda _: False)
        plan = yaml.safe_load("\n".join(line for _, line in planned.lines if not line.startswith("elbo ")))
        result.preset, result.steps, result.batch = plan["preset"], plan["steps"], plan["batch"]
        result.micro_batch, result.recomputed = plan["micro_batch"], plan["activation_checkpointing"]
        result.planned = plan["memory_MB"]["total"]
        return result

    def _memory(self, result: Result) -> None:
        result.measured_at = result.cell.limit
        self._once(result, MOMENTS, lambda _: False)
        taken = {line["step"]: 1 / line["images_per_s"] for line in lines_of(self.run)}
        if DRAWN in taken:
            result.drawn = taken[DRAWN] / float(np.median([taken[step] for step in taken if step not in MIXED])) - 1

    def _time(self, result: Result) -> None:
        result.timed, result.whole = True, result.cell.side in self.options.whole

        def enough(lines: list[tuple[float, str]]) -> bool:
            when = next((when for when, line in lines if SAID.search(line)), math.inf)
            after = [each for each, line in lines if each > when and STEP.search(line)]
            return not result.whole and len(after) > 1 and after[-1] - when > self.options.seconds

        found = self._once(result, (), enough)
        timed(result, found, yaml.safe_load((self.run / "config.yaml").read_text())["settings"]["preview_every"])


def table(results: list[Result]) -> str:
    """Results in Markdown, a line for cells that differ in their limit alone and choose alike."""
    lines = [
        "| pixels | images | limit, GB | preset, batch | planned MB | resident | anonymous | cgroup | said | real | said/real |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for _, alike in itertools.groupby(sorted(results, key=lambda each: each.cell), lambda each: each.chosen):
        some = list(alike)
        one = some[0]
        kind = "grey" if one.cell.channels == 1 else "colour"
        limits = ", ".join(f"{each.cell.limit}{' KILLED' if each.killed else ''}" for each in some)
        batch = f"{one.batch}" if one.micro_batch == one.batch else f"{one.batch} in parts of {one.micro_batch}"
        memory = [max(getattr(each, key) for each in some) for key in ("planned", "resident", "anonymous", "charged")]
        said = f"{one.said:.0f} s | {one.real:.0f} s{' (whole)' if one.whole else ''} | {one.said / one.real:.2f}"
        said = said if one.timed else "- | - | -"
        lines.append(
            f"| {one.cell.side} {kind} | {one.cell.images:,} | {limits} | {one.preset}, {batch}"
            f"{', recomputed' if one.recomputed else ''} | {' | '.join(f'{each:.0f}' for each in memory)} | {said} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Exit 1 when a run was killed or failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    several = {"type": int, "nargs": "+", "metavar": "N"}
    parser.add_argument("--sizes", **several, default=SIZES, help=f"of {SIZES} pixels")
    parser.add_argument("--channels", **several, default=CHANNELS, help=f"of {CHANNELS}")
    parser.add_argument("--images", **several, default=COUNTS, help=f"of {COUNTS}")
    parser.add_argument("--limits", **several, default=LIMITS, help=f"of {LIMITS} GB")
    parser.add_argument("--whole", **several, default=(8,), help="sizes that are trained to the end")
    parser.add_argument(
        "--seconds",
        type=float,
        default=25,
        help="of training after the time was said; 0: memory alone, and a later call may add the time",
    )
    parser.add_argument(
        "--folder", type=Path, default="default-training", help="for datasets (2 GB in all) and results"
    )
    parser.add_argument(
        "--autogroup", type=int, help="nice value of the measured sessions among others of a busy machine"
    )
    parser.add_argument(
        "--threads", type=int, help="of torch, where the cores are busy; otherwise as many as it takes itself"
    )
    options = parser.parse_args()
    options.folder = options.folder.resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    for values in itertools.product(options.sizes, options.channels, options.images, sorted(options.limits)):
        bench.measure(Cell(*values))
    print(table(list(bench.results.values())))
    sys.exit(any(each.killed for each in bench.results.values()))


if __name__ == "__main__":
    main()
