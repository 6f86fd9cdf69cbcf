"""Training in forked processes that find each other as torchrun's do, by variables alone, without its seconds of a start.

python group.py JOB.json: a list of runs, each {"size", "data", "out", "options", "killed"?, "told"?, "poison"?, "log_to"?, "init"?};
prints a JSON list of exit codes, by run and rank. killed: all processes end at that step, as if killed; told: the last one gets
SIGUSR1; poison: [step, place in the batch] of an image that is NaN. log_to: as loop.run takes it. init: the run to begin from.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import heard
from signalled import end_with

from elbocli.errors import ElboError
from elbocli.files.dataset import Dataset
from elbocli.run import settings
from elbocli.run.open import open_initial
from elbocli.runtime.processes import World, joined
from elbocli.train import loop, recorder
from elbocli.train.batches import Batches

recorder.PREVIEW = replace(
    recorder.PREVIEW, steps=4
)  # whoever trains in several processes doesn't ask how well it draws


def started(size: int, work: Callable[[World], Any]) -> list[int]:
    """Process numbers of `size` processes that do `work`, by rank. They end with this one at the latest."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children, own = [], os.getpid()
    for rank in range(size):
        child = os.fork()
        if child == 0:
            end_with(own)
            os.environ |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            # torch makes its pool of threads anew when it is first asked for after a fork, and two threads that ask at once may
            # find none, which aborts the process: this one asks first, while it is alone.
            torch.set_num_threads(torch.get_num_threads())
            os._exit(_ended(work))
        children.append(child)
    return children


def ended(children: list[int], patience: float = 60) -> list[int]:
    """Their exit codes, when all have ended; that of a signal is negative. Those that are left `patience` seconds after
    the first has ended are killed.
    """
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


def _ended(work: Callable[[World], Any]) -> int:
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
    killed: int | None = None,
    told: int | None = None,
    poison: tuple[int, int] | None = None,
    log_to: tuple[str, ...] = (),
    init: str = "",
) -> None:
    """A run, as `elbo train` does it."""
    if poison is not None:
        poisoned(*poison)
    dataset = Dataset(Path(data))
    with world.together():
        initial = open_initial(Path(init)) if init else None
        resolved = settings.resolve(options, dataset, initial=initial)
    reached: set[int] = set()

    def counted(done: int, *_: Any) -> None:
        if done == killed:
            os._exit(0)
        if done == told and world.rank == world.size - 1 and done not in reached:
            os.kill(os.getpid(), signal.SIGUSR1)
        reached.add(done)

    with heard(counted):
        loop.run(dataset, Path(out), resolved, world, log_to=log_to)


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    codes = []
    for job in jobs:
        size = job.pop("size")
        codes.append(forked(size, lambda world, job=job: trained(world, **job)))
    print(json.dumps(codes))
