"""Everything that decides a training run, resolved from options, preset and dataset."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from elbocli.core.adaptive import check_floor
from elbocli.core.averages import canonical, parse_average
from elbocli.core.logsnr import resolution_shift
from elbocli.core.prediction import Prediction
from elbocli.core.registry import number
from elbocli.core.schedule import Schedule, check_range
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.streams import T_SAMPLINGS
from elbocli.core.weighting import Weighting
from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import PREPROCESSING
from elbocli.files.dataset_block import LATENTS
from elbocli.files.hashing import file_sha256
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.nn.networks import NetworkConfig, config_of, section_of
from elbocli.nn.presets import Preset, choose_preset, load_preset
from elbocli.runtime.device import PRECISIONS

ADAPTIVE = "adaptive"
WRITTEN: dict[type, tuple[type, ...]] = {float: (int, float), tuple: (list, str, int, float)}
"""How a file may write values of a kind, where it is not only as itself."""


@dataclass(frozen=True)
class TrainSettings:
    """Names are those of the options of `elbo train`. FREE ones may change when a run goes on.

    milestone_every: steps; 0 is no milestones. time_limit: seconds of one start of the run; 0 is no limit.
    val: path of another dataset. val_split, val_images: images, val_every: images of training; 0 is none, all, often
    enough. max_skips: updates left out in a row, because loss or gradient was not finite, before the run stops.
    """

    preset: str = ""
    weighting: str = "sigmoid"
    schedule: str = "cosine"
    prediction: str = "v"
    logsnr_min: float = -15.0
    logsnr_max: float = 15.0
    t_sampling: str = T_SAMPLINGS[0]
    steps: int = 100_000
    batch: int = 256
    lr: float = 1e-4
    warmup: int = 1000
    weight_decay: float = 0.0
    beta2: float = 0.999
    adam_eps: float = 1e-8
    clip: float = 1.0
    ema: tuple[str, ...] = ("0.9999",)
    label_dropout: float = 0.1
    flip: bool = False
    precision: str = "fp32"
    tf32: bool = True
    compile: bool = False
    device: str = "auto"
    seed: int = 0
    floor: float = 0.01
    multiscale: bool = False
    log_every: int = 100
    save_every: int = 1000
    preview_every: int = 5000
    snapshot_every: int = 0
    keep: int = 2
    milestone_every: int = 0
    time_limit: float = 0.0
    on_nonfinite: str = "stop"
    max_skips: int = 10
    on_checkpoint: str = ""
    val: str = ""
    val_split: int = 0
    val_every: int = 0
    val_images: int = 0
    tensorboard: bool = False
    parallel: str = "ddp"
    micro_batch: int = 0
    activation_checkpointing: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "ema", canonical(self.ema))

    def weighting_object(self) -> Weighting:
        """w(λ)."""
        return resolve_weighting(self.weighting)

    def schedule_object(self) -> Schedule | None:
        """λ(t); None when it adapts online."""
        if self.schedule == ADAPTIVE:
            return None
        return resolve_schedule(self.schedule, self.logsnr_min, self.logsnr_max)

    def prediction_object(self) -> Prediction:
        """What the network outputs."""
        return Prediction.parse(self.prediction)


PARALLELS = ("ddp", "fsdp")
"""Every process holds the whole network, or its share of each weight."""
CHOICES: dict[str, Collection[str]] = {
    "t_sampling": T_SAMPLINGS,
    "precision": PRECISIONS,
    "parallel": PARALLELS,
    "on_nonfinite": ("stop", "skip"),
}
AT_LEAST_ONE = ("steps", "batch", "log_every", "save_every", "keep", "max_skips")
NOT_NEGATIVE = (
    *("warmup", "weight_decay", "clip", "seed", "time_limit", "val_split", "val_every", "val_images"),
    *("preview_every", "snapshot_every", "milestone_every"),
)
FREE = (
    *("steps", "save_every", "preview_every", "snapshot_every", "keep", "milestone_every", "on_checkpoint"),
    *("device", "tf32", "compile", "parallel", "micro_batch", "activation_checkpointing"),
    *("time_limit", "on_nonfinite", "max_skips"),
    *("val", "val_every", "val_images", "tensorboard"),
)
PLACES = ("path", ATTRIBUTES["autoencoder"], *PREPROCESSING)
"""What of the dataset may be elsewhere or unsaid when a run goes on: digests say whether it is the same."""
STORED = ("power:std=0.05", "power:std=0.1")
"""The profiles whose snapshots are kept when none is asked for: those of arXiv:2312.02696."""
SNAPSHOTS = 20
"""In a whole run, when --snapshot-every isn't given."""
NAMES = tuple(field.name for field in fields(TrainSettings))
OLD: dict[str, dict[str, Any]] = {"settings": asdict(TrainSettings()), "network": {"family": "unet"}}
"""What runs of earlier versions were without saying so."""
IN_PRESETS = (*(name for name in NAMES if name not in ("preset", "device")), "shift")
"""What a preset may say: settings, but not which preset it is nor where it runs; and a shift, which goes into its weighting."""


