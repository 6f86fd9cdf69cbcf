"""Merge a run's settings from all sources, and make the network's config and objective.

Priority of the sources, highest first: options, config.yaml, preset, the run that --init names, defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from elbocli.files.checkpoint import DATA_DIGESTS, RunData
from elbocli.files.dataset import PREPROCESSING, Dataset
from elbocli.files.plugins import check_plugins, plugins_run
from elbocli.files.reading import file_sha256, reading
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.files.yaml_text import parse_yaml, read_yaml
from elbocli.nn import auxiliary
from elbocli.nn.networks import NetworkConfig, build_empty, config_of, count_parameters, section_of
from elbocli.nn.presets import Preset, choose_preset, load_preset
from elbocli.run.config import ConfigFile, InitFacts, RunConfig
from elbocli.run.open import Initial
from elbocli.run.train_settings import ADAPTIVE, PACED, PRESET_SETTINGS, SETTINGS, STORED, TrainSettings, convert_settings
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
    config, merged = None, Values()
    content = {} if path is None else read_yaml(path)
    values = {key.replace("-", "_"): value for key, value in content.items() if value is not None}
    if path is not None and values.get("format") == "elbo-run":
        config = ConfigFile(path, RunConfig.of(values, path))
    else:
        words = [*values.pop("set", ()), *words]
        merged = {key: Path(str(values.pop(key))) for key in ("data", "init") if key in values}
        with reading(path, kind=UsageError):  # a file can't set --out or --on-checkpoint
            merged |= convert_settings(values)
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


@dataclass(frozen=True)
class Layers:
    """Settings of a run by source. A source has priority over those below it.

    options: given by the user, on the command line or in the file of --config.
    config: of the config.yaml of the run to resume, or of --config; {}: no such file.
    preset: file of the preset; None: not read, because config.yaml or the run of --init was made with the preset.
    init: inherited from the run of --init; {}: random weights, or a run to resume.
    name: of the preset.
    """

    options: Values
    config: Values
    preset: Preset | None
    init: Values
    name: str

    def source(self, setting: str) -> str:
        """Return the layer that a setting comes from: name of a field, or "" for the default."""
        train = self.preset.train if self.preset else {}
        layers = {"options": self.options, "config": self.config, "preset": train, "init": self.init}
        return next((layer for layer, values in layers.items() if setting in values), "")

    def chosen(self) -> Values:
        """Return the settings that were chosen for this very run, which nothing adapts to its length."""
        return {**({} if self.preset else self.init), **self.config, **self.options}

    def merged(self) -> Values:
        """Return all settings. Numbers of updates that nobody chose shrink in proportion in a run shorter than usual."""
        chosen = self.chosen()
        usual = {**TrainSettings().stored(), "snapshot_every": None, **self.init, **(self.preset.train if self.preset else {})}
        values = {**usual, **chosen, "preset": self.name}
        for key in PACED - chosen.keys():
            values[key] = usual[key] and max(1, round(usual[key] * min(1, values["steps"] / usual["steps"])))
        return values


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
        initial.check_data(data)
    if existing:
        check_plugins(existing.config.plugins, existing.path)
    given = {key: value for key, value in options.items() if value is not None}
    overrides = {key.removeprefix(NETWORK): given.pop(key) for key in [*given] if key.startswith(NETWORK)}
    layers = _layers(convert_settings(given), data, existing, initial)
    values = layers.merged()
    prediction = Prediction(values["prediction"])
    if initial and prediction.spec != initial.prediction.spec:
        raise UsageError(
            f"--prediction {prediction.spec}: {initial.source} outputs {initial.prediction.spec}; leave --prediction out"
        )
    if data.latents and values["flip"]:
        raise UsageError(
            f"--flip: {data.path} holds latents, which can't be mirrored; leave --flip out, and pack by 'elbo prep --mirror'"
        )
    weighting, schedule = _weighting(layers, values, data.image_size, initial), _schedule(layers, values, data.image_size)
    if schedule:
        values |= {"schedule": schedule.base, "logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
    else:
        refuse_adaptive(weighting)
    weighting.check(values["logsnr_min"], values["logsnr_max"])
    values |= {"weighting": weighting.spec, "precision": _precision(layers, values, initial), **_averages(values)}
    values |= {"lr_decay": LR_DECAYS.parse(values["lr_decay"]).spec, "auxiliary": auxiliary.canonical(values["auxiliary"])}
    settings = TrainSettings(**{key: values[key] for key in STORED})
    files = {str(curve.file): file_sha256(curve.file) for curve in (schedule, weighting.schedule) if curve and curve.file}
    begins = _begins(existing, initial)
    network = _network(layers, overrides, values.get("conditional"), data, existing, begins)
    init = begins.facts(settings, network, data) if begins else _recorded_init(existing, initial)
    objective = Objective(weighting, schedule or parse_schedule("uniform", settings.logsnr_min, settings.logsnr_max), prediction)
    return Resolved(settings, network, data, files, objective, init, initial)


def _layers(options: Values, data: RunData, existing: ConfigFile | None, initial: Initial | None) -> Layers:
    config = existing.config.settings.stored() if existing else {}
    init = initial.inherited(data) if initial and not existing else {}
    if existing and options.get("precision") == AUTO:  # the run keeps its precision
        del options["precision"]
    name = {**init, **config, **options}.get("preset") or _choose(data, options.get("device", AUTO))
    if name == config.get("preset") or (init and "preset" not in options):
        return Layers(options, config, None, init, name)
    preset = load_preset(name)
    if preset.data and preset.data.kind and not data.latents:
        raise UsageError(f"--preset {name} is for latents, and {data.path} holds pixels; pack latents with 'elbo prep --latents'")
    with reading(f"preset {name}"):
        train = convert_settings(preset.train, PRESET_SETTINGS)
    if initial:
        train.pop("prediction", None)  # a network with weights keeps its prediction
    return Layers(options, config, structs.replace(preset, train=train), init, name)


def _choose(data: RunData, device: str) -> str:
    room = card_bytes(device)
    assert data.image_size and data.count

    def fits(name: str) -> bool:
        if room is None:
            return True
        network = _fitted(_preset_network(load_preset(name), data), name, data, data.num_classes or 0)
        return TRAINED_BYTES * count_parameters(build_empty(network)) <= room

    name = choose_preset(data.image_size, data.count, data.latents, resolve_device(device) != "cpu", fits)
    log.info("preset %s, chosen for a dataset of %d images of side %d", name, data.count, data.image_size)
    return name


def _precision(layers: Layers, values: Values, initial: Initial | None) -> str:
    if values["precision"] != AUTO:
        return str(values["precision"])
    half = bool(initial and initial.settings.precision in PRECISIONS[2:])
    return usual_precision(values["device"], layers.preset.about.gpu if layers.preset else half)


def _weighting(layers: Layers, values: Values, size: int, initial: Initial | None) -> Weighting:
    # The SPEC of a config.yaml, or of the run of --init, already includes shift, bias and monotone.
    spec, shift = values["weighting"], values.get("shift")
    if layers.source("shift") == "preset" and "weighting" in layers.chosen():
        shift = None  # the preset's shift is for the preset's weighting
    moved = resolution_shift(size) if shift == AUTO else shift or 0.0
    refined = layers.source("weighting") in ("config", "init")
    if refined and shift is not None:
        moved -= resolve_weighting(spec).shift  # --shift replaces the spec's shift, which may come from the same option
    elif refined and initial and layers.init:
        moved = resolution_shift(size) - resolution_shift(initial.network.config.image_size)
    bias = {} if values.get("bias") is None else {"bias": values["bias"]}
    return resolve_weighting(spec, shift=moved, monotone=bool(values.get("monotone")), given=bias, size=size)


def _schedule(layers: Layers, values: Values, size: int) -> Schedule | None:
    # None: adaptive. A schedule file's own range of λ applies unless a range was chosen.
    spec, ends = values["schedule"], (values["logsnr_min"], values["logsnr_max"])
    if spec == ADAPTIVE:
        check_range(*ends)
        return None
    if {"logsnr_min", "logsnr_max"}.isdisjoint(layers.chosen()) and SCHEDULES.lookup(spec.partition(":")[0]) is None:
        ends = None, None
    return resolve_schedule(spec, *ends, size=size)


def _averages(values: Values) -> Values:
    specs, every = canonical(values["ema"]), values["snapshot_every"]
    stored = any(parse_average(spec).stored for spec in specs)
    if every and not stored:
        specs += USUAL_AVERAGES
    if every is None:
        every = -(-values["steps"] // SNAPSHOTS) if stored else 0
    return {"ema": specs, "snapshot_every": every}


def _begins(existing: ConfigFile | None, initial: Initial | None) -> Initial | None:
    # The run of --init, unless config.yaml records that its weights are those that the run began from.
    recorded = existing.config.init if existing else None
    return None if initial and recorded and recorded.sha256 == initial.about["weights_sha256"] else initial


def _recorded_init(existing: ConfigFile | None, initial: Initial | None) -> InitFacts | None:
    recorded = existing.config.init if existing else None
    return structs.replace(recorded, run=str(initial.source)) if recorded and initial else recorded  # the run may have moved


def _network(
    layers: Layers,
    overrides: Values,
    conditional: bool | None,
    data: RunData,
    existing: ConfigFile | None,
    begins: Initial | None,
) -> NetworkConfig:
    # The config comes from the run of --init, from the preset, or from config.yaml.
    if begins:
        where, section = str(begins.source), section_of(begins.network.config)
    elif layers.preset:
        where, section = f"preset {layers.name}", _preset_network(layers.preset, data)
    else:
        assert existing
        where, section = str(existing.path), existing.config.network
    if overrides.get("family") not in (None, section.get("family")):  # the other settings are those of the preset's family
        section = {key: value for key, value in section.items() if key in ("image_size", "num_classes")}
    several = (data.num_classes or 0) > 1
    if conditional is None:
        conditional = section.get("num_classes", several) and (several or not begins)
    return _fitted({**section, **overrides}, where, data, (data.num_classes or 0) if conditional else 0)


def _preset_network(preset: Preset, data: RunData) -> dict[str, Any]:
    return {**preset.network, "image_size": preset.data.image_size if preset.data else data.image_size}


def _fitted(section: dict[str, Any], where: object, data: RunData, classes: int) -> NetworkConfig:
    config = config_of({"num_classes": classes, **section, "image_channels": data.channels}, where)
    assert data.image_size
    return config.for_classes(classes).for_size(data.image_size)


def difference(had_run: RunConfig, asked_for: RunConfig) -> list[str]:
    """Return a line per setting that differs, but must not change on resuming."""
    unknown = {key: None for key in DATA_DIGESTS if getattr(had_run.data, key) is None}
    had, asked = _fixed(had_run), _fixed(structs.replace(asked_for, data=structs.replace(asked_for.data, **unknown)))
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
