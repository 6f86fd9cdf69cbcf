"""Steps of `make gpu`: their record as JSON and as a table, and the process that does them one after the other."""

import importlib
import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

DONE = "done"
FAILED = "failed"
LATE = "timed out"
CUT = "cut"
SKIPPED = "skipped"
COMPILING_S = 90.0
"""Seconds that compiling a network is expected to take."""


class Skipped(Exception):
    """A step can't run here, or isn't worth it; the message says why."""


@dataclass(frozen=True)
class Row:
    """A finding. value: a number of `unit`s, or words. ok: False where it is not as it must be."""

    name: str
    value: float | str
    unit: str = ""
    ok: bool = True
    note: str = ""

    def __post_init__(self) -> None:
        """Refuse what JSON has no word for, where it is made: the report must never fail to be written."""
        if type(self.ok) is not bool or not isinstance(self.value, (int, float, str)):
            raise TypeError(f"{self.name}: {self.value!r}, ok {self.ok!r}: plain numbers and words, and a bool, please")

    @property
    def text(self) -> str:
        """The value for people."""
        return self.value if isinstance(self.value, str) else f"{self.value:.4g}"


@dataclass
class StepResult:
    """A step's rows and how it ended. status: one of DONE, FAILED, LATE, CUT, SKIPPED. message: why it is not DONE."""

    name: str
    status: str = SKIPPED
    seconds: float = 0.0
    message: str = ""
    rows: list[Row] = field(default_factory=list)


@dataclass
class Report:
    """All steps so far, in their order. small: run to see that it runs, and no measurement."""

    device: str
    small: bool
    budget_s: float
    started: str
    steps: list[StepResult] = field(default_factory=list)
    format: str = "elbo-gpu"
    version: int = 1

    @property
    def failed(self) -> list[str]:
        """Names of steps that are not as they must be."""
        return [step.name for step in self.steps if step.status in (FAILED, LATE)]

    def write(self, path: Path) -> None:
        """Replace the file at once, so that whoever stops this finds all steps before."""
        aside = path.with_name(path.name + ".new")
        aside.write_text(json.dumps(asdict(self), indent=1) + "\n")
        aside.replace(path)

    def table(self) -> str:
        """All of it for people."""
        lines = [f"device {self.device}{', small: no measurement' if self.small else ''}, started {self.started}"]
        for step in self.steps:
            lines.append("")
            lines.append(f"{step.name}: {step.status}, {step.seconds:.1f} s{f': {step.message}' if step.message else ''}")
            for row in step.rows:
                bad = "" if row.ok else "  NOT AS IT MUST BE"
                note = f"  ({row.note})" if row.note else ""
                lines.append(f"  {row.name:<58} {row.text:>12} {row.unit:<9}{note}{bad}".rstrip())
        return "\n".join(lines)


def page_table(reports: list[dict[str, Any]]) -> str:
    """A row for each step and a column for each card, as Markdown. A card's later reports fill in what its earlier ones lack."""
    cards = dict[str, dict[str, str]]()
    for report in reports:
        facts = {row["name"]: row["value"] for step in report["steps"] if step["name"] == "environment" for row in step["rows"]}
        cells = cards.setdefault("CPU, small: no measurement" if report["small"] else facts.get("card", "unknown card"), {})
        for name, status, rows in ((step["name"], step["status"], step["rows"]) for step in report["steps"]):
            speeds = [f"{row['value']:.4g} {row['unit']}" for row in rows if row["unit"] in ("images/s", "GB")]
            speeds = speeds if any("images/s" in speed for speed in speeds) else []
            if name != "environment" and (status != SKIPPED or name not in cells):
                cells[name] = ", ".join(speeds + [status] * (status != DONE or not speeds))
    names = dict.fromkeys(name for cells in cards.values() for name in cells)
    lines = [["step", *cards], ["---"] * (1 + len(cards))]
    lines += [[name, *(cells.get(name, "") for cells in cards.values())] for name in names]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if cards else "No card has run elbo yet."


