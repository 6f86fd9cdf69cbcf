"""Merge a run's settings from all sources, and make the network's config and objective.

Priority of the sources, highest first: options, config.yaml, preset, the run that --init names, defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

from elbocli.core.adaptive import refuse_adaptive
from elbocli.core.averages import canonical, parse_average
from elbocli.core.learning_rate import LR_DECAYS
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction, resolution_shift
from elbocli.core.schedule import Schedule
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import Weighting
from elbocli.errors import UsageError
from elbocli.files.checkpoint import DATA_DIGESTS, RunData
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.plugins import check_plugins, plugins_run
from elbocli.files.reading import file_sha256, reading
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.files.yaml_text import parse_yaml, read_yaml
from elbocli.networks import NetworkConfig, build_empty, config_of, count_parameters, section_of
from elbocli.runs.config import ConfigFile, InitFacts, RunConfig
from elbocli.runs.open import Initial, check_alike
from elbocli.runs.presets import Preset, choose_preset, load_preset
from elbocli.runs.train_settings import ADAPTIVE, PRESET_SETTINGS, SETTINGS, STORED, TrainSettings
from elbocli.runtime import AUTO, PRECISIONS
from elbocli.runtime.device import card_bytes, resolve_device, usual_precision
from elbocli.runtime.progress import log

# Keys of config.yaml's section `data` that may change or be missing when a run resumes; digests identify the dataset.
PLACES = ("path", "from_run", "autoencoder", "class_counts", *PREPROCESSING)
USUAL_AVERAGES = (
    "power:std=0.05",
    "power:std=0.1",
)  # averages for snapshots when --ema names no power average; EDM2, arXiv:2312.02696
SNAPSHOTS = 20  # snapshots in a whole run without --snapshot-every
NETWORK = "network."  # prefix of the network's keys among options, as in network.channels
# Estimated device memory per parameter in bytes: weight, gradient, two optimizer moments, average; doubled for activations.
TRAINED_BYTES = 2 * 5 * 4
Values = dict[str, Any]  # setting → value


def read_options(path: Path | None, options: Mapping[str, Any], words: Sequence[str]) -> tuple[ConfigFile | None, Values]:
    """Merge options of --config, the command line and --set, in rising priority.

    path: YAML file of options or a run's config.yaml; None: no --config.
    options: options of the command line; a value of None or (): not given. words: network.KEY=VALUE or training.KEY=VALUE of --set.
    Returns: (config if the file is a run's config.yaml, else None; merged options by name).
    Raises UsageError, FormatError.
    """
    config = None
    merged = Values()
    content = {} if path is None else read_yaml(path)
    values = {key.replace("-", "_"): value for key, value in content.items() if value is not None}
    if path is not None and values.get("format") == "elbo-run":
        config = ConfigFile(path, RunConfig.of(values, path))
    else:
        words = [*values.pop("set", ()), *words]
        merged = {key: Path(str(values.pop(key))) for key in ("data", "init") if key in values}
        with reading(path, kind=UsageError):  # a file can't set --out
            merged |= TrainSettings.convert(values)
    merged |= {key: value for key, value in options.items() if value not in (None, ())}
    for word in words:
        key, _, value = word.partition("=")
        section, _, name = key.partition(".")
        if section not in ("network", "training") or not (name and value):
            raise UsageError(f"--set {word}: expected network.KEY=VALUE or training.KEY=VALUE")
        merged[key if section == "network" else name] = parse_yaml(f"value: {value}", f"--set {key}")["value"]
    return config, merged


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
            settings=self.settings,
            network=section_of(self.network),
            data=self.data,
            files=self.files,
            init=self.init,
            plugins=plugins_run() or None,
        )


class Merged(NamedTuple):
    """Settings of all sources.

    values: all settings. chosen: those that were chosen for this very run, which nothing adapts to its length.
    network: keys of the network's config among the options.
    refined: whether the weighting is that of a run, whose SPEC includes shift, bias and monotone.
    preset: content of its file; None: not read, because config.yaml or the run of --init was made with the preset.
    """

    values: Values
    chosen: Values
    network: Values
    refined: bool
    preset: Preset | None


def resolve(
    options: Mapping[str, Any], data: Dataset | RunData, existing: ConfigFile | None = None, initial: Initial | None = None
) -> Resolved:
    """Merge a run's settings from all sources; make network config and objective.

    options: settings by name, and network keys such as `network.channels`; a value of None: not given.
    existing: config of the run to resume or of --config; None: neither. initial: run of --init; None: random weights.
    Raises UsageError: options contradict each other or the dataset. Raises FormatError: unusable preset or file.
    """
    if isinstance(data, Dataset):
        data.check_square()
        data = data.identity()
    assert data.image_size
    if initial:
        check_alike(data, initial.data, initial.source)
    if existing:
        check_plugins(existing.config.plugins, existing.path)
    merged = _merge(options, data, existing, initial)
    values = merged.values
    prediction = Prediction(values["prediction"])
    if initial and prediction.spec != initial.prediction.spec:
        raise UsageError(
            f"--prediction {prediction.spec}: {initial.source} outputs {initial.prediction.spec}; leave --prediction out"
        )
    if data.latents and values["flip"]:
        raise UsageError(
            f"--flip: {data.path} holds latents, which can't be mirrored; leave --flip out, and pack by 'elbo prep --mirror'"
        )
    weighting = _weighting(merged, data.image_size, None if existing else initial)
    objective = Objective(weighting, _schedule(merged, data.image_size), prediction)
    settings = _settings(merged, objective, initial)
    curves = objective.schedule, weighting.schedule
    files = {str(curve.file): file_sha256(curve.file) for curve in curves if curve and curve.file}
    init = existing.config.init if existing else None
    if initial and init and init.sha256 == initial.about["weights_sha256"]:  # the run began from these weights
        network = _network(merged, data, existing)
        init = structs.replace(init, run=str(initial.source))  # the run of --init may have moved
    else:
        network = _network(merged, data, existing, initial)
        init = initial.facts(network, data) if initial else init
    return Resolved(settings, network, data, files, objective, init, initial)


def _settings(merged: Merged, objective: Objective, initial: Initial | None) -> TrainSettings:
    # The merged settings, as config.yaml has them: complete SPECs, and numbers for words such as auto.
    values = merged.values
    weighting = objective.weighting
    schedule = objective.schedule
    if values["schedule"] == ADAPTIVE:
        refuse_adaptive(weighting)
    else:
        values = {**values, "schedule": schedule.base}
    weighting.check(schedule.logsnr_min, schedule.logsnr_max)
    values = {
        **values,
        **_averages(values),
        "weighting": weighting.spec,
        "logsnr_min": schedule.logsnr_min,
        "logsnr_max": schedule.logsnr_max,
        "precision": _precision(merged, initial),
        "lr_decay": LR_DECAYS.parse(values["lr_decay"]).spec,
    }
    return TrainSettings(**{key: values[key] for key in STORED})


def _merge(given: Mapping[str, Any], data: RunData, existing: ConfigFile | None, initial: Initial | None) -> Merged:
    given = {key: value for key, value in given.items() if value is not None}
    network = {key.removeprefix(NETWORK): given.pop(key) for key in [*given] if key.startswith(NETWORK)}
    options = TrainSettings.convert(given)
    config = existing.config.settings.stored() if existing else {}
    init = initial.inherited(data) if initial and not existing else {}
    if existing and options.get("precision") == AUTO:  # the run keeps its precision
        del options["precision"]
    name = {**init, **config, **options}.get("preset") or _choose(data, options.get("device", AUTO))
    read = name != config.get("preset") and ("preset" in options or not init)
    preset = _read_preset(name, data, initial) if read else None
    train = preset.train if preset else {}
    chosen = {**({} if preset else init), **config, **options}
    usual = {**TrainSettings().stored(), "snapshot_every": None, **init, **train}
    values = {**usual, **chosen, "preset": name}
    _pace(values, usual["steps"], chosen)
    if "weighting" in chosen and "shift" not in options:
        values["shift"] = None  # the preset's shift is for the preset's weighting
    refined = "weighting" not in options and ("weighting" in config or "weighting" in init.keys() - train.keys())
    return Merged(values, chosen, network, refined, preset)


def _pace(values: Values, usual_steps: int, chosen: Values) -> None:
    # In a run shorter than usual, updates between events shrink in proportion.
    changes = []
    for key, setting in SETTINGS.items():
        if setting.paced and key not in chosen and values[key]:
            usual = values[key]
            values[key] = max(1, round(usual * min(1, values["steps"] / usual_steps)))
            if values[key] != usual:
                changes.append(f"--{key.replace('_', '-')} {usual} to {values[key]}")
    if changes:
        log.info("--steps %d instead of %d also changes %s", values["steps"], usual_steps, ", ".join(changes))


def _read_preset(name: str, data: RunData, initial: Initial | None) -> Preset:
    # Its settings are converted.
    preset = load_preset(name)
    if preset.data and preset.data.kind and not data.latents:
        raise UsageError(f"--preset {name} is for latents, and {data.path} holds pixels; pack latents with 'elbo prep --latents'")
    with reading(f"preset {name}"):
        train = TrainSettings.convert(preset.train, PRESET_SETTINGS)
    if initial:
        train.pop("prediction", None)  # a network with weights keeps its prediction
    return structs.replace(preset, train=train)


def _choose(data: RunData, device: str) -> str:
    room = card_bytes(device)
    assert data.image_size and data.channels and data.count

    def fits(name: str) -> bool:
        if room is None:
            return True
        network = _fitted(_preset_network(load_preset(name), data), name, data, data.num_classes or 0)
        return TRAINED_BYTES * count_parameters(build_empty(network)) <= room

    on_gpu = resolve_device(device) != "cpu"
    name = choose_preset(data.image_size, data.channels, data.count, data.latents, on_gpu, fits)
    log.info("preset %s, chosen for a dataset of %d images of side %d", name, data.count, data.image_size)
    return name


def _precision(merged: Merged, initial: Initial | None) -> str:
    if merged.values["precision"] != AUTO:
        return str(merged.values["precision"])
    half = bool(initial and initial.settings.precision in PRECISIONS[2:])
    return usual_precision(merged.values["device"], merged.preset.about.gpu if merged.preset else half)


def _weighting(merged: Merged, size: int, source: Initial | None) -> Weighting:
    # source: the run of --init if settings are inherited from it.
    values = merged.values
    spec = values["weighting"]
    shift = values.get("shift")
    moved = resolution_shift(size) if shift == AUTO else shift or 0.0
    if merged.refined and shift is not None:
        moved -= resolve_weighting(spec).shift  # --shift replaces the spec's shift, which may come from the same option
    elif merged.refined and source:
        moved = resolution_shift(size) - resolution_shift(source.network.config.image_size)
    bias = {} if values.get("bias") is None else {"bias": values["bias"]}
    return resolve_weighting(spec, shift=moved, monotone=bool(values.get("monotone")), given=bias, size=size)


def _schedule(merged: Merged, size: int) -> Schedule:
    # A schedule file's own range of λ applies unless a range was chosen.
    spec = merged.values["schedule"]
    ends = (merged.values["logsnr_min"], merged.values["logsnr_max"])
    if spec == ADAPTIVE:
        spec = "uniform"
    if {"logsnr_min", "logsnr_max"}.isdisjoint(merged.chosen) and SCHEDULES.lookup(spec.partition(":")[0]) is None:
        ends = None, None
    return resolve_schedule(spec, *ends, size=size)


def _averages(values: Values) -> Values:
    specs = canonical(values["ema"])
    every = values["snapshot_every"]
    stored = any(parse_average(spec).stored for spec in specs)
    if every and not stored:
        specs += USUAL_AVERAGES
    if every is None:
        every = -(-values["steps"] // SNAPSHOTS) if stored else 0
    return {"ema": specs, "snapshot_every": every}


def _network(merged: Merged, data: RunData, existing: ConfigFile | None, initial: Initial | None = None) -> NetworkConfig:
    # The config comes from `initial`, the run that has the first weights; from the preset; or from config.yaml.
    if initial:
        where = str(initial.source)
        section = section_of(initial.network.config)
    elif merged.preset:
        where = f"preset {merged.values['preset']}"
        section = _preset_network(merged.preset, data)
    else:
        assert existing
        where = str(existing.path)
        section = existing.config.network
    if merged.network.get("family") not in (None, section.get("family")):  # the other settings are those of the preset's family
        section = {key: value for key, value in section.items() if key in ("image_size", "num_classes")}
    classes = data.num_classes or 0
    conditional = merged.values.get("conditional")
    if conditional is None:
        several = classes > 1
        conditional = section.get("num_classes", several) and (several or not initial)
    return _fitted({**section, **merged.network}, where, data, classes if conditional else 0)


def _preset_network(preset: Preset, data: RunData) -> dict[str, Any]:
    return {**preset.network, "image_size": preset.data.image_size if preset.data else data.image_size}


def _fitted(section: dict[str, Any], where: object, data: RunData, classes: int) -> NetworkConfig:
    config = config_of({"num_classes": classes, **section, "image_channels": data.channels}, where)
    assert data.image_size
    return config.for_classes(classes).for_size(data.image_size)


def difference(had_run: RunConfig, asked_for: RunConfig) -> list[str]:
    """Return a line per setting that differs, but must not change on resuming."""
    unknown = {key: None for key in DATA_DIGESTS if getattr(had_run.data, key) is None}
    had = _fixed(had_run)
    asked = _fixed(structs.replace(asked_for, data=structs.replace(asked_for.data, **unknown)))
    changed = sorted(key for key in had | asked if had.get(key) != asked.get(key))
    return [f"{key}: the run has {had.get(key)}, asked for {asked.get(key)}" for key in changed]


def _fixed(config: RunConfig) -> dict[str, Any]:
    # Settings that must not change on resuming: name for messages → value.
    settings = config.settings.stored()
    if settings["precision"] == "tf32":  # allow a run to move between CPU and CUDA
        settings["precision"] = "fp32"
    sections = {
        "network": section_of(config_of(config.network, "config.yaml")),
        "data": {key: value for key, value in config.data.json().items() if key not in PLACES},
        "files": config.files,
    }
    return {
        **{f"--{key.replace('_', '-')}": value for key, value in settings.items() if not SETTINGS[key].free},
        **{f"{section} {key}": value for section, values in sections.items() for key, value in values.items()},
        "--init": config.init and f"weights of sha256 {config.init.sha256}",
        "--plugin": ", ".join(map(str, config.plugins or [])) or None,
    }
