"""A trained run, opened: its network for sampling and scoring, its dataset, its weighting over time.

Last come the weights that another run begins from, `elbo train --init`: they are taken over, and the objective where none is
given.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from elbocli.core.adaptive import AdaptiveSchedule, bin_edges, learned_weighting
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.training import parse_average
from elbocli.core.weighting import Weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import CONFIG, META, WEIGHTS, Checkpoint, InitFacts, RunConfig, RunData
from elbocli.files.dataset import PREPROCESSING, find_dataset
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.losslog import LossLogRow, read_losslog
from elbocli.files.plugins import check_plugins
from elbocli.files.reading import file_sha256, open_file, reading
from elbocli.files.schedule_file import resolve_weighting
from elbocli.files.tensor_files import check_average, load, read_about
from elbocli.nn.networks import Network, NetworkConfig, build, config_of, loaded, place, section_of
from elbocli.nn.weights import shapes_of, transfer
from elbocli.run.settings import Known, run_settings, schedule_of, trained_as
from elbocli.run.train_settings import SETTINGS, SPEED, VALIDATION, TrainSettings
from elbocli.runtime.progress import log

SPACE = [ATTRIBUTES[key] for key in ("convention", "shift", "scale", "input", "autoencoder_sha256")]
"""Facts of latents by which their numbers mean the same."""
AVERAGE = "ema-imported"
"""Name of an imported run's weights that were an average where they came from; others are called `model`."""
TIMES = 12
"""Moments of a run that are told: the start, the end, and others evenly between them."""


def dataset_of(data: RunData, run: Path) -> Path:
    """Return where the dataset of a run is now, by its config.yaml's `data`: as seen from the run, else as it was typed."""
    typed, place = Path(str(data.path)), run.resolve() / str(data.from_run)
    known = not place.exists() or (typed.exists() and typed.samefile(place))
    return typed if known else Path(os.path.relpath(place))


def check_content(data: RunData, known: RunData, run: object) -> None:
    """Raise UsageError for pixels where a run has latents, and the other way round, and for latents of another space.

    data: a dataset's identity. known: section `data` of the run's config.yaml; what it doesn't say is not compared.
    """
    if data.latents != known.latents:
        holds = "latents" if data.latents else "pixels"
        raise UsageError(f"{data.path}: holds {holds}, and {run} was not trained on {holds}")
    for key in SPACE if known.latents else ():
        here, there = data.more.get(key), known.more.get(key)
        if None not in (here, there) and here != there:
            raise UsageError(f"{data.path}: latents of another space: {key} is {here}, and {there} in {run}")


def read_run_config(run: Path) -> RunConfig:
    """Read a run's config.yaml. Raises FormatError, and UsageError when a plug-in that it needs was not run."""
    config = store.read_config(run)
    check_plugins(config.plugins, run)
    return config


