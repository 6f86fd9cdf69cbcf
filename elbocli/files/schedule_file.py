"""elbo-schedule: a fitted schedule as YAML, and the way from what a user types to a schedule or weighting.

A schedule is a name, the path of a fitted schedule, or the path of a diffusers scheduler_config.json (which ends
in .json). The latter is a weighting too: the loss of what its network predicts, under its own timesteps.
"""

from __future__ import annotations

import math
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from msgspec import Meta

from elbocli.core.prediction import LIMIT
from elbocli.core.registry import number
from elbocli.core.schedule import Schedule, Table, make_schedule, parse_schedule
from elbocli.core.schedule_curves import SCHEDULES, ScheduleCurve
from elbocli.core.weighting import Weighting, is_foreign_loss, parse_weighting
from elbocli.errors import FormatError
from elbocli.files.reading import read_yaml, reading, yaml_text
from elbocli.files.recognise import instead, refuse_other
from elbocli.files.records import Record, stored
from elbocli.files.scheduler_config import read_config

LARGEST_TABLE = 100_000
Level = Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]
CONFIG = re.compile(r"(?P<path>.*\.json)(?P<words>(?:[:,].*)?)")


class Knot(Record, frozen=True):
    """The level at a time."""

    t: Annotated[float, Meta(ge=0, le=1)]
    logsnr: Level


@stored("schedule.yaml", "elbo-schedule", remedy="; make one with 'elbo adapt'")
class ScheduleFile(Record, frozen=True, kw_only=True):
    """A fitted schedule. about: how it was made: weighting, criterion, …."""

    REST: ClassVar[str] = "about"

    logsnr_min: Level | None
    logsnr_max: Level | None
    about: dict[str, Any] = {}
    knots: Annotated[list[Knot], Meta(min_length=2, max_length=LARGEST_TABLE)]


def to_text(schedule: Schedule, **origin: Any) -> str:
    """The YAML of a tabulated schedule; `origin` says how it was made."""
    curve = schedule.curve
    assert isinstance(curve, Table)
    rows = "".join(
        f"- {{t: {t!r}, logsnr: {lam!r}}}\n" for t, lam in zip(curve.time.tolist(), curve.level.tolist(), strict=True)
    )
    ends = {"logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
    said = ScheduleFile(**ends, about=origin, knots=[]).json()
    del said["knots"]
    return yaml_text(said) + "knots:\n" + rows


def read_table(path: Path) -> tuple[Table, ScheduleFile]:
    """The curve in a schedule file, and all that it says. Raises FormatError."""
    refuse_other(path, "schedule")
    found = ScheduleFile.of(read_yaml(path), path)
    with reading(path):
        return Table([(knot.t, knot.logsnr) for knot in found.knots]), found


def made_for(schedule: Schedule) -> str | None:
    """The sampler and steps that `elbo grid` made a schedule's file for; None where no file says so. Raises FormatError."""
    if schedule.file is None or schedule.file.suffix == ".json":
        return None
    said = read_table(schedule.file)[1].about.get("made_for")
    return said if isinstance(said, str) else None


def resolve_schedule(
    text: str, low: float | None = None, high: float | None = None, *, clip: bool = False, size: int | None = None
) -> Schedule:
    """`cosine`, `edm:mean=-0.4` or the path of a schedule file, truncated to [low, high].

    None takes that end from the schedule; clip cuts the range to what it covers. size: of the images, for a declared
    schedule that has such a parameter and isn't told. Raises ElboError.
    """
    if SCHEDULES.named(text.partition(":")[0]):
        return parse_schedule(text, low, high, clip=clip, size=size)
    path, shift = Path(text), 0.0
    if not path.exists() and ":shift=" in text:
        name, _, words = text.rpartition(":shift=")
        path, shift = Path(name), number(words, "shift")
    if not path.exists():
        if path.suffix or "/" in text:
            raise FormatError(instead(path, "schedule"))
        SCHEDULES.find(text.partition(":")[0])
    curve: ScheduleCurve = read_config(path)[1] if path.suffix == ".json" else read_table(path)[0]
    return make_schedule(curve, str(path), low, high, shift=shift, clip=clip, file=path)


def resolve_weighting(
    text: str,
    *,
    shift: float = 0.0,
    monotone: bool = False,
    given: dict[str, float] | None = None,
    size: int | None = None,
) -> Weighting:
    """A weighting as the user wrote it; whatever names a schedule may name a file. size: as in resolve_schedule.

    Raises ElboError.

    `FILE.json:monotone` is short for `v-mse:monotone@FILE.json`, where the file says what its network predicts.
    """
    named = is_foreign_loss(text) or text.startswith("schedule:")
    config = None if named else CONFIG.fullmatch(text.strip())
    if config:
        prediction, _ = read_config(Path(config["path"]))
        words = config["words"]
        text = f"{prediction}-mse{':' if words else ''}{words[1:]}@{config['path']}"
    schedule = partial(resolve_schedule, size=size)
    return parse_weighting(text, shift=shift, monotone=monotone, given=given, schedule=schedule)


def finite(value: float) -> float | None:
    """JSON has no infinity: null."""
    return value if math.isfinite(value) else None
