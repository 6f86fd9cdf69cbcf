"""Everything that decides a training run, resolved from options, preset and dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from msgspec import structs

from elbocli.core.prediction import resolution_shift
from elbocli.core.registry import nearest, number
from elbocli.core.schedule import Schedule, check_range
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.training import LR_DECAYS, canonical, parse_average
from elbocli.errors import ElboError, FormatError, UsageError
from elbocli.files.checkpoint import InitFacts, RunConfig, RunData
from elbocli.files.dataset import LATENTS, PREPROCESSING, Dataset
from elbocli.files.hashing import file_sha256
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.plugins import check_plugins, plugins_run
from elbocli.files.reading import reading
from elbocli.files.records import convert
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.nn.networks import NetworkConfig, build, config_of, declaration_of, filled, section_of
from elbocli.nn.presets import NAMES, Preset, choose_preset, load_preset
from elbocli.run.dataset_place import dataset_of
from elbocli.run.objective import Objective
from elbocli.run.setting_type import AUTO
from elbocli.run.suited_network import Data, fits_card, of_basis, of_initial, of_preset
from elbocli.run.train_settings import ADAPTIVE, PRESET_SETTINGS, SETTINGS, TrainSettings
from elbocli.runtime.device import card_bytes, meant_by, usual_precision

if TYPE_CHECKING:
    from elbocli.run.initial import Initial

PLACES = ("path", "from_run", ATTRIBUTES["autoencoder"], *PREPROCESSING)
"""Facts of the dataset that may change or be unsaid when a run goes on: digests say whether it is the same."""
STORED = ("power:std=0.05", "power:std=0.1")
"""The profiles whose snapshots are kept when none is asked for: those of arXiv:2312.02696."""
HINTS: dict[str, Any] = get_type_hints(TrainSettings)
FLOAT32 = {"fp32", "tf32"}
"""Precisions that a run may change between when it goes on: which devices have the second is theirs to say."""
SNAPSHOTS = 20
"""Snapshots in a whole run, when --snapshot-every isn't given."""


@dataclass(frozen=True)
class Resolved:
    """Settings, the network's config, the dataset's identity, digests of files that settings name, and what they name.

    init: what config.yaml says of the run whose weights this one begins from, None without one. initial: those weights,
    where they are needed.
    """

    settings: TrainSettings
    network: NetworkConfig
    data: RunData
    files: dict[str, str]
    notes: list[str]
    objective: Objective
    init: InitFacts | None = None
    initial: Initial | None = None

    def config(self) -> RunConfig:
        """The content of config.yaml."""
        settings, network = self.settings.stored(), section_of(self.network)
        plugins = plugins_run() or None
        return RunConfig(
            settings=settings, network=network, data=self.data, files=self.files, init=self.init, plugins=plugins
        )


@dataclass(frozen=True)
class Basis:
    """Settings, network and dataset that a run takes where no option says them: from its own config.yaml when it goes on.

    Or from another run's, by --config. where: the file. data: where the dataset is now. init: the section of that name.
    """

    where: Path
    settings: TrainSettings
    network: NetworkConfig
    data: Path
    init: InitFacts | None = None

    @classmethod
    def of(cls, where: Path, config: RunConfig) -> Basis:
        """Take a config.yaml apart. Raises FormatError, and UsageError for a plug-in that was not run."""
        check_plugins(config.plugins, where)
        if config.data.path is None:
            raise FormatError(f"{where}: data.path is missing")
        settings, network = run_settings(config.settings, where), config_of(config.network, where)
        return cls(where, settings, network, dataset_of(config.data, where.parent), config.init)