@dataclass(frozen=True)
class Resolved:
    """Settings, the network's config, the dataset's identity, and digests of files that settings name."""

    settings: TrainSettings
    network: NetworkConfig
    data: dict[str, Any]
    files: dict[str, str]
    notes: list[str]

    def config(self) -> dict[str, Any]:
        """What config.yaml says."""
        settings = {**asdict(self.settings), "ema": list(self.settings.ema)}
        network = section_of(self.network)
        return {"settings": settings, "network": network, "data": self.data, "files": self.files}


class Data(Protocol):
    """What settings depend on: a Dataset, or what stands for one in a plan."""

    @property
    def path(self) -> Path | str:
        """For messages."""

    @property
    def kind(self) -> str:
        """LATENTS, or how pixels are kept."""

    @property
    def image_size(self) -> int:
        """Side in pixels, or of the latents."""

    @property
    def channels(self) -> int:
        """Of the images, or of the latents."""

    @property
    def num_classes(self) -> int:
        """1 when there are none to tell apart."""

    def __len__(self) -> int: ...

    def identity(self) -> dict[str, Any]:
        """What a run must find again when it resumes."""


def resolve(options: dict[str, Any], dataset: Data) -> Resolved:
    """Options (None where not given) over the preset over the defaults. Raises UsageError.

    Besides the fields of Settings, options may hold: shift (number or 'auto'), monotone, params (of the
    weighting), dropout and conditional (of the network).
    """
    given = {key: value for key, value in options.items() if value is not None}
    notes = []
    name = given.get("preset")
    if name is None:
        name = choose_preset(dataset.image_size, len(dataset), dataset.kind == LATENTS)
        what = "latents a side" if dataset.kind == LATENTS else "pixels"
        notes.append(f"preset {name}, for {len(dataset)} images of {dataset.image_size} {what}")
    preset = load_preset(name)
    train = dict(preset.train)
    unknown = [key for key in train if key not in IN_PRESETS]
    if unknown:
        raise FormatError(f"preset {name}: unknown setting {unknown[0]!r}; known: {', '.join(IN_PRESETS)}")
    _check_kinds(train, f"preset {name}")
    shift = _shift(train.pop("shift", None), given, dataset.image_size, notes)
    values = {**train, **{key: value for key, value in given.items() if key in NAMES}, "preset": str(name)}
    if dataset.kind == LATENTS and values.get("flip"):
        raise UsageError(
            f"--flip: {dataset.path} holds latents, and a mirrored latent is not the latent of the mirror image; "
            "leave it out, and pack both with 'elbo prep --mirror'"
        )
    spec, size = values.get("weighting", TrainSettings.weighting), dataset.image_size
    weighting = resolve_weighting(
        spec, shift=shift, monotone=given.get("monotone", False), given=given.get("params"), size=size
    )
    values |= {"weighting": weighting.spec}
    ranged, schedule = _range(values, given, notes, size)
    values |= ranged
    values |= _averages(values)
    try:
        settings = TrainSettings(**values)
    except TypeError as error:
        raise FormatError(f"preset {name}: {error}") from error
    _check(settings)
    network = _network(preset, given, dataset)
    files = {str(each.file): file_sha256(each.file) for each in (schedule, weighting) if each and each.file}
    return Resolved(settings, network, dataset.identity(), files, notes)


def _check_kinds(written: dict[str, Any], where: object) -> None:
    """Raise FormatError for a setting in a file that isn't of its field's kind, or no finite number."""
    for key in set(written) & set(NAMES):
        kind, value = type(getattr(TrainSettings, key)), written[key]
        if type(value) not in WRITTEN.get(kind, (kind,)) or (isinstance(value, float) and not math.isfinite(value)):
            raise FormatError(f"{where}: {key} is {value!r}, expected {kind.__name__}")


def _shift(preset: Any, given: dict[str, Any], image_size: int, notes: list[str]) -> float:
    """The weighting's shift: as given; else the preset's, which is its own weighting's and not of one given instead."""
    asked = given.get("shift", 0.0 if preset is None else preset)
    if preset is not None and "shift" not in given and "weighting" in given:
        notes.append(f"weighting {given['weighting']} as it is, without the preset's --shift {preset}")
        asked = 0.0
    return resolution_shift(image_size) if asked == "auto" else number(asked, "shift")