@dataclass(frozen=True)
class Session:
    """Facts that a step is told. device: cpu or cuda. small: do the least. until: when to be done, on time.monotonic's clock.

    folder: for files; later steps find what earlier ones left there. beside: the report's path without its ending, for files
    that stay.
    """

    device: str
    small: bool
    until: float
    folder: Path
    beside: Path = Path("gpu")

    @property
    def left(self) -> float:
        """Seconds that are left."""
        return self.until - time.monotonic()


@dataclass(frozen=True)
class Step:
    """A step by name. function: MODULE.FUNCTION, (Session, *arguments) → rows. fresh: in a process of its own.

    seconds: expected on a card, without compiling. compiles: whether kernels are compiled that no step before has compiled.
    """

    name: str
    function: str
    seconds: float
    arguments: tuple[str, ...] = ()
    fresh: bool = False
    compiles: bool = False

    @property
    def group(self) -> str:
        """The name without the way."""
        return self.name.partition(":")[0]

    def limit(self, left: float) -> float:
        """Seconds after which the step is ended, of those that are left; 0 if they are too few to begin it."""
        expected = self.seconds + COMPILING_S * self.compiles
        return min(2 * expected + 30, left) if left >= expected / 2 else 0.0


End = tuple[str, str]
"""(status, message) of a step."""


def _worked(connection: Connection) -> None:
    """Do the steps that are asked for. Standard output is for the table; what a step starts ends with this process."""
    os.setsid()
    os.dup2(2, 1)
    while True:
        try:
            step, session = connection.recv()
        except EOFError:
            return
        connection.send(_done(step, session, connection.send))


def _done(step: Step, session: Session, send: Callable[[Row], None]) -> End:
    module, _, name = step.function.rpartition(".")
    try:
        rows: Iterator[Row] = getattr(importlib.import_module(module), name)(session, *step.arguments)
        bad = []
        for row in rows:
            send(row)
            bad += [] if row.ok else [row.name]
    except Skipped as reason:
        return SKIPPED, str(reason)
    except Exception as error:
        traceback.print_exc()
        return FAILED, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return (FAILED, f"not as it must be: {', '.join(bad)}") if bad else (DONE, "")


class Worker:
    """A process that does steps, begun when there is one to do, and ended when one has gone wrong."""

    def __init__(self, device: str) -> None:
        # What has seen a CUDA device can't be forked.
        self._context: Any = get_context("fork" if device == "cpu" else "spawn")
        self._process: BaseProcess = None
        self._connection: Connection = None

    def close(self) -> None:
        """End the process, and all that it has started."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.kill()  # one that did not lead its group yet
            self._process.join()
            self._connection.close()
        self._process = None

    def run(self, step: Step, session: Session, limit: float, result: StepResult, save: Callable[[], None]) -> None:
        """Do a step in at most `limit` seconds, and fill in its result as rows come. save: called after each."""
        begun = time.monotonic()
        if step.fresh:
            self.close()
        if self._process is None:
            self._connection, theirs = self._context.Pipe()
            self._process = self._context.Process(target=_worked, args=(theirs,), daemon=False)
            self._process.start()
            theirs.close()
        self._connection.send((step, session))
        result.status = LATE
        result.message = f"did not end within {limit:.0f} s"
        try:
            while self._connection.poll(max(0.0, begun + limit - time.monotonic())):
                found = self._connection.recv()
                if not isinstance(found, Row):
                    result.status, result.message = found
                    break
                result.rows.append(found)
                result.seconds = time.monotonic() - begun
                save()
        except (EOFError, ConnectionResetError):
            self._process.join()
            result.status = FAILED
            result.message = f"its process ended with {self._process.exitcode}"
        result.seconds = time.monotonic() - begun
        if step.fresh or result.status in (FAILED, LATE):
            self.close()
        save()
