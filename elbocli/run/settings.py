"""Everything that decides a training run: settings merged from all that say some, the network for the data, the objective.

Options go over a config.yaml, that over the preset, that over the run that --init names, that over defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from msgspec import structs

from elbocli.core.adaptive import refuse_adaptive
from elbocli.core.prediction import PREDICTIONS, Prediction, resolution_shift
from elbocli.core.schedule import Schedule, check_range
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.training import AUTO, LR_DECAYS, PRECISIONS, Average, canonical, parse_average
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, UsageError
from elbocli.files.checkpoint import CONFIG, InitFacts, RunConfig, RunData, checked_config
from elbocli.files.dataset import IMAGES, LATENTS, PREPROCESSING, Dataset, find_dataset
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.plugins import check_plugins, plugins_run
from elbocli.files.reading import file_sha256, reading
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.files.yaml_text import parse_yaml, read_yaml
from elbocli.nn.networks import NetworkConfig, build, config_of, count_parameters, declaration_of, section_of
from elbocli.nn.presets import Preset, PresetAbout, choose_preset, load_preset
from elbocli.run.train_settings import ADAPTIVE, PRESET_SETTINGS, SETTINGS, TrainSettings, convert_settings
from elbocli.runtime.device import card_bytes, meant_by, usual_precision
from elbocli.runtime.progress import log

if TYPE_CHECKING:
    from elbocli.run.initial import Initial

PLACES = ("path", "from_run", ATTRIBUTES["autoencoder"], *PREPROCESSING)
"""Facts of the dataset that may change or be unsaid when a run goes on: digests say whether it is the same."""
STORED = ("power:std=0.05", "power:std=0.1")
"""The profiles whose snapshots are kept when none is asked for: those of arXiv:2312.02696."""
SNAPSHOTS = 20
"""Snapshots in a whole run, when --snapshot-every isn't given."""
NETWORK = "network."
"""Prefix of a network's key among options."""
TRAINED_BYTES = 2 * 5 * 4
"""Bytes of a card for each weight: weights, gradients, moments and an average, and as much again for a step."""


class Known(NamedTuple):
    """A run's config.yaml, from which a run takes what no option says: its own, or that of --config."""

    where: Path
    config: RunConfig


def read_options(
    path: Path | None, options: Mapping[str, Any], words: Sequence[str]
) -> tuple[Known | None, dict[str, Any]]:
    """Return the run whose config.yaml a file is, and options: those of --set over others, those over the file's.

    path: a YAML file of options, or a run's config.yaml. words: network.KEY=VALUE or training.KEY=VALUE. Raises UsageError,
    and FormatError for a file that can't be read.
    """
    values, known = {} if path is None else read_yaml(path), None
    if path is not None and values.get("format") == "elbo-run":
        known, values = Known(path, checked_config(values, path)), {}
    values = {key.replace("-", "_"): value for key, value in values.items() if value is not None}
    words = [*values.pop("set", ()), *words]
    found: dict[str, Any] = {key: Path(str(values.pop(key))) for key in ("data", "init") if key in values}
    with reading(path, kind=UsageError):  # which may say neither where to write nor what to run
        found |= convert_settings(values)
    found |= {key: value for key, value in options.items() if value is not None}
    for word in words:
        key, equals, value = word.partition("=")
        section, _, name = key.partition(".")
        if section not in ("network", "training") or not (name and equals):
            raise UsageError(f"--set {word}: expected network.KEY=VALUE or training.KEY=VALUE")
        found[key if section == "network" else name] = parse_yaml(f"value: {value}", f"--set {key}")["value"]
    return known, found


@dataclass(frozen=True)
class PresetData:
    """Stand-in for a Dataset in --dry-run. path: which preset says so. image_size: side in pixels, or of the latents."""

    path: str
    kind: str
    image_size: int
    channels: int
    num_classes: int
    count: int

    def __len__(self) -> int:
        return self.count

    def identity(self) -> RunData:
        """Return what a Dataset's identity would say, as far as it is known."""
        return RunData(self.path, None, self.count, self.image_size, self.channels, self.num_classes)


Data = Dataset | PresetData


def preset_data(preset: str) -> PresetData | None:
    """Return the data that a preset, by name or path, is made for; None when it doesn't say. Raises UsageError, FormatError."""
    data = load_preset(preset).data
    if data is None:
        return None
    kind = LATENTS if data.kind else IMAGES
    return PresetData(f"preset {preset}", kind, data.image_size, data.channels, data.classes, data.images)


