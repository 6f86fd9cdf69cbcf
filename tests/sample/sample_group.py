"""Sampling in forked processes that find each other as torchrun's do, killed and interrupted, and what they drew.

python sample_group.py JOBS.json FOUND.json: jobs are {"run", "out", "size"?, "options"?, …}; what each came to is
{"codes": of the last start, by rank, "kills", "drawn": [first image, count] of every batch, "noise": digest by purpose and
image, "again": images drawn though they were safe}. stream: `out` is written as a stream. leave: of a stream, read so many
bytes and close. kills: so many times a process gets SIGKILL, and the job is started anew. told: [signal, images] for the
last process when so many are drawn. fails: the rank that can't draw its third batch. guide: a checkpoint that guides.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
import group
from harness import heard
from typed_settings import typed

from elbocli.core import streams
from elbocli.core.sampling import Guidance
from elbocli.core.streams import Stream
from elbocli.errors import DataError
from elbocli.files.checkpoint import read_config
from elbocli.run.open import empty_network
from elbocli.runtime.processes import World
from elbocli.sample import draw as sample

LOG = Path(sys.argv[2] + ".log")


def log(**line: Any) -> None:
    """One line that no other process's writing mixes with."""
    handle = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (json.dumps(line) + "\n").encode())
    os.close(handle)


class Noted(Stream):
    """Tells of all noise that is drawn."""

    def __init__(self, seed: int, purpose: str):
        super().__init__(seed, purpose)
        self.purpose = purpose

    def normal(self, indices: Any, shape: Any) -> Any:
        rows = super().normal(indices, shape)
        if self.purpose == "sample-1":
            log(drawn=[indices[0], len(indices)])
        log(
            noise={f"{self.purpose} {i}": hashlib.sha256(row.numpy()).hexdigest()[:16] for i, row in zip(indices, rows)}
        )
        return rows


def safe(job: dict[str, Any]) -> int:
    """Images that a start of the job goes on after."""
    try:
        return int(json.loads(Path(job["out"] + ".partial.json").read_text())["rows"])
    except FileNotFoundError:
        return 0


def work(world: World, job: dict[str, Any]) -> None:
    """As `elbo sample` does it."""
    streams.Stream = Noted  # type: ignore[misc]
    if job.get("fails") == world.rank:
        whole, calls = sample.draw, []

        def draw(*args: Any) -> Any:
            calls.append(0)
            if len(calls) == 3:
                raise DataError("the disk is on fire")
            return whole(*args)

        sample.draw = draw  # type: ignore[assignment]
    options = {"n": 61, "steps": 4, "batch": 5, "device": "cpu", **job.get("options", {})}
    if "guide" in job:
        options |= {"guide": Path(job["guide"]), "guidance": Guidance(2.0)}
    target: Any = Path(job["out"])
    if "leave" in job:
        out, into = os.pipe()
        target = open(into, "wb")  # noqa: SIM115
        if world.first and os.fork() == 0:
            target.close()
            os.read(out, job["leave"])
            os._exit(0)
        os.close(out)
    elif job.get("stream"):
        target = open(target, "wb") if world.first else None  # noqa: SIM115
    number, after = job.get("told", ["SIGTERM", 1 << 40])
    with leaving_quietly(), contextlib.ExitStack() as opened:
        if hasattr(target, "close"):
            opened.callback(target.close)

        def told(done: int, *rest: Any) -> None:
            if world.rank == world.size - 1 and done >= after * options["steps"]:
                os.kill(os.getpid(), signal.Signals[number])

        with heard(told) as lines:
            try:
                sample.draw_samples(Path(job["run"]), target, typed(**options), world)
            finally:
                if world.first:
                    print("\n".join(lines), file=sys.stderr)


@contextlib.contextmanager
def leaving_quietly() -> Iterator[None]:
    """When nobody reads any more, as the command line does."""
    try:
        yield
    except BrokenPipeError:
        os._exit(141)


def ending(child: int) -> bool:
    """Whether it has ended, and is still to be waited for."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def started(job: dict[str, Any], rng: random.Random, kill: bool) -> list[int]:
    """One start, perhaps ended by a kill: when some more images are safe, or a little later."""
    before = safe(job)
    children = group.started(job.get("size", 1), lambda world: work(world, job))
    if kill:
        aim = before + rng.randint(1, 7)
        while safe(job) < aim and not ending(children[0]):
            time.sleep(0.001)
        time.sleep(rng.choice([0, 0.002, 0.005, 0.01]))
        os.kill(rng.choice(children), signal.SIGKILL)
    return group.ended(children, 20)


def finished(job: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """All starts of a job."""
    kills, again = 0, 0
    found: dict[str, Any] = {"drawn": [], "noise": {}}
    while True:
        before = safe(job)
        LOG.unlink(missing_ok=True)
        codes = started(job, rng, kills < job.get("kills", 0))
        for line in LOG.read_text().splitlines() if LOG.exists() else []:
            for kind, value in json.loads(line).items():
                if kind == "noise":
                    assert all(found["noise"].get(key, digest) == digest for key, digest in value.items())
                    found["noise"] |= value
                else:
                    found["drawn"].append(value)
                    again += value[0] < before
        if -signal.SIGKILL not in codes:
            return {**found, "codes": codes, "kills": kills, "again": again}
        kills += 1


if __name__ == "__main__":
    jobs = json.loads(Path(sys.argv[1]).read_text())
    empty_network(read_config(Path(jobs[0]["run"])), Path())  # imports what takes every start 2 s otherwise
    Path(sys.argv[2]).write_text(json.dumps([finished(job, random.Random(7)) for job in jobs]))