@dataclass(frozen=True)
class TrainedRun:
    """A network with the weights of a checkpoint, or of a file made by 'elbo ema', in eval mode on its device.

    path: of the run. about: which weights these are: weights, step, images_trained, weights_sha256, and for a file
    weights_file. files: digests of the files that settings name.
    """

    path: Path
    network: Network
    settings: TrainSettings
    data: RunData
    files: dict[str, str]
    checkpoint: Checkpoint
    about: dict[str, Any]

    def __repr__(self) -> str:
        return f"TrainedRun({str(self.path)!r}, step {self.step})"

    @property
    def step(self) -> int:
        """Optimizer updates that the weights have seen; 0 where that isn't known."""
        return int(self.about.get("step", 0))

    @property
    def prediction(self) -> Prediction:
        """The meaning of the network's output."""
        return Prediction(self.settings.prediction)

    def schedule(self) -> Schedule:
        """Return the run's noise schedule; an adaptive one as of the checkpoint. Raises FormatError, DataError (file changed)."""
        fixed = schedule_of(self.settings)
        if fixed is None:
            return self._online().schedule(resolve_weighting(self.settings.weighting), self.settings.floor)
        file = fixed.file
        if file is not None and self.files.get(str(file)) not in (None, file_sha256(file)):
            raise DataError(f"{file}: has changed since {self.path} was trained on it; name the schedule to use")
        return fixed

    def weighting(self) -> Weighting:
        """Return the weighting it was trained with; a learned one as of the checkpoint. Raises FormatError, DataError."""
        weighting = resolve_weighting(self.settings.weighting)
        if not weighting.learned:
            return weighting
        return learned_weighting(weighting, self.schedule(), self.prediction, self._online())

    def _online(self) -> AdaptiveSchedule:
        """Return the errors that the checkpoint remembers. Raises FormatError when it holds none."""
        online = AdaptiveSchedule(bin_edges(self.settings.logsnr_min, self.settings.logsnr_max))
        try:
            online.state.copy_(self.checkpoint.state()["online"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise FormatError(f"{self.checkpoint.path / 'state.pt'}: holds no errors to adapt to") from error
        return online


def empty_network(config: RunConfig, where: Path) -> Network:
    """Build the network of a run's config, without memory. Raises FormatError."""
    network = config_of(config.network, where)
    with reading(where), torch.device("meta"):
        return build(network)


def open_run(path: Path, device: torch.device, weights: str = "ema") -> TrainedRun:
    """Open a run or checkpoint. weights: `ema` is the run's first average, `model` the last weights; else an average's name or
    spec, or the path of a file that 'elbo ema' made.

    Raises FormatError (no run; damaged; weights that don't fit), DataError (no checkpoint yet; another run's average),
    UsageError (no such average).
    """
    within = (path / META).exists()
    run = path.resolve().parent.parent if within else path
    config = read_run_config(run)
    checkpoint = store.read_checkpoint(path) if within else store.latest(run)
    if checkpoint is None:
        raise DataError(f"{path}: no checkpoint yet; let 'elbo train -o {path}' reach its first one")
    settings = run_settings(config.settings, run / CONFIG)
    if weights == "ema":  # an imported run has weights of one kind
        weights = checkpoint.names[0] if config.source else settings.ema[0]
    name = weights
    with suppress(UsageError):
        name = parse_average(weights).name
    trained = {"step": checkpoint.step, "images_trained": checkpoint.images}
    about: dict[str, Any] = {
        **{f"trained_{key}": getattr(settings, key) for key in ("weighting", "schedule") if key in config.settings},
        "prediction": settings.prediction,
        "trained_on": config.data.payload_sha256,
        **{key: value for key in PREPROCESSING if (value := getattr(config.data, key)) is not None},
        **(config.init.about() if config.init else {}),
        **(config.source.about() if config.source else trained),
    }
    where = checkpoint.path
    if name in checkpoint.names:
        tensors = checkpoint.weights(name)
        about |= {"weights": name, "weights_sha256": checkpoint.meta.files[name + WEIGHTS].sha256}
    else:
        where = Path(weights)
        tensors, found = _average(where, checkpoint, config)
        about |= found
    network = empty_network(config, run / CONFIG)
    with reading(f"{where}: its weights don't fit {run / CONFIG}", on=(RuntimeError,)):
        network = loaded(network, tensors)
    network = place(network, device).eval().requires_grad_(False)
    return TrainedRun(run, network, settings, config.data, config.files, checkpoint, about)


def _average(file: Path, checkpoint: Checkpoint, config: RunConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an average that 'elbo ema' made, and what they are."""
    if not file.is_file():
        raise UsageError(
            f"{str(file)!r} is neither a file nor an average; {checkpoint.path} holds {', '.join(checkpoint.names)}"
        )
    made, digest = read_about(file)
    ours = trained_as(config)
    if strange := [key for key, value in made.trained.items() if ours.get(key, value) != value]:
        raise DataError(f"{file}: is of another run, which has another {', '.join(strange)}; name its own")
    seen = {"weights": parse_average(made.spec).name, "step": made.step, "images_trained": made.images}
    check_average(file)
    return load(file), {**seen, "weights_file": str(file), "weights_sha256": digest}


class EffectiveWeighting(NamedTuple):
    """A weighting from after a step on, on the run's range of λ."""

    step: int
    images: int
    weighting: Weighting
    low: float
    high: float

    def json(self) -> dict[str, Any]:
        """Return its numbers. rise: by how much it rises in all, over its largest value."""
        rising = self.weighting.rising(self.low, self.high)
        rise = self.weighting.rise(self.low, self.high)
        return {"step": self.step, "images": self.images, "monotone": not rising, "rising": rising, "rise": rise}


def means_run(text: str) -> bool:
    """Tell whether text that may be a weighting's SPEC is the folder of a run instead; a name counts before a folder."""
    return WEIGHTINGS.named(text.partition(":")[0]) is None and (Path(text) / CONFIG).is_file()


def weighting_of_run(run: Path) -> tuple[TrainSettings, list[EffectiveWeighting]]:
    """Return a run's settings, and its weighting over all it has trained so far. Raises ElboError."""
    config = read_run_config(run)
    if not {"weighting", "schedule"} <= set(config.settings):
        raise DataError(f"{run}: was imported without its objective; 'elbo import' takes --weighting and --schedule")
    settings = run_settings(config.settings, run / CONFIG)
    return settings, effective_weightings(run, settings)


def effective_weightings(run: Path, settings: TrainSettings) -> list[EffectiveWeighting]:
    """Return a run's weightings over time, from its settings and its loss log alone. Raises ElboError.

    Training adapts a learned one at the end of each of the log's intervals, from the same sums by the same code.
    """
    weighting, schedule = resolve_weighting(settings.weighting), schedule_of(settings)
    low, high = (settings.logsnr_min, settings.logsnr_max)
    ends = max(low, weighting.support[0]), min(high, weighting.support[1])
    if not weighting.learned:
        return [EffectiveWeighting(0, 0, weighting, *ends)]
    assert schedule is not None
    path, online, intervals = run / "losslog.jsonl", AdaptiveSchedule(bin_edges(low, high)), list[LossLogRow]()
    if path.exists():
        with reading(path, kind=DataError), open_file(path) as file:
            intervals = [entry for entry in read_losslog(file, path) if isinstance(entry, LossLogRow)]
    told_at = {round(k * len(intervals) / (TIMES - 1)) for k in range(TIMES)}
    found, prediction = [], Prediction(settings.prediction)
    for number, interval in enumerate([LossLogRow(0, 0, *online.state[:3].tolist()), *intervals]):
        with reading(path):  # of as many bins as the run has
            online.update(interval.sums)
        if number in told_at:
            now = learned_weighting(weighting, schedule, prediction, online)
            found.append(EffectiveWeighting(interval.step, interval.images, now, *ends))
    return found


def _compared(settings: TrainSettings, network: NetworkConfig, data: RunData) -> dict[str, Any]:
    objective = {key: getattr(settings, key) for key in ("weighting", "schedule", "logsnr_min", "logsnr_max")}
    return {**objective, **section_of(network), "class_names": data.class_names}


@dataclass(frozen=True, repr=False)
class Initial(TrainedRun):
    """Another run, its network without memory, whose weights a run begins from.

    named: as --init named it: a run, a checkpoint, or a file of weights in one.
    """

    named: Path

    def facts(self, settings: TrainSettings, network: NetworkConfig, data: RunData) -> InitFacts:
        """Return facts about the weights for config.yaml, with the names of what differs in a run of these settings.

        Raises UsageError where the weights have no way to the network.
        """
        with reading(self.named, kind=UsageError):
            shapes = shapes_of(self.network.config)
            transfer(self.network.config, network, self.rows(network, data), lambda name: torch.zeros(shapes[name]))
        about, before = self.about, _compared(self.settings, self.network.config, self.data)
        seen = {key: value for key, value in about.items() if key.startswith("imported_")}
        changed = [key for key, value in _compared(settings, network, data).items() if before.get(key) != value]
        which = about["weights"], about["weights_sha256"], about.get("step"), about.get("images_trained")
        return InitFacts(str(self.named), *which, seen, changed)

    def inherited(self, data: RunData) -> dict[str, Any]:
        """Return settings that a run on this data takes over: not those of a machine or of other images."""
        same = data.payload_sha256 and data.payload_sha256 == self.data.payload_sha256
        left = (SPEED,) if same else (SPEED, VALIDATION)
        stored = self.settings.stored()
        return {key: stored[key] for key in stored if key != "time_limit" and SETTINGS[key].group not in left}

    def check_data(self, data: RunData) -> None:
        """Raise UsageError for images whose numbers mean another thing to the network."""
        check_content(data, self.data, self.named)

    def rows(self, network: NetworkConfig, data: RunData) -> list[int | None]:
        """Return for each class of the data its number in the run, None for a new one.

        By name where both have names and share any, else in order.
        """
        before, now = self.network.config.num_classes, network.num_classes
        old, new = self.data.class_names or [], data.class_names or []
        if len(set(old)) == len(old) == before and len(new) == now and set(old) & set(new):
            return [old.index(name) if name in old else None for name in new]
        return [row if row < before else None for row in range(now)]

    def weights(self, network: NetworkConfig, data: RunData) -> dict[str, Tensor]:
        """Return the weights for such a network on such data, by name, but those it draws itself. Raises FormatError."""
        read = self.checkpoint.weights(self.about["weights"]).__getitem__
        with reading(self.named, kind=UsageError):
            return transfer(self.network.config, network, self.rows(network, data), read)


def open_initial(path: Path) -> Initial:
    """Find the weights that a path names. Raises FormatError, DataError, and UsageError for a plug-in that they lack."""
    folder, name = path, "ema"
    if path.suffix == WEIGHTS and (path.parent / META).exists():
        folder, name = path.parent, path.stem
    source = open_run(folder, torch.device("cpu"), name)
    source.network.to("meta")
    return Initial(**vars(source), named=path)


def initial_of(asked: Path | None, known: Known | None, out: Path) -> Initial | None:
    """Find the weights that the run in `out` begins from; None without any, or where it has a checkpoint.

    asked: as --init named them. known: the config.yaml that the run takes settings from, which may name them, too. Raises
    FormatError, UsageError, and DataError where the weights that it names are gone, or have changed.
    """
    began = known.config.init if known else None
    if known is None or began is None or asked not in (None, Path(began.run)):
        return None if asked is None else open_initial(asked)
    if known.where == out / CONFIG and store.checkpoints(out):
        return None
    found = open_initial(Path(began.run))
    if found.about["weights_sha256"] != began.sha256:
        raise DataError(f"{began.run}: has changed since {known.where} named it; name its checkpoint by --init")
    return found


def dataset_for(known: Known | None) -> Path:
    """Find the dataset where none is named: that of the run, else the only one here. Raises DataError."""
    data = find_dataset(Path()) if known is None else dataset_of(known.config.data, known.where.parent)
    log.info("dataset %s", data)
    return data