def planned_for(preset: str | None) -> Data:
    """Choose the data of a --dry-run without DATA.h5: the only dataset in this folder if the preset fits it, else the preset's own.

    Raises DataError when there is neither.
    """
    data = preset_data(preset) if preset else None
    try:
        found: Data = Dataset(find_dataset(Path()), latents=True)
    except DataError:
        if data is None:
            raise
        found = data
    if data and (data.kind, data.image_size, data.channels) != (found.kind, found.image_size, found.channels):
        found = data
    log.info("planned for %d %s of %s", len(found), found.kind, found.path)
    return found


@dataclass(frozen=True)
class Resolved:
    """Settings, network and objective of a run. schedule: None when it adapts. files: sha256 of each file that settings name, by path.

    init: what config.yaml says of the run whose weights this one begins from, None without one. initial: those weights,
    where they are needed.
    """

    settings: TrainSettings
    network: NetworkConfig
    data: RunData
    files: dict[str, str]
    weighting: Weighting
    schedule: Schedule | None
    init: InitFacts | None = None
    initial: Initial | None = None

    @property
    def prediction(self) -> Prediction:
        """The network's output, as the setting `prediction` names it."""
        return Prediction(self.settings.prediction)

    @property
    def averages(self) -> tuple[Average, ...]:
        """Averages of the weights. The first is the one that previews, sample and bound use."""
        return tuple(map(parse_average, self.settings.ema))

    def config(self) -> RunConfig:
        """The content of config.yaml."""
        return RunConfig(
            settings=self.settings.stored(),
            network=section_of(self.network),
            data=self.data,
            files=self.files,
            init=self.init,
            plugins=plugins_run() or None,
        )


def schedule_of(settings: TrainSettings) -> Schedule | None:
    """Return the schedule that settings name; None when it adapts. Raises ElboError."""
    if settings.schedule == ADAPTIVE:
        return None
    return resolve_schedule(settings.schedule, settings.logsnr_min, settings.logsnr_max)


def run_settings(section: Mapping[str, Any], where: Path) -> TrainSettings:
    """Read the settings section of a run's config. Raises FormatError."""
    with reading(where):
        return TrainSettings(**convert_settings(section))