def resolve(
    options: Mapping[str, Any], dataset: Data, basis: Basis | None = None, initial: Initial | None = None
) -> Resolved:
    """Options by the names of TrainSettings (None where not given), over the basis or the preset, over the defaults.

    A preset that is the basis's own is not read: the basis has its network and what came of its settings. initial: the
    weights to begin from. The network is theirs, and so are, without a basis, the settings that neither options nor a
    preset say. Raises UsageError for options that fit neither each other nor the dataset, FormatError for a preset that
    is none, DataError for a file that is none of the source's any more.
    """
    asked = {key: value for key, value in options.items() if value is not None}
    notes: list[str] = []
    latents = dataset.kind == LATENTS
    if isinstance(dataset, Dataset):
        dataset.check_square()
    data = dataset.identity()
    inherited: dict[str, Any] = {}
    if initial:
        initial.check_data(data, dataset.kind)
        inherited = {} if basis else initial.inherited(data)
    given = {**(basis.settings.stored() if basis else inherited if "preset" not in asked else {}), **asked}
    if "preset" not in given:
        gpu = meant_by(given.get("device", AUTO)) != "cpu"
        fits = partial(fits_card, dataset=dataset, room=card_bytes(given.get("device", AUTO)))
        given["preset"] = choose_preset(dataset.image_size, len(dataset), latents, gpu, fits)
        what = f"{dataset.image_size} {'latents a side' if latents else 'pixels'} on a {'GPU' if gpu else 'CPU'}"
        notes.append(f"preset {given['preset']}, for {len(dataset)} images of {what}")
    name = str(given["preset"])
    own = basis if basis and name == basis.settings.preset else None
    unread = own or (inherited and "preset" not in asked)
    preset = Preset(name, {}, {}, gpu=initial is not None and initial.half) if unread else load_preset(name)
    if own and "preset" in asked and name not in NAMES:
        notes.append(f"preset {name} is not read again: {own.where} has its settings and network")
    if not latents and any(said.latents for said in (preset.about, preset.data) if said):
        raise UsageError(  # an image of pixels would fill a device's memory
            f"--preset {preset.name} is for latents, and {dataset.path} holds pixels; leave it out, or pack latents with "
            "'elbo prep --latents'"
        )
    train = dict(preset.train)
    unknown = [key for key in train if key not in PRESET_SETTINGS]
    if unknown:
        raise FormatError(f"preset {name}: unknown setting {unknown[0]!r}; {nearest(unknown[0], PRESET_SETTINGS, 100)}")
    train = _typed(train, f"preset {name}")
    shifted = "shift" in asked or "shift" in train
    shift = _shift(train.pop("shift", None), given, dataset.image_size, notes)
    stored = {key: value for key, value in given.items() if SETTINGS[key].stored}
    values: dict[str, Any] = {**TrainSettings().stored(), "snapshot_every": None, **inherited, **train, **stored}
    if initial:
        values["prediction"] = initial.same_prediction(values["prediction"], "prediction" in asked or basis is not None)
    if values["precision"] == AUTO and basis:
        values["precision"] = basis.settings.precision
    if values["precision"] == AUTO:
        values["precision"] = usual_precision(values["device"], preset.gpu)
    if latents and values["flip"]:
        raise UsageError(
            f"--flip: {dataset.path} holds latents, and a mirrored latent is not the latent of the mirror image; "
            "leave it out, and pack both with 'elbo prep --mirror'"
        )
    spec, size, monotone = values["weighting"], dataset.image_size, given.get("monotone", False)
    taken_over = "weighting" not in asked and (basis is not None or (inherited and "weighting" not in train))
    if taken_over and ("shift" in asked or (inherited and shifted)):
        shift -= resolve_weighting(spec).shift  # instead of its own, which the same option may have given it
    elif taken_over and inherited and initial and size != initial.network.image_size:
        shift = resolution_shift(size) - resolution_shift(initial.network.image_size)
        notes.append(
            f"weighting shifted by {shift:.4g}, from side {initial.network.image_size} to {size}; --shift says otherwise"
        )
    bias = {"bias": given["bias"]} if "bias" in given else None
    weighting = resolve_weighting(spec, shift=shift, monotone=monotone, given=bias, size=size)
    schedule = _schedule(values, given, notes, size)
    files = {str(each.file): file_sha256(each.file) for each in (schedule, weighting) if each and each.file}
    named = {"weighting": weighting.spec, "lr_decay": LR_DECAYS.parse(values["lr_decay"]).spec}
    settings = TrainSettings(**{**values, **named, **_averages(values)})
    objective = Objective(settings, weighting=weighting, schedule=schedule)
    init = basis.init if basis else None
    if initial is None or (init and init.sha256 == initial.sha256):
        network = of_basis(own.network, given, dataset) if own else of_preset(preset, given, dataset)
        init = structs.replace(init, run=str(initial.path)) if init and initial else init  # where it is now
    else:
        network = of_initial(initial.network, given, dataset)
        if not unread:
            notes.append(f"the network is that of {initial.path}; preset {name} says the training settings alone")
        if inherited and not {"weighting", "schedule"} & set(asked):
            initial.check_files(files)
        changed = initial.changed(settings, network, data) if network.trainable else []
        init = structs.replace(initial.facts(), changed=changed)
        notes += [f"not as in {initial.path}: {each}" for each in changed]
    if not network.trainable:
        raise UsageError(
            f"{initial.path if initial else own.where if own else name}: a network of family {declaration_of(network).name!r} is sampled "
            "and measured as it is, and can't be trained"
        )
    if preset.about is None:  # its network is a file's: one of absurd size is noticed before it takes memory
        with reading(own.where if own else f"preset {preset.name}", kind=UsageError), torch.device("meta"):
            build(network)
    return Resolved(settings, network, data, files, notes, objective, init, initial)


