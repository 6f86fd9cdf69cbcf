"""Merge a run's settings from all sources, and make the network's config and objective.

Priority of the sources, highest first: options, config.yaml, preset, the run that --init names, defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec import structs

from elbocli.core.adaptive import refuse_adaptive
from elbocli.core.averages import canonical, parse_average
from elbocli.core.learning_rate import LR_DECAYS
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction, resolution_shift
from elbocli.core.schedule import Schedule, check_range, parse_schedule
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.checkpoint import CONFIG, DATA_DIGESTS, InitFacts, RunConfig, RunData
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.plugins import check_plugins, plugins_run
from elbocli.files.reading import file_sha256, reading
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.files.yaml_text import parse_yaml, read_yaml
from elbocli.nn.networks import NetworkConfig, build_empty, config_of, count_parameters, section_of
from elbocli.nn.presets import Preset, PresetAbout, choose_preset, load_preset
from elbocli.run.train_settings import ADAPTIVE, PACED, PRESET_SETTINGS, SETTINGS, TrainSettings, convert_settings
from elbocli.runtime import AUTO, PRECISIONS
from elbocli.runtime.device import card_bytes, meant_by, usual_precision
from elbocli.runtime.progress import log

if TYPE_CHECKING:
    from elbocli.run.open import Initial

# Keys of config.yaml's section `data` that may change or be missing when a run resumes; digests identify the dataset.
PLACES = ("path", "from_run", "autoencoder", "class_counts", *PREPROCESSING)
STORED = ("power:std=0.05", "power:std=0.1")  # averages for snapshots when --ema names no power average; EDM2, arXiv:2312.02696
SNAPSHOTS = 20  # snapshots in a whole run without --snapshot-every
NETWORK = "network."  # prefix of the network's keys among options, as in network.channels
# Estimated device memory per parameter in bytes: weight, gradient, two optimizer moments, average; doubled for activations.
TRAINED_BYTES = 2 * 5 * 4


class Known(NamedTuple):
    """Config of the run to resume, or of --config. where: path of the config."""

    where: Path
    config: RunConfig


def read_options(path: Path | None, options: Mapping[str, Any], words: Sequence[str]) -> tuple[Known | None, dict[str, Any]]:
    """Merge options of --config, the command line and --set, in rising priority.

    path: YAML file of options or a run's config.yaml; None: no --config.
    options: options of the command line; a value of None or (): not given. words: network.KEY=VALUE or training.KEY=VALUE of --set.
    Returns: (config if the file is a run's config.yaml, else None; merged options by name).
    Raises UsageError, FormatError.
    """
    known, found = None, dict[str, Any]()
    content = {} if path is None else read_yaml(path)
    values = {key.replace("-", "_"): value for key, value in content.items() if value is not None}
    if path is not None and values.get("format") == "elbo-run":
        known = Known(path, RunConfig.of(values, path))
    else:
        words = [*values.pop("set", ()), *words]
        found = {key: Path(str(values.pop(key))) for key in ("data", "init") if key in values}
        with reading(path, kind=UsageError):  # a file can't set --out or --on-checkpoint
            found |= convert_settings(values)
    found |= {key: value for key, value in options.items() if value not in (None, ())}
    for word in words:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        if section not in ("network", "training") or not (name and value):
            raise UsageError(f"--set {word}: expected network.KEY=VALUE or training.KEY=VALUE")
        found[key if section == "network" else name] = parse_yaml(f"value: {value}", f"--set {key}")["value"]
    return known, found


def preset_data(preset: str) -> RunData | None:
    """Return the description of the dataset that a preset was made for; None: not stated. Raises UsageError, FormatError."""
    data = load_preset(preset).data
    if data is None:
        return None
    more = {"latent_convention": None} if data.kind else {}
    return RunData(f"preset {preset}", None, data.images, data.image_size, data.channels, data.classes, more=more)


@dataclass(frozen=True)
class Resolved:
    """Settings, network config and objective of a run.

    files: path of a file in the settings → SHA-256. objective: at the start; an adaptive schedule is then uniform.
    init: origin of the first weights, for config.yaml; None: no --init.
    initial: run that has the first weights; None: no --init, or the run resumes from a checkpoint.
    """

    settings: TrainSettings
    network: NetworkConfig
    data: RunData
    files: dict[str, str]
    objective: Objective
    init: InitFacts | None = None
    initial: Initial | None = None

    def config(self) -> RunConfig:
        return RunConfig(
            settings=self.settings.written(),
            network=section_of(self.network),
            data=self.data,
            files=self.files,
            init=self.init,
            plugins=plugins_run() or None,
        )


def schedule_of(settings: TrainSettings) -> Schedule | None:
    """Return the schedule of the settings; None: adaptive. Raises ElboError."""
    if settings.schedule == ADAPTIVE:
        return None
    return resolve_schedule(settings.schedule, settings.logsnr_min, settings.logsnr_max)


def run_settings(section: Mapping[str, Any], where: Path) -> TrainSettings:
    """Read the settings section of a run's config. where: file, for messages. Raises FormatError."""
    with reading(where):
        return TrainSettings(**convert_settings(section))


def resolve(
    options: Mapping[str, Any], data: Dataset | RunData, known: Known | None = None, initial: Initial | None = None
) -> Resolved:
    """Merge a run's settings from all sources; make network config and objective.

    options: settings by name, and network keys such as `network.channels`; a value of None: not given.
    known: config of the run to resume or of --config; None: neither. initial: run of --init; None: random weights.
    Raises UsageError: options contradict each other or the dataset. Raises FormatError: unusable preset or file.
    """
    given = {key: value for key, value in options.items() if value is not None}
    overrides = {key.removeprefix(NETWORK): given.pop(key) for key in list(given) if key.startswith(NETWORK)}
    asked, own, begun = convert_settings(given), dict[str, Any](), dict[str, Any]()
    if isinstance(data, Dataset):
        data.check_square()
        data = data.identity()
    assert data.image_size
    if initial:
        initial.check_data(data)
    if known:
        check_plugins(known.config.plugins, known.where)
        own = run_settings(known.config.settings, known.where).stored()
        if asked.get("precision") == AUTO:
            del asked["precision"]
    elif initial:
        begun = initial.inherited(data)

    # Layers of settings, each over the one before: defaults, the run of --init, preset, config.yaml, options.
    name = {**begun, **own, **asked}.get("preset") or _choose(data, asked.get("device", AUTO))
    gpu = bool(initial and initial.settings.precision in PRECISIONS[2:])
    if unread := name == own.get("preset") or (begun and "preset" not in asked):
        preset = Preset({}, {}, PresetAbout(gpu=gpu))
    else:
        preset = load_preset(name)
    if preset.data and preset.data.kind and not data.latents:
        raise UsageError(f"--preset {name} is for latents, and {data.path} holds pixels; pack latents with 'elbo prep --latents'")
    with reading(f"preset {name}"):
        train = convert_settings(preset.train, PRESET_SETTINGS)
    if initial:
        train.pop("prediction", None)  # a network with weights keeps its prediction
    said = {**(begun if unread else {}), **own, **asked}
    usual = {**TrainSettings().stored(), "snapshot_every": None, **begun, **train}
    values = {**usual, **said, "preset": name}
    for key in PACED - said.keys():  # numbers of updates, in proportion for runs shorter than usual
        values[key] = usual[key] and max(1, round(usual[key] * min(1, values["steps"] / usual["steps"])))

    # Values that depend on each other, or on the data.
    prediction = Prediction(values["prediction"])
    if initial and prediction.spec != initial.prediction.spec:
        raise UsageError(
            f"--prediction {prediction.spec}: {initial.named} outputs {initial.prediction.spec}; leave --prediction out"
        )
    if values["precision"] == AUTO:
        values["precision"] = usual_precision(values["device"], preset.about.gpu)
    if data.latents and values["flip"]:
        raise UsageError(
            f"--flip: {data.path} holds latents, which can't be mirrored; leave --flip out, and pack by 'elbo prep --mirror'"
        )
    if "shift" in train and "shift" not in asked and "weighting" in said:
        del values["shift"]  # the preset's shift is for the preset's weighting
    full = "weighting" not in asked and bool(own or (begun and "weighting" not in train))
    made_for = initial.network.config.image_size if initial and begun else data.image_size
    weighting = _weighting(values, data.image_size, full, made_for)
    schedule = _schedule(values, {"logsnr_min", "logsnr_max"}.isdisjoint(said), data.image_size)
    weighting.check(values["logsnr_min"], values["logsnr_max"])
    if schedule is None:
        refuse_adaptive(weighting)
    conditional = values.pop("conditional", None)
    values |= {"weighting": weighting.spec, "lr_decay": LR_DECAYS.parse(values["lr_decay"]).spec, **_averages(values)}
    settings = TrainSettings(**values)
    files = {str(each.file): file_sha256(each.file) for each in (schedule, weighting.schedule) if each and each.file}

    # The network's config: from the run of --init, from config.yaml, or from the preset.
    init, where = known.config.init if known else None, f"preset {name}"
    fresh = initial if initial and (init is None or init.sha256 != initial.about["weights_sha256"]) else None
    section, several = _preset_network(preset, data), (data.num_classes or 0) > 1
    if fresh:
        where, section = str(fresh.named), section_of(fresh.network.config)
    elif known and unread:
        where, section = str(known.where), known.config.network
    if conditional is None:
        conditional = section.get("num_classes", several) and (several or not fresh)
    classes = (data.num_classes or 0) if conditional else 0
    network = _network({**section, **overrides}, where, data, classes)
    if fresh:
        init = fresh.facts(settings, network, data)
    elif initial and init:
        init = structs.replace(init, run=str(initial.named))  # the run may have moved
    objective = Objective(weighting, schedule or parse_schedule("uniform", settings.logsnr_min, settings.logsnr_max), prediction)
    return Resolved(settings, network, data, files, objective, init, initial)


def _choose(data: RunData, device: str) -> str:
    room = card_bytes(device)
    assert data.image_size and data.count

    def fits(name: str) -> bool:
        if room is None:
            return True
        network = _network(_preset_network(load_preset(name), data), name, data, data.num_classes or 0)
        return TRAINED_BYTES * count_parameters(build_empty(network)) <= room

    name = choose_preset(data.image_size, data.count, data.latents, meant_by(device) != "cpu", fits)
    log.info("preset %s, chosen for a dataset of %d images of side %d", name, data.count, data.image_size)
    return name


def _preset_network(preset: Preset, data: RunData) -> dict[str, Any]:
    return {**preset.network, "image_size": preset.data.image_size if preset.data else data.image_size}


def _network(section: dict[str, Any], where: object, data: RunData, classes: int) -> NetworkConfig:
    config = config_of({"num_classes": classes, **section, "image_channels": data.channels}, where)
    assert data.image_size
    return config.for_classes(classes).for_size(data.image_size)


def _weighting(values: dict[str, Any], size: int, full: bool, made_for: int) -> Weighting:
    # Removes shift, bias and monotone from `values`. full: the SPEC already includes them, as in a config.yaml.
    # size, made_for: image side in pixels, of the data and of the SPEC.
    spec, asked, bias = values["weighting"], values.pop("shift", None), values.pop("bias", None)
    shift = resolution_shift(size) if asked == AUTO else asked or 0.0
    if full and asked is not None:
        shift -= resolve_weighting(spec).shift  # --shift replaces the spec's shift, which may come from the same option
    elif full and size != made_for:
        shift = resolution_shift(size) - resolution_shift(made_for)
    given = {} if bias is None else {"bias": bias}
    return resolve_weighting(spec, shift=shift, monotone=bool(values.pop("monotone", False)), given=given, size=size)


def _schedule(values: dict[str, Any], free: bool, size: int) -> Schedule | None:
    # None: adaptive. Puts SPEC and range of λ into `values`. free: no option sets the range, so a schedule file's range applies.
    spec, ends = values["schedule"], (values["logsnr_min"], values["logsnr_max"])
    if spec == ADAPTIVE:
        check_range(*ends)
        return None
    if free and SCHEDULES.named(spec.partition(":")[0]) is None:
        ends = None, None
    schedule = resolve_schedule(spec, *ends, size=size)
    values |= {"schedule": schedule.base, "logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
    return schedule


def _averages(values: dict[str, Any]) -> dict[str, Any]:
    specs, every = canonical(values["ema"]), values["snapshot_every"]
    stored = any(parse_average(spec).stored for spec in specs)
    if every and not stored:
        specs += STORED
    if every is None:
        every = -(-values["steps"] // SNAPSHOTS) if stored else 0
    return {"ema": specs, "snapshot_every": every}


def difference(had_run: RunConfig, asked_for: RunConfig) -> list[str]:
    """Return a line per setting that differs, but must not change on resuming."""
    unknown = {key: None for key in DATA_DIGESTS if getattr(had_run.data, key) is None}
    had, asked = _fixed(had_run), _fixed(structs.replace(asked_for, data=structs.replace(asked_for.data, **unknown)))
    changed = sorted(key for key in had | asked if had.get(key) != asked.get(key))
    return [f"{key}: the run has {had.get(key)}, asked for {asked.get(key)}" for key in changed]


def _fixed(config: RunConfig) -> dict[str, Any]:
    # Settings that must not change on resuming: name for messages → value.
    settings = run_settings(config.settings, Path(CONFIG)).stored()
    if settings["precision"] == "tf32":  # allow a run to move between CPU and CUDA
        settings["precision"] = "fp32"
    sections = {
        "network": section_of(config_of(config.network, "config.yaml")),
        "data": {key: value for key, value in config.data.json().items() if key not in PLACES},
        "files": config.files,
    }
    return {
        **{f"--{key.replace('_', '-')}": value for key, value in settings.items() if not SETTINGS[key].says("free")},
        **{f"{section} {key}": value for section, values in sections.items() for key, value in values.items()},
        "--init": config.init and f"weights of sha256 {config.init.sha256}",
        "--plugin": ", ".join(map(str, config.plugins or [])) or None,
    }