def resolve(
    options: Mapping[str, Any], dataset: Data, known: Known | None = None, initial: Initial | None = None
) -> Resolved:
    """Merge settings, and fit the network and the objective to the data.

    options: settings by name (None where not given), and keys of the network as `network.channels`. known: a config.yaml,
    whose preset is not read again. initial: the weights to begin from, which bring their network. Raises UsageError for options
    that fit neither each other nor the dataset, FormatError for an unusable preset, DataError for a file that has changed.
    """
    given = {key: value for key, value in options.items() if value is not None}
    overrides = {key.removeprefix(NETWORK): given.pop(key) for key in list(given) if key.startswith(NETWORK)}
    asked = convert_settings(given)
    if known:
        check_plugins(known.config.plugins, known.where)
        asked = {key: value for key, value in asked.items() if (key, value) != ("precision", AUTO)}
    if isinstance(dataset, Dataset):
        dataset.check_square()
    data, size, latents = dataset.identity(), dataset.image_size, dataset.kind == LATENTS
    if initial:
        initial.check_data(data, dataset.kind)

    # Each layer says some settings: defaults, the run to begin from, the preset, a config.yaml, options.
    own = run_settings(known.config.settings, known.where).stored() if known else {}
    begun = initial.inherited(data) if initial and not known else {}
    above = {**(own if "preset" in asked else {**begun, **own}), **asked}
    name = above.get("preset") or _choose(dataset, asked.get("device", AUTO))
    unread = name == own.get("preset") or (begun and "preset" not in asked)
    preset = (
        Preset({}, {}, PresetAbout(gpu=bool(initial and initial.source.settings.precision in PRECISIONS[2:])))
        if unread
        else load_preset(name)
    )
    if not latents and (preset.about.kind or (preset.data and preset.data.kind)):
        raise UsageError(
            f"--preset {name} is for latents, and {dataset.path} holds pixels; 'elbo prep --latents' makes some"
        )
    with reading(f"preset {name}"):
        train = convert_settings(preset.train, PRESET_SETTINGS)
    values = {**TrainSettings().stored(), "snapshot_every": None, **begun, **train, **own, **asked, "preset": name}

    # Values that depend on each other, or on the data.
    if initial:
        values["prediction"] = initial.same_prediction(values["prediction"], "prediction" in {**own, **asked})
    if values["precision"] == AUTO:
        values["precision"] = usual_precision(values["device"], preset.about.gpu)
    if latents and values["flip"]:
        raise UsageError(
            f"--flip: {dataset.path} holds latents, which can't be mirrored; pack both with 'elbo prep --mirror'"
        )
    if "shift" in train and "shift" not in asked and "weighting" in above:
        log.info("weighting %s as it is, without the preset's --shift %s", values["weighting"], values.pop("shift"))
    full = "weighting" not in asked and bool(own or (begun and "weighting" not in train))
    weighting = _weighting(values, size, full, initial.network.image_size if initial and begun else size)
    schedule = _schedule(values, {"logsnr_min", "logsnr_max"}.isdisjoint(above), size)
    if schedule is None:
        refuse_adaptive(weighting)
    PREDICTIONS.parse(values["prediction"])  # raises UsageError before the run's folder is made
    conditional = values.pop("conditional", None)
    values |= {"weighting": weighting.spec, "lr_decay": LR_DECAYS.parse(values["lr_decay"]).spec, **_averages(values)}
    settings = TrainSettings(**values)
    files = {str(each.file): file_sha256(each.file) for each in (schedule, weighting.schedule) if each and each.file}

    # The network: that of the weights to begin from, of the config.yaml, or of the preset.
    init = known.config.init if known else None
    where: Any = f"preset {name}"
    if initial and (init is None or init.sha256 != initial.sha256):
        where, section = initial.source.path / CONFIG, section_of(initial.network)
        usual = initial.network.num_classes > 0 and dataset.num_classes > 1
    elif known and name == own["preset"]:
        where, section = known.where, known.config.network
        usual = section.get("num_classes", 0) > 0
    else:
        section, usual = _preset_network(preset, dataset), dataset.num_classes > 1
    classes = dataset.num_classes if (usual if conditional is None else conditional) else 0
    network = _network({**section, **overrides}, where, dataset, classes)
    if not network.trainable:
        raise UsageError(f"{where}: a network of family {declaration_of(network).name!r} can't be trained")
    if initial and where == initial.source.path / CONFIG:
        for file, digest in files.items() if begun and not {"weighting", "schedule"} & asked.keys() else ():
            if initial.source.files.get(file, digest) != digest:
                raise DataError(
                    f"{file}: has changed since {initial.path} was trained on it; give --schedule or --weighting"
                )
        changed = initial.changed(settings, network, data)
        init = initial.facts(changed)
        for each in changed:
            log.info("not as in %s: %s", initial.path, each)
    elif initial and init:
        init = structs.replace(init, run=str(initial.path))  # where it is now
    return Resolved(settings, network, data, files, weighting, schedule, init, initial)


def _choose(dataset: Data, device: str) -> str:
    """Return the name of the preset for that data on that device. Raises UsageError when there is none."""
    room = card_bytes(device)

    def fits(preset: str) -> bool:
        if room is None:
            return True
        with torch.device("meta"):
            network = build(
                _network(_preset_network(load_preset(preset), dataset), preset, dataset, dataset.num_classes)
            )
        return TRAINED_BYTES * count_parameters(network) <= room

    latents, gpu = dataset.kind == LATENTS, meant_by(device) != "cpu"
    name = choose_preset(dataset.image_size, len(dataset), latents, gpu, fits)
    side = f"{dataset.image_size} {'latents a side' if latents else 'pixels'}"
    log.info("preset %s, for %d images of %s on a %s", name, len(dataset), side, "GPU" if gpu else "CPU")
    return name


def _preset_network(preset: Preset, dataset: Data) -> dict[str, Any]:
    """Return a preset's network section, for images of the size that it is made for."""
    return {**preset.network, "image_size": preset.data.image_size if preset.data else dataset.image_size}


def _network(section: dict[str, Any], where: object, dataset: Data, classes: int) -> NetworkConfig:
    """Fit a network to the size and channels of a dataset. Raises FormatError, UsageError."""
    config = config_of({"num_classes": classes, **section, "image_channels": dataset.channels}, where)
    return config.for_classes(classes).for_size(dataset.image_size)


