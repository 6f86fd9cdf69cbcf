"""Read schedules and weightings from schedule files and diffusers' scheduler_config.json."""

import math
import re
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta, Struct

from elbocli.core.prediction import LIMIT
from elbocli.core.registry import number
from elbocli.core.schedule import Schedule, Table, make_schedule, parse_schedule
from elbocli.core.schedule_curves import (
    BETAS,
    MOST_TIMESTEPS,
    SCHEDULES,
    FmOt,
    ScheduleCurve,
    Shifted,
    Steps,
    logsnr_of_betas,
)
from elbocli.core.weighting import Weighting, is_foreign_loss, parse_weighting
from elbocli.errors import FormatError
from elbocli.files.reading import reading
from elbocli.files.recognise import expect, wrong_kind
from elbocli.files.records import ExtraKeys, Record, convert, read_json, stored
from elbocli.files.yaml_text import read_yaml, yaml_text

LARGEST_TABLE = 100_000
CONFIG = re.compile(r"(?P<path>.*\.json)(?P<words>(?:[:,].*)?)")
TARGETS = {
    "epsilon": "eps",
    "sample": "x",
    "v_prediction": "v",
    "flow_prediction": "u",
}  # prediction: name in diffusers → name in elbo
Level = Annotated[float, Meta(ge=-LIMIT, le=LIMIT)]
Positive = Annotated[float, Meta(gt=0)]
Beta = Annotated[float, Meta(gt=0, lt=1)]


class Knot(Record):
    """Knot of a schedule: `logsnr` at time `t`."""

    t: Annotated[float, Meta(ge=0, le=1)]
    logsnr: Level


@stored("schedule.yaml", "elbo-schedule", remedy="; make one with 'elbo adapt'")
class ScheduleFile(Record, kw_only=True):
    """Schedule file. logsnr_min, logsnr_max: limits of the schedule, for `elbo info` only. about: how the schedule was made."""

    logsnr_min: Level | None
    logsnr_max: Level | None
    about: ExtraKeys = {}
    knots: Annotated[list[Knot], Meta(min_length=2, max_length=LARGEST_TABLE)]