def _typed(written: dict[str, Any], where: object) -> dict[str, Any]:
    """Settings as a file writes them, those of TrainSettings by their types. Raises FormatError."""
    with reading(where):
        averages = {"ema": canonical(written["ema"])} if "ema" in written else {}
    return {
        key: convert(value, HINTS.get(key, Any), f"{where}: {key}") for key, value in {**written, **averages}.items()
    }


def _shift(preset: Any, given: dict[str, Any], image_size: int, notes: list[str]) -> float:
    """The weighting's shift: as given; else the preset's, which is its own weighting's and not of one given instead."""
    asked = given.get("shift", 0.0 if preset is None else preset)
    if preset is not None and "shift" not in given and "weighting" in given:
        notes.append(f"weighting {given['weighting']} as it is, without the preset's --shift {preset}")
        asked = 0.0
    return resolution_shift(image_size) if asked == "auto" else number(asked, "shift")


def _schedule(values: dict[str, Any], given: dict[str, Any], notes: list[str], size: int) -> Schedule | None:
    """The schedule, None when it adapts; in `values` its full name and its range, which a file brings along."""
    spec, low, high = values["schedule"], float(values["logsnr_min"]), float(values["logsnr_max"])
    schedule = None
    if spec == ADAPTIVE:
        check_range(low, high)
    else:
        if SCHEDULES.named(spec.partition(":")[0]) is None and "logsnr_min" not in given and "logsnr_max" not in given:
            schedule = resolve_schedule(spec)
            low, high = schedule.logsnr_min, schedule.logsnr_max
            notes.append(f"logsnr from {low:g} to {high:g}, as in {spec}")
        else:
            schedule = resolve_schedule(spec, low, high, size=size)
        spec = schedule.base
    values |= {"schedule": spec, "logsnr_min": low, "logsnr_max": high}
    return schedule


def _averages(values: dict[str, Any]) -> dict[str, Any]:
    """The averages and how often snapshots are kept: power profiles bring snapshots, and snapshots power profiles."""
    specs, every = canonical(values["ema"]), values["snapshot_every"]
    stored = any(parse_average(spec).stored for spec in specs)
    if every and not stored:
        specs += STORED
    if every is None:
        every = -(-int(values["steps"]) // SNAPSHOTS) if stored else 0
    return {"ema": specs, "snapshot_every": every}


def difference(had_run: RunConfig, asked_for: RunConfig) -> list[str]:
    """Changes that a resumed run may not make: a line each."""
    lines, before, now = [], had_run.resolved(), asked_for.resolved()
    did = {"settings": TrainSettings().stored()}  # what earlier versions did, which had not all settings of today
    free = [key for key, setting in SETTINGS.items() if setting.free]
    if {str(each["settings"].get("precision")) for each in (before, now)} == FLOAT32:
        free.append("precision")
    may_change = {"settings": free, "data": PLACES}
    for section in ("settings", "network", "data", "files"):
        had, has = {**did.get(section, {}), **before[section]}, now[section]
        if section == "network":  # which earlier versions had with fewer keys, and later ones may have with more
            had, has = filled(had), filled(has)
        for key in sorted({*had, *has}):
            if had.get(key) != has.get(key) and key not in may_change.get(section, ()):
                label = "--" + key.replace("_", "-") if section == "settings" else f"{section} {key}"
                lines.append(f"{label}: the run has {had.get(key)}, asked for {has.get(key)}")
    lines = [line for line in lines if line.startswith("--preset:")] or lines  # whose other differences follow from it
    began, begins = had_run.init, asked_for.init
    if (began and began.sha256) != (begins and begins.sha256):
        lines.append(f"--init: the run has {began or 'none'}, asked for {begins or 'none'}")
    was, asked = (config.plugins or [] for config in (had_run, asked_for))
    if was != asked:
        told = [", ".join(map(str, each)) or "none" for each in (was, asked)]
        lines.append(f"--plugin: the run has {told[0]}, asked for {told[1]}")
    return lines


IDENTITY = ("weighting", "prediction", "logsnr_min", "logsnr_max", "batch", "lr", "seed")
"""Settings by which weights are known to be of this training and not of another; no later version may rename them."""


def trained_as(config: RunConfig) -> dict[str, Any]:
    """Facts of a run's config that tell it from others: for files made of its weights."""
    digests = {"payload_sha256": config.data.payload_sha256, "init_sha256": config.init and config.init.sha256}
    return {**{key: config.settings.get(key) for key in IDENTITY}, **digests}


def run_settings(section: dict[str, Any], where: Path) -> TrainSettings:
    """The settings section of a run's config. Raises FormatError."""
    known = {"ema": list(TrainSettings.ema), **_typed(section, where)}
    try:
        for key in known.keys() - SETTINGS.keys():
            raise UsageError(f"{key!r} is unknown; {nearest(key, SETTINGS)}")
        return TrainSettings(**known)
    except ElboError as error:
        raise FormatError(f"{where}: section 'settings' is not a run's: {error}") from error