def _range(
    values: dict[str, Any], given: dict[str, Any], notes: list[str], size: int
) -> tuple[dict[str, Any], Schedule | None]:
    """The λ range and the schedule's full name, and the schedule. A file brings its own range unless one is given."""
    low, high = values.get("logsnr_min", TrainSettings.logsnr_min), values.get("logsnr_max", TrainSettings.logsnr_max)
    spec = values.get("schedule", TrainSettings.schedule)
    if spec == ADAPTIVE:
        check_range(low, high)
        return {"schedule": spec, "logsnr_min": float(low), "logsnr_max": float(high)}, None
    if spec.partition(":")[0] not in SCHEDULES and "logsnr_min" not in given and "logsnr_max" not in given:
        own = resolve_schedule(spec)
        low, high = own.logsnr_min, own.logsnr_max
        notes.append(f"logsnr from {low:g} to {high:g}, as in {spec}")
    schedule = resolve_schedule(spec, float(low), float(high), size=size)
    return {"schedule": schedule.base, "logsnr_min": float(low), "logsnr_max": float(high)}, schedule


def _averages(values: dict[str, Any]) -> dict[str, Any]:
    """The averages and how often snapshots are kept: power profiles bring snapshots, and snapshots power profiles."""
    specs = canonical(values.get("ema", TrainSettings.ema))
    every = values.get("snapshot_every")
    if every and not any(parse_average(spec).stored for spec in specs):
        specs += STORED
    if every is None:
        stored = any(parse_average(spec).stored for spec in specs)
        every = -(-int(values.get("steps", TrainSettings.steps)) // SNAPSHOTS) if stored else 0
    return {"ema": specs, "snapshot_every": every}


def _check(settings: TrainSettings) -> None:
    for name in AT_LEAST_ONE:
        if getattr(settings, name) < 1:
            raise UsageError(f"{name.replace('_', '-')} is {getattr(settings, name)}; it must be at least 1")
    for name in NOT_NEGATIVE:
        if not 0 <= getattr(settings, name) < math.inf:
            raise UsageError(f"{name.replace('_', '-')} is {getattr(settings, name)}; it must not be negative")
    for name, known in CHOICES.items():
        if getattr(settings, name) not in known:
            raise UsageError(
                f"{name.replace('_', '-')} is {getattr(settings, name)!r}; it must be one of {', '.join(known)}"
            )
    if not 0 <= settings.label_dropout <= 1:
        raise UsageError(f"label-dropout is {settings.label_dropout:g}; it must be at least 0 and at most 1")
    if settings.val and settings.val_split:
        raise UsageError(
            "--val and --val-split: choose one; validation is on another dataset, or on a part of this one"
        )
    if not 0 <= settings.micro_batch <= settings.batch:
        raise UsageError(
            f"micro-batch is {settings.micro_batch}; it must be at least 0 (automatic) and at most the batch, {settings.batch}"
        )
    check_floor(settings.floor)
    for name in ("lr", "adam_eps"):
        if not getattr(settings, name) > 0:
            raise UsageError(f"{name.replace('_', '-')} is {getattr(settings, name):g}; it must be above 0")
    if not 0 <= settings.beta2 < 1:
        raise UsageError(f"beta2 is {settings.beta2:g}; it must be at least 0 and below 1")
    settings.prediction_object()


def _network(preset: Preset, given: dict[str, Any], dataset: Data) -> NetworkConfig:
    """The preset's network for this dataset."""
    classes = dataset.num_classes if given.get("conditional", dataset.num_classes > 1) else 0
    section = {**preset.network, **({"dropout": given["dropout"]} if "dropout" in given else {})}
    made_for = preset.data.image_size if preset.data else dataset.image_size
    fits = {"image_size": made_for, "image_channels": dataset.channels, "num_classes": classes}
    return config_of({**section, **fits}, f"preset {preset.name}").for_size(dataset.image_size)


def difference(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What a resumed run would change that it may not: a line each."""
    lines = []
    for section in ("settings", "network", "data", "files"):
        old, new = {**OLD.get(section, {}), **before.get(section, {})}, now[section]
        if "ema" in old:
            old = {**old, "ema": list(canonical(old["ema"]))}
        for key in sorted({*old, *new}):
            if key in (FREE if section == "settings" else PLACES if section == "data" else ()):
                continue
            if old.get(key) != new.get(key):
                label = "--" + key.replace("_", "-") if section == "settings" else f"{section} {key}"
                lines.append(f"{label}: the run has {old.get(key)}, asked for {new.get(key)}")
    return lines


IDENTITY = ("weighting", "prediction", "logsnr_min", "logsnr_max", "batch", "lr", "seed")
"""Settings by which weights are known to be of this training and not of another; no later version may rename them."""


def trained_as(config: dict[str, Any]) -> dict[str, Any]:
    """What tells a run from others, from its config: for files made of its weights."""
    settings = config["settings"]
    return {**{key: settings.get(key) for key in IDENTITY}, "payload_sha256": config["data"].get("payload_sha256")}


def run_settings(section: dict[str, Any], where: Path) -> TrainSettings:
    """The settings section of a run's config. Raises FormatError."""
    _check_kinds(section, where)
    try:
        return TrainSettings(**section)
    except (TypeError, UsageError) as error:
        raise FormatError(f"{where}: section 'settings' is not a run's: {error}") from error