def to_text(schedule: Schedule, **origin: object) -> str:
    """Return a tabulated schedule as text of a schedule file. origin: how the schedule was made."""
    curve = schedule.curve
    assert isinstance(curve, Table)
    knots = zip(curve.time.tolist(), curve.level.tolist(), strict=True)
    rows = "".join(f"- {{t: {t!r}, logsnr: {lam!r}}}\n" for t, lam in knots)
    ends = {"logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
    return yaml_text({**ScheduleFile.head(), **ends, **origin}) + "knots:\n" + rows


def read_table(path: Path) -> tuple[Table, ScheduleFile]:
    """Read a schedule file: the curve t → λ, and all content. Raises FormatError."""
    expect(path, "a schedule")
    file = ScheduleFile.of(read_yaml(path), path)
    with reading(path):
        return Table([(knot.t, knot.logsnr) for knot in file.knots]), file


class SchedulerConfig(Struct, frozen=True, rename={"class_name": "_class_name"}):
    """Keys of diffusers' scheduler_config.json that elbo reads."""

    # Settings of the sampler are not read: they don't change the objective.
    class_name: str = ""
    prediction_type: Literal["epsilon", "sample", "v_prediction", "flow_prediction"] | None = None
    num_train_timesteps: Annotated[int, Meta(ge=2, le=MOST_TIMESTEPS)] | None = None
    trained_betas: Annotated[list[Beta], Meta(min_length=2, max_length=MOST_TIMESTEPS)] | None = None
    beta_schedule: str | None = None
    beta_start: Positive | None = None
    beta_end: Positive | None = None
    snr_shift_scale: Positive = 1.0
    rescale_betas_zero_snr: bool | None = None
    use_flow_sigmas: bool | None = None
    use_dynamic_shifting: bool | None = None
    shift: Positive = 1.0
    flow_shift: Positive | None = None


def read_config(path: Path) -> tuple[str, Steps | Shifted]:
    """Return prediction and λ(t) of a scheduler_config.json of diffusers. Raises FormatError."""
    import torch

    config: SchedulerConfig = convert(read_json(path), SchedulerConfig, path)
    flow = config.class_name.startswith("FlowMatch") or config.use_flow_sigmas
    prediction = TARGETS[config.prediction_type or ("flow_prediction" if flow else "epsilon")]
    if config.use_dynamic_shifting:
        raise FormatError(
            f"{path}: use_dynamic_shifting makes the shift depend on the image; "
            "for a constant shift s, use weighting u-mse@fm-ot:shift=S or schedule fm-ot:shift=S instead, with S = -2 log(s)"
        )
    if flow:
        # t′ = s·t/(1 + (s−1)t) on the straight path: (1−t′)/t′ = (1−t)/(s·t), so λ′ = λ − 2 log s.
        return prediction, Shifted(FmOt(), -2 * math.log(config.flow_shift or config.shift))
    with reading(path):
        if config.trained_betas is not None:
            betas = torch.tensor(config.trained_betas, dtype=torch.float64)
        else:
            scale = config.beta_start, config.beta_end, config.num_train_timesteps
            if None in scale:
                raise FormatError(
                    f"{path}: {config.class_name or 'the scheduler'} lacks beta_start, beta_end or num_train_timesteps, so its "
                    "noise levels are unknown; name a schedule, or import with --prediction and --noise-input"
                )
            betas = BETAS.find(str(config.beta_schedule)).make(*scale)
        zero = config.rescale_betas_zero_snr is True
        return prediction, Steps(logsnr_of_betas(betas, snr_scale=config.snr_shift_scale, zero_terminal=zero))


def made_for(schedule: Schedule) -> str | None:
    """Return the use for which `elbo grid` made a schedule, such as 'heun, 18 steps', else None. Raises FormatError."""
    if schedule.file is None or schedule.file.suffix == ".json":
        return None
    purpose = read_table(schedule.file)[1].about.get("made_for")
    return purpose if isinstance(purpose, str) else None


def resolve_schedule(
    text: str, low: float | None = None, high: float | None = None, *, clip: bool = False, size: int | None = None
) -> Schedule:
    """Return the schedule of a SPEC or schedule file, truncated to [low, high].

    low, high: limits of logsnr; None: no truncation.
    clip: reduce [low, high] to the range that the schedule covers.
    size: side of the images in pixels; a size in the SPEC has priority.
    Raises ElboError.
    """
    if SCHEDULES.lookup(text.partition(":")[0]):
        return parse_schedule(text, low, high, clip=clip, size=size)
    path = Path(text)
    shift = 0.0
    if not path.exists() and ":shift=" in text:
        name, _, words = text.rpartition(":shift=")
        path = Path(name)
        shift = number(words, "shift")
    if not path.exists():
        if path.suffix or "/" in text:
            raise FormatError(wrong_kind(path, "a schedule"))
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
    """Return the weighting of a SPEC, which may name a schedule file as its schedule.

    text: the SPEC; `FILE.json:monotone` means `v-mse:monotone@FILE.json` if the network of FILE.json predicts v.
    shift: replace w(λ) by w(λ − shift).
    monotone: hold w constant left of its peak.
    given: parameter of the weighting → value.
    size: as in `resolve_schedule`.
    Raises ElboError.
    """
    config = None if is_foreign_loss(text) else CONFIG.fullmatch(text.strip())
    if config:
        prediction, _ = read_config(Path(config["path"]))
        words = config["words"]
        text = f"{prediction}-mse{':' if words else ''}{words[1:]}@{config['path']}"
    schedule = partial(resolve_schedule, size=size)
    return parse_weighting(text, shift=shift, monotone=monotone, given=given, schedule=schedule)


def finite(value: float) -> float | None:
    """Return `value`, or None if `value` is infinite or NaN."""
    return value if math.isfinite(value) else None