def _weighting(values: dict[str, Any], size: int, full: bool, made_for: int) -> Weighting:
    """Return the weighting, and take its refinements out of `values`.

    full: whether it is another run's, as written in full, for images of the side `made_for`.
    """
    spec, asked, bias = values["weighting"], values.pop("shift", None), values.pop("bias", None)
    shift = resolution_shift(size) if asked == AUTO else asked or 0.0
    if full and asked is not None:
        shift -= resolve_weighting(spec).shift  # instead of its own, which the same option may have given it
    elif full and size != made_for:
        shift = resolution_shift(size) - resolution_shift(made_for)
        log.info("weighting shifted by %.4g, from side %d to %d; --shift says otherwise", shift, made_for, size)
    monotone, parameters = bool(values.pop("monotone", False)), None if bias is None else {"bias": bias}
    return resolve_weighting(spec, shift=shift, monotone=monotone, given=parameters, size=size)


def _schedule(values: dict[str, Any], free: bool, size: int) -> Schedule | None:
    """Return the schedule, None when it adapts; put its full name and its range into `values`.

    free: whether nobody asked for a range, so that a file brings its own.
    """
    spec, low, high = values["schedule"], values["logsnr_min"], values["logsnr_max"]
    if spec == ADAPTIVE:
        check_range(low, high)
        return None
    if free and SCHEDULES.named(spec.partition(":")[0]) is None:
        schedule = resolve_schedule(spec)
        values |= {"logsnr_min": schedule.logsnr_min, "logsnr_max": schedule.logsnr_max}
        log.info("logsnr from %g to %g, as in %s", schedule.logsnr_min, schedule.logsnr_max, spec)
    else:
        schedule = resolve_schedule(spec, low, high, size=size)
    values["schedule"] = schedule.base
    return schedule


def _averages(values: dict[str, Any]) -> dict[str, Any]:
    """Return the averages and how often snapshots are kept: power profiles bring snapshots, and snapshots power profiles."""
    specs, every = canonical(values["ema"]), values["snapshot_every"]
    stored = any(parse_average(spec).stored for spec in specs)
    if every and not stored:
        specs += STORED
    if every is None:
        every = -(-values["steps"] // SNAPSHOTS) if stored else 0
    return {"ema": specs, "snapshot_every": every}


def difference(had_run: RunConfig, asked_for: RunConfig) -> list[str]:
    """List the changes that a resumed run may not make, a line each."""
    had, asked = _fixed(had_run), _fixed(asked_for)
    lines = {
        key: f"{key}: the run has {had.get(key)}, asked for {asked.get(key)}"
        for key in sorted({*had, *asked})
        if had.get(key) != asked.get(key)
    }
    return [lines["--preset"]] if "--preset" in lines else list(lines.values())  # other differences follow from it


def _fixed(config: RunConfig) -> dict[str, Any]:
    """Return the settings that must stay when a run continues, by their names in messages. Earlier versions had fewer settings and network keys."""
    usual = TrainSettings().stored()
    settings = {key: config.settings.get(key, usual[key]) for key in usual if not SETTINGS[key].says("free", False)}
    if settings["precision"] == "tf32":  # a run may go from one device to another
        settings["precision"] = "fp32"
    data = {key: value for key, value in config.data.json().items() if key not in PLACES}
    sections = {"network": section_of(config_of(config.network, "config.yaml")), "data": data, "files": config.files}
    return {
        **{f"--{key.replace('_', '-')}": value for key, value in settings.items()},
        **{f"{section} {key}": value for section, values in sections.items() for key, value in values.items()},
        "--init": config.init and f"weights of sha256 {config.init.sha256}",
        "--plugin": ", ".join(map(str, config.plugins or [])) or None,
    }


IDENTITY = ("weighting", "prediction", "logsnr_min", "logsnr_max", "batch", "lr", "seed")
"""Settings by which weights are known to be of this training and not of another; no later version may rename them."""


def trained_as(config: RunConfig) -> dict[str, Any]:
    """Return facts of a run's config that tell it from others: for files made of its weights."""
    digests = {"payload_sha256": config.data.payload_sha256, "init_sha256": config.init and config.init.sha256}
    return {**{key: config.settings.get(key) for key in IDENTITY}, **digests}
