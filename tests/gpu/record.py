"""The record of a session on a card: what each step found, as JSON that is rewritten as it comes, and as a table."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

DONE, FAILED, LATE, SKIPPED = "done", "failed", "timed out", "skipped"


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
    """A step's rows and how it ended. status: one of DONE, FAILED, LATE, SKIPPED. message: why it is not DONE."""

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
            lines.append(
                f"{step.name}: {step.status}, {step.seconds:.1f} s{f': {step.message}' if step.message else ''}"
            )
            for row in step.rows:
                bad = "" if row.ok else "  NOT AS IT MUST BE"
                note = f"  ({row.note})" if row.note else ""
                lines.append(f"  {row.name:<58} {row.text:>12} {row.unit:<9}{note}{bad}".rstrip())
        return "\n".join(lines)
