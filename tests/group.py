"""Work in forked processes that find each other as torchrun's do, by variables alone; all tests of a worker share one start of Python.

python group.py: each line of stdin is a JSON list of jobs, {"size", "work"?, …}, and each of stdout the exit codes, by job
and rank. A job calls work(world, **rest) in `size` processes: `trained`, or the function that "FILE.py:NAME" names.
"""

import atexit
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # before processes fork: FSDP imports it, which takes long
from harness import heard, heed_signals

from elbocli.core.elbo import reconstruction
from elbocli.errors import ElboError
from elbocli.files.checkpoint import latest
from elbocli.files.dataset import Dataset
from elbocli.runs import settings
from elbocli.runs.open import open_initial
from elbocli.runtime.processes import World, joined
from elbocli.training import loop, previews
from elbocli.training.batches import Batches


@cache
def starter() -> tuple[Any, Any]:
    """Start the forking process, which ends with this process. Return the process and the file of its stderr."""
    said: Any = tempfile.TemporaryFile("a+")  # noqa: SIM115 - open as long as the process
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": said, "text": True}
    how = {"env": {**os.environ, "OMP_NUM_THREADS": "1"}, "preexec_fn": heed_signals, **pipes}
    process = subprocess.Popen([sys.executable, __file__], **how)
    atexit.register(process.communicate)
    return process, said


def in_processes(*jobs: dict[str, Any]) -> tuple[list[list[int]], str]:
    """Run the jobs one after the other, in one process that forks; exit codes by job and rank, and stderr."""
    process, said = starter()
    before = said.seek(0, os.SEEK_END)
    print(json.dumps(jobs, default=str), file=process.stdin, flush=True)
    codes = process.stdout.readline()  # nothing, where it has died
    said.seek(before)
    words = said.read()
    assert codes, words
    return json.loads(codes), words


def weights_of(run: Path) -> dict[str, bytes]:
    """Weights of a run's newest checkpoint, by file."""
    saved = latest(run)
    assert saved is not None
    return {name: (saved.path / name).read_bytes() for name in saved.meta.files if name.endswith(".safetensors")}


def lines_of(file: Path) -> list[dict[str, Any]]:
    """Lines of a log, without its speeds and the version of its format."""
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("images_per_s", "eval_s", "version")} for row in rows]


def train_here(
    data: Path, out: Path, preset: Path, counted: Any = lambda *_: None, log_to: Any = (), **options: Any
) -> list[str]:
    """Train in this process; what is said. counted: is called with each report of progress."""
    resolved = settings.resolve({"preset": str(preset), **options}, Dataset(data))
    with heard(counted) as lines:
        loop.run(Dataset(data), out, resolved, log_to=log_to)
    return lines


def started(size: int, work: Callable[[World], Any]) -> list[int]:
    """Start `size` processes that do `work`; their numbers, by rank. They end with this one at the latest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    children = []
    for rank in range(size):
        child = os.fork()
        if child == 0:
            heed_signals()
            os.environ |= {**place, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
            # torch makes its pool of threads anew when it is first asked for after a fork, and two threads that ask at once may
            # find none, which aborts the process: this one asks first, while it is alone.
            torch.set_num_threads(torch.get_num_threads())
            os._exit(_exit_code(work))
        children.append(child)
    return children


def ended(children: list[int], patience: float = 300) -> list[int]:
    """Wait for all; their exit codes, that of a signal negative. `patience` seconds after the first, the others are killed."""
    codes: dict[int, int] = {}
    until = float("inf")
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
                until = min(until, time.monotonic() + patience)
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[child] for child in children]


def forked(size: int, work: Callable[[World], Any]) -> list[int]:
    """Exit codes of `work` in `size` processes; those of ElboErrors, whose message is said on stderr."""
    return ended(started(size, work))


def _exit_code(work: Callable[[World], Any]) -> int:
    try:
        with joined("cpu") as world:
            work(world)
    except ElboError as error:
        print(f"rank {os.environ['RANK']} says: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


def poisoned(step: int, place: int) -> None:
    """From here on, the image at a place of a step (from 1) is NaN in this process, if it is one of its own."""
    whole = Batches.at

    def at(self: Batches, index: int, which: int = 0) -> Any:
        x, eps, labels = whole(self, index, which)
        if index + 1 == step and place in self.parts[which]:
            x[place - self.parts[which].start] = float("nan")
        return x, eps, labels

    Batches.at = at  # type: ignore[assignment, method-assign]


def trained(
    world: World,
    data: str,
    out: str,
    options: dict[str, Any],
    ends: tuple[str, int] | None = None,
    poison: tuple[int, int] | None = None,
    init: str = "",
    node: int = 0,
) -> None:
    """Train, as `elbo train` does. ends: the last process sends itself that signal at that step.

    node: number of processes on a node, as torchrun tells it; 0 for all.
    """
    os.environ["LOCAL_WORLD_SIZE"] = str(node or world.size)
    previews.PREVIEW = replace(previews.PREVIEW, steps=4)
    if poison is not None:
        poisoned(*poison)
    dataset = Dataset(Path(data))
    with world.together():
        initial = open_initial(Path(init)) if init else None
        resolved = settings.resolve(options, dataset, initial=initial)

    def counted(done: int, *_: Any) -> None:
        nonlocal ends
        if ends and done == ends[1] and world.rank == world.size - 1:
            number = signal.Signals[ends[0]]
            ends = None
            signal.raise_signal(number)

    with heard(counted):
        loop.run(dataset, Path(out), resolved, world)


if __name__ == "__main__":
    reconstruction(10.0)  # once, and not in each process that validates
    for line in sys.stdin:
        codes = []
        for job in json.loads(line):
            size = job.pop("size", 2)
            (file, _, name) = job.pop("work", "").rpartition(":")
            work = runpy.run_path(file)[name] if file else trained
            codes.append(forked(size, partial(work, **job)))
        print(json.dumps(codes), flush=True)
