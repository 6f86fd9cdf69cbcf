"""Time and memory of commands against the number of items: `python tests/bench/growth.py [--sizes N,N,…] [NAME…]`.

Each command runs in a process of its own. Time is that of the CPU, which other work on the machine changes little; of a
batch from disk that on the clock, the median of many. Memory is the most that was resident, mapped files included. The exponent is the
slope of time over size on logarithmic scales, from the last size but one to the last, less what 100 items take: the start.
The last column is the least that the largest size can take: copying, digesting or gathering the same bytes.

NAME…: rows of the table, by how they begin; all by default. Sizes of 1000,10000 take some minutes, the usual ones an hour.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LEAST = 100
"""Items whose time stands for the start."""
COUNTED = 0.1
"""Seconds beyond the start that can be told from it."""
Line = list[str]
ELBO = [sys.executable, "-m", "elbocli"]
OWN = [sys.executable, str(Path(__file__).with_name("growth_inputs.py"))]


@dataclass(frozen=True)
class Cost:
    """Seconds and bytes of one process and of those that it waited for."""

    seconds: float
    memory: int


@dataclass(frozen=True)
class Work:
    """A row: the command for n items, and the least there can be.

    every: it takes one for so many items of a size. few: its sizes are the first and four times that. tells: the process
    says its time itself. logged: it needs a run with logs.
    """

    name: str
    line: Callable[[int], Line]
    peer: Callable[[int], Line] | None = None
    every: int = 1
    few: bool = False
    tells: bool = False
    logged: bool = False


def elbo(words: str) -> Callable[[int], Line]:
    """A command line of elbo's."""
    return lambda n: [*ELBO, *words.format(n=n).split()]


def copying(*names: str) -> Callable[[int], Line]:
    """A copy of files, made safe."""
    return lambda n: ["sh", "-c", f"cat {' '.join(names)} > copy && sync copy"]


def scores(metric: str, more: str = "") -> Work:
    """A row of `elbo eval`."""
    return Work(
        f"eval, {metric}", elbo(f"eval more.npy --ref data.h5 --extractor elbo-tiny --metrics {metric}{more}"), few=True
    )


def batches(cold: bool) -> Work:
    """A row of batches at random. cold: what the system remembers of the file is dropped before each."""
    lines = [[*OWN, "cold" if cold else "warm", source] for source in ("data.h5", "images.npy")]
    where = "not in memory" if cold else "in memory"
    return Work(f"256 at random, {where}", lambda n: lines[0], lambda n: lines[1], tells=True)


PACK = Work("prep, .npy", elbo("prep images.npy data.h5"), copying("images.npy"))
TRAIN = Work("train, its start", elbo("train data.h5 -o run --preset preset.yaml"))
WORKS = [
    PACK,
    Work("prep, tar of PNGs", elbo("prep images.tar tar.h5"), copying("images.tar")),
    Work("merge, two halves", elbo("merge merged.h5 half-1.h5 half-2.h5"), copying("half-1.h5", "half-2.h5")),
    Work("info", elbo("info data.h5")),
    Work("info --verify", elbo("info --verify data.h5"), lambda n: ["sha256sum", "data.h5"]),
    TRAIN,
    batches(cold=False),
    batches(cold=True),
    Work("adapt, lines of a log", elbo("adapt losslog.jsonl -o schedule.yaml"), every=10, logged=True),
    Work("report, lines of a log", elbo("report logged -o page.html"), every=10, logged=True),
    Work("sample", elbo("sample logged -n {n} --steps 1 --batch 1000 -o samples.npy"), every=10, logged=True),
    scores("fid"),
    scores("kid", " --kid-subset-size 50"),
    scores("prc"),
]


def ran(line: Line, folder: Path, tells: bool = False) -> Cost:
    """Run a command and measure it. Raises RuntimeError where it fails."""
    environment = {**os.environ, "ELBO_DEVICE": "cpu", "PYTHONPATH": os.pathsep.join(sys.path[1:])}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with open(folder / "said", "w+") as said:
        job = subprocess.Popen(line, cwd=folder, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(job.pid, 0)
        job.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        words = said.read()
    if job.returncode:
        raise RuntimeError(f"{' '.join(line)}: {words[-2000:]}")
    return Cost(float(words) if tells else used.ru_utime + used.ru_stime, used.ru_maxrss << 10)


def exponent(sizes: Sequence[int], costs: Sequence[Cost], start: float) -> float | None:
    """The slope over the last two sizes. None where there is one only, or no time that can be told from the start."""
    if len(sizes) < 2:
        return None
    low, high = (cost.seconds - start for cost in costs[-2:])
    if start and min(low, high) < COUNTED:
        return None
    return math.log(high / low) / math.log(sizes[-1] / sizes[-2])


def shown(cost: Cost) -> str:
    """Time and memory for people."""
    seconds = cost.seconds
    return f"{f'{1e3 * seconds:.2g} ms' if seconds < 0.1 else f'{seconds:.3g} s'}, {cost.memory / 1e6:.0f} MB"


def measured(folder: Path, n: int, works: Sequence[Work], peers: bool) -> list[tuple[Cost, Cost | None]]:
    """Measure rows, and what there can least be if asked for, in a new folder of a size, which is removed."""
    folder.mkdir()
    ran([*OWN, "make", str(n), *(["tar"] if any("tar" in work.name for work in works) else [])], folder)
    made = {PACK: ran(PACK.line(n), folder)}
    for half in (1, 2) if any("merge" in work.name for work in works) else ():
        ran(elbo(f"prep images.npy half-{half}.h5 --shard {half}/2")(n), folder)
    if any(work.logged for work in works):
        made[TRAIN] = ran(TRAIN.line(n), folder)
        ran([*OWN, "logs", str(max(1, n // 10))], folder)
    found = []
    for work in works:
        items = max(1, n // work.every)
        cost = made.get(work) or ran(work.line(items), folder, work.tells)
        found.append((cost, ran(work.peer(items), folder, work.tells) if peers and work.peer else None))
    shutil.rmtree(folder)
    return found


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--sizes", default="10000,100000,1000000", help="rising numbers of items [%(default)s]")
    parser.add_argument("--folder", help="where the inputs go: 4 GB for a million items [the system's own]")
    options = parser.parse_args()
    sizes = [int(word) for word in options.sizes.split(",")]
    works = [work for work in WORKS if not options.names or work.name.startswith(tuple(options.names))]
    if not works:
        parser.error(f"no row begins so; there are: {'; '.join(work.name for work in WORKS)}")
    groups = [
        (sizes, [work for work in works if not work.few]),
        ([sizes[0], 4 * sizes[0]], [w for w in works if w.few]),
    ]
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        for those, some in filter(lambda group: group[1], groups):
            print(f"\n| | {' | '.join(f'{n:,}' for n in those)} | exponent | the least, at {those[-1]:,} |")
            print("|---" * (len(those) + 3) + "|", flush=True)
            starts = measured(Path(temporary) / "start", LEAST, some, peers=False)
            columns = [measured(Path(temporary) / str(n), n, some, peers=n == those[-1]) for n in those]
            for row, work in enumerate(some):
                costs, least = [column[row][0] for column in columns], columns[-1][row][1]
                slope = exponent(those, costs, 0 if work.tells else starts[row][0].seconds)
                cells = [*map(shown, costs), "-" if slope is None else f"{slope:.2f}", shown(least) if least else ""]
                print(f"| {work.name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
