"""Open a trained run, or the old run of `elbo train --init`."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from elbocli.core.adaptive import OnlineObjective
from elbocli.core.averages import parse_average
from elbocli.core.objective import Objective
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule, parse_schedule
from elbocli.core.weighting import Weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import DataError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import CONFIG, META, WEIGHTS, Checkpoint, RunData
from elbocli.files.dataset import PREPROCESSING, find_dataset
from elbocli.files.losslog import LossLogRow, read_losslog
from elbocli.files.reading import file_sha256, reading
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.files.tensor_files import check_tensors, load, read_average_facts
from elbocli.networks import Network, NetworkConfig, build_empty, config_of, loaded, place
from elbocli.networks.weights import transfer
from elbocli.runs.classes import counts_for
from elbocli.runs.config import ConfigFile, InitFacts, RunConfig, read_run_config
from elbocli.runs.train_settings import ADAPTIVE, SETTINGS, SPEED, VALIDATION, TrainSettings
from elbocli.runtime import AUTO
from elbocli.runtime.device import Precision
from elbocli.runtime.progress import log
from elbocli.runtime.table import Table

# Attributes of datasets that define a latent space: latents are comparable only if all of these are equal.
SPACE = ["latent_convention", "latent_shift", "latent_scale", "latent_input", "autoencoder_sha256"]
OBJECTIVE = ("weighting", "schedule")  # settings that an imported run may lack
TIMES = 12  # number of steps at which a learned weighting is reported


def dataset_of(data: RunData, run: Path) -> Path:
    """Return the path of a run's dataset, also if run and dataset were moved together. data: section `data` of config.yaml."""
    typed = Path(str(data.path))
    moved = run.resolve() / str(data.from_run)
    if not moved.exists() or (typed.exists() and typed.samefile(moved)):
        return typed
    return Path(os.path.relpath(moved))


def check_alike(data: RunData, reference: RunData, name: object, keys: Sequence[str] = ()) -> None:
    """Raise UsageError unless two datasets both have pixels, or both have latents of the same space.

    data, reference: descriptions of the datasets. name: of the second dataset or its run, for messages.
    keys: further fields that must be equal. Unknown values are not compared.
    """
    facts, expected = ({"latents": dataset.latents, **dataset.json()} for dataset in (data, reference))
    for key in ("latents", *SPACE, *keys):
        value = facts.get(key)
        wanted = expected.get(key)
        if None not in (value, wanted) and value != wanted:
            raise UsageError(
                f"{data.path}: {key} is {value!s:.60}, but for {name} it is {wanted!s:.60}; choose a dataset made alike"
            )


def schedule_of(settings: TrainSettings) -> Schedule | None:
    """Return the schedule of the settings; None: adaptive. Raises ElboError."""
    if settings.schedule == ADAPTIVE:
        return None
    return resolve_schedule(settings.schedule, settings.logsnr_min, settings.logsnr_max)


@dataclass(frozen=True)
class TrainedRun:
    """A trained run, with the weights of a checkpoint or of a file of 'elbo ema'.

    path: run folder.
    network: in eval mode, on its device.
    data: section `data` of config.yaml.
    files: SHA-256 digest of each file that settings name, such as a schedule file.
    about: entries for result files, such as weights (a name), weights_sha256, step and images_trained.
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

    def _repr_html_(self) -> str:
        settings = self.settings
        about = self.about
        facts = {
            "step": self.step,
            "weights": about.get("weights"),
            "images trained on": about.get("images_trained"),
            **{name: getattr(settings, name) for name in ("weighting", "schedule", "prediction")},
            "logsnr": [settings.logsnr_min, settings.logsnr_max],
            "network": type(self.network).__name__,
            "dataset": self.data.path,
        }
        return Table(f"Run {self.path}", [], [], facts)._repr_html_()

    @property
    def step(self) -> int:
        """Number of optimizer updates; 0: unknown."""
        return int(self.about.get("step", 0))

    @property
    def prediction(self) -> Prediction:
        """Prediction type of the network, such as v or eps."""
        return Prediction(self.settings.prediction)

    def precision(self, name: str, device: torch.device) -> Precision:
        """Return the precision to compute in on a device.

        name: `auto`: on CUDA, the precision in `settings`; fp32 elsewhere, or if `settings` has `auto`.
        """
        if name == AUTO and device.type == "cuda":
            name = self.settings.precision
        return Precision("fp32" if name == AUTO else name, device)

    def schedule(self) -> Schedule:
        """Return the training schedule; if adaptive, computed from the checkpoint. Raises FormatError, DataError."""
        fixed = schedule_of(self.settings)
        if fixed is None:
            return self._fitted(parse_schedule("uniform", self.settings.logsnr_min, self.settings.logsnr_max)).schedule
        file = fixed.file
        if file is not None and self.files.get(str(file)) not in (None, file_sha256(file)):
            raise DataError(f"{file}: has changed since {self.path} was trained; choose a schedule by --schedule")
        return fixed

    def weighting(self) -> Weighting:
        """Return the training weighting; if learned, computed from the checkpoint. Raises FormatError, DataError."""
        weighting = resolve_weighting(self.settings.weighting)
        return self._fitted(self.schedule()).weighting if weighting.learned else weighting

    def class_counts(self) -> np.ndarray | None:
        """Return the number of training images of each of the network's classes, int64 [K]; None: no classes, or unknown.

        Raises FormatError for unusable numbers in config.yaml.
        """
        return counts_for(self.network.config.num_classes, self.data.class_counts, self.path / CONFIG)

    def _fitted(self, schedule: Schedule) -> Objective:
        """Return the objective, fitted to the checkpoint's errors. schedule: the training schedule; uniform if adaptive."""
        objective = Objective(resolve_weighting(self.settings.weighting), schedule, self.prediction)
        with reading(f"{self.checkpoint.path / 'state.pt'}: lacks the errors per noise level", "; use another checkpoint"):
            adaptive = self.settings.schedule == ADAPTIVE
            return OnlineObjective(objective, adaptive, self.settings.floor, self.checkpoint.state()["online"]).objective


def empty_network(config: RunConfig, where: Path) -> Network:
    """Build a run's network on the meta device. where: file to name in errors."""
    network = config_of(config.network, where)
    with reading(where):
        return build_empty(network)


def open_run(path: Path, device: torch.device, weights: str = "ema") -> TrainedRun:
    """Open a run or one of its checkpoints.

    weights: `ema` (the first average), `model` (the last weights), name of an average, or path of a file of 'elbo ema'.
    Raises FormatError: not a run, damaged, or the weights don't fit the network.
        DataError: no checkpoint yet, or an average of another run. UsageError: no such average.
    """
    within = (path / META).exists()
    run = path.resolve().parent.parent if within else path
    config = read_run_config(run)
    checkpoint = store.read_checkpoint(path) if within else store.latest(run)
    if checkpoint is None:
        raise DataError(f"{path}: no checkpoint yet; let 'elbo train -o {path}' reach its first checkpoint")
    settings = config.settings
    if weights == "ema":  # an imported run has only one set of weights
        weights = checkpoint.names[0] if config.source else settings.ema[0]
    where, tensors, origin = _read_weights(weights, checkpoint, config)
    trained = {"step": checkpoint.step, "images_trained": checkpoint.images}
    about: dict[str, Any] = {
        **{f"trained_{key}": getattr(settings, key) for key in OBJECTIVE if settings.states(key)},
        "prediction": settings.prediction,
        "trained_on": config.data.payload_sha256,
        **{key: value for key in PREPROCESSING if (value := getattr(config.data, key)) is not None},
        **(config.init.result_facts() if config.init else {}),
        **(config.source.result_facts() if config.source else {**trained, **config.training_facts()}),
        **origin,
    }
    network = empty_network(config, run / CONFIG)
    with reading(f"{where}: its weights don't fit {run / CONFIG}", on=(RuntimeError,)):
        network = loaded(network, tensors)
    network = place(network, device).eval().requires_grad_(False)
    network.train_settings = settings
    return TrainedRun(run, network, settings, config.data, config.files, checkpoint, about)


def _read_weights(weights: str, checkpoint: Checkpoint, config: RunConfig) -> tuple[Path, dict[str, Tensor], dict[str, Any]]:
    # Returns the checkpoint or file, the weights, and their entries of `about`. weights: name, or path of a file of 'elbo ema'.
    name = weights
    file = Path(weights)
    with suppress(UsageError):
        name = parse_average(weights).name
    if name in checkpoint.names:
        digest = checkpoint.meta.files[name + WEIGHTS].sha256
        return checkpoint.path, checkpoint.weights(name).all(), {"weights": name, "weights_sha256": digest}
    if not file.is_file():
        raise UsageError(
            f"weights {weights!r}: no such file or name; choose a name in {checkpoint.path}: {', '.join(checkpoint.names)}"
        )
    facts, digest = read_average_facts(file)
    if facts.run_id not in (None, config.run_id):
        raise DataError(f"{file}: is an average of another run, {facts.run}; name an average of {checkpoint.path.parent.parent}")
    check_tensors(file)
    trained = {"weights": parse_average(facts.spec).name, "step": facts.step, "images_trained": facts.images}
    return file, load(file), {**trained, "weights_file": str(file), "weights_sha256": digest}


class EffectiveWeighting(NamedTuple):
    """Weighting in effect after `step` updates of a run. ends: range of λ."""

    step: int
    images: int
    weighting: Weighting
    ends: tuple[float, float]

    @property
    def verdict(self) -> str:
        """Text after "the weighting": whether w rises, and whether the loss is an ELBO."""
        return self.weighting.verdict(*self.ends)

    def json(self) -> dict[str, Any]:
        """Return the JSON form. rising: intervals of λ where w rises. rise: total rise / largest w."""
        rising = self.weighting.rising(*self.ends)
        rise = self.weighting.rise(*self.ends)
        falls = not rising and not self.weighting.faults(*self.ends)
        return {"step": self.step, "images": self.images, "monotone": falls, "rising": rising, "rise": rise}


def means_run(text: str) -> bool:
    """Return whether a text is a run's path, and not a weighting's name."""
    return WEIGHTINGS.lookup(text.partition(":")[0]) is None and (Path(text) / CONFIG).is_file()


def weighting_of_run(run: Path) -> tuple[TrainSettings, list[EffectiveWeighting]]:
    """Return a run's settings and weighting: one item if fixed; if learned, one for each of up to 12 steps. Raises ElboError."""
    config = read_run_config(run)
    if not all(map(config.settings.states, OBJECTIVE)):
        raise DataError(f"{run}: was imported without its objective; import it again with --weighting and --schedule")
    return config.settings, effective_weightings(run, config.settings)


def effective_weightings(run: Path, settings: TrainSettings) -> list[EffectiveWeighting]:
    """Return a run's weighting: one item if fixed; if learned, one for each of up to 12 steps. Raises ElboError."""
    # A learned weighting is recomputed from the loss log, as training does after each log interval.
    low = settings.logsnr_min
    high = settings.logsnr_max
    weighting = resolve_weighting(settings.weighting)
    schedule = schedule_of(settings) or parse_schedule("uniform", low, high)
    ends = weighting.within_support(low, high)
    if not weighting.learned:
        return [EffectiveWeighting(0, 0, weighting, ends)]
    path = run / "losslog.jsonl"
    online = OnlineObjective(Objective(weighting, schedule, Prediction(settings.prediction)))
    intervals = read_losslog(path).rows if path.exists() else []
    chosen = {round(k * len(intervals) / (TIMES - 1)) for k in range(TIMES)}
    effective = []
    for number, interval in enumerate([LossLogRow(0, 0, *torch.zeros(3, len(online.edges) - 1).tolist()), *intervals]):
        with reading(path):  # FormatError if the log's number of bins is wrong
            online.refit(interval.sums)
        if number in chosen:
            effective.append(EffectiveWeighting(interval.step, interval.images, online.objective.weighting, ends))
    return effective


@dataclass(frozen=True, repr=False)
class Initial(TrainedRun):
    """The run whose weights a new run begins from (--init). The network is on the meta device.

    source: path given to --init: run, checkpoint, or file of weights.
    """

    source: Path

    def facts(self, network: NetworkConfig, data: RunData) -> InitFacts:
        """Return the section `init` of the new run's config.yaml.

        network, data: of the new run. Raises UsageError: the weights don't fit the network.
        """
        self.weights(network, data)  # so that a bad choice is refused before the run begins
        about = self.about
        imported = {key: value for key, value in about.items() if key.startswith("imported_")}
        which = about["weights"], about["weights_sha256"], about.get("step"), about.get("images_trained")
        return InitFacts(str(self.source), *which, **imported)

    def inherited(self, data: RunData) -> dict[str, Any]:
        """Return the settings that a new run inherits. data: dataset of the new run."""
        same = data.payload_sha256 and data.payload_sha256 == self.data.payload_sha256
        left = (SPEED,) if same else (SPEED, VALIDATION)
        stored = self.settings.stored().items()
        return {key: value for key, value in stored if key != "time_limit" and SETTINGS[key].group not in left}

    def rows(self, network: NetworkConfig, data: RunData) -> list[int | None]:
        """Return the old run's class number for each new class; None: the old run lacks the class.

        Classes are matched by name if the datasets have class names in common, else by number.
        """
        before = self.network.config.num_classes
        now = network.num_classes
        old = self.data.class_names or []
        new = data.class_names or []
        if len(set(old)) == len(old) == before and len(new) == now and set(old) & set(new):
            return [old.index(name) if name in old else None for name in new]
        return [row if row < before else None for row in range(now)]

    def weights(self, network: NetworkConfig, data: RunData) -> dict[str, Tensor]:
        """Return the new network's weights by name, without those that stay random. Raises UsageError, FormatError."""
        read = self.checkpoint.weights(self.about["weights"]).read
        with reading(self.source, kind=UsageError):
            return transfer(self.network.config, network, self.rows(network, data), read)


def open_initial(path: Path) -> Initial:
    """Open the path of --init. Raises FormatError, DataError, UsageError."""
    folder = path
    name = "ema"
    if path.suffix == WEIGHTS and (path.parent / META).exists():
        folder = path.parent
        name = path.stem
    source = open_run(folder, torch.device("cpu"), name)
    source.network.to("meta")
    return Initial(**vars(source), source=path)


def initial_of(path: Path | None, existing: ConfigFile | None, out: Path) -> Initial | None:
    """Return the old run of --init; None: random weights, or the new run `out` has a checkpoint.

    path: of --init. existing: config of --config or of the run to resume; its section `init` is the default of `path`.
    Raises FormatError, UsageError; DataError: the old run's weights are gone or have changed.
    """
    init = existing.config.init if existing else None
    if existing is None or init is None or path not in (None, Path(init.run)):
        return None if path is None else open_initial(path)
    if existing.path == out / CONFIG and store.checkpoints(out):
        return None
    initial = open_initial(Path(init.run))
    if initial.about["weights_sha256"] != init.sha256:
        raise DataError(
            f"{init.run}: has changed since {existing.path} was written; name the checkpoint of that time with --init"
        )
    return initial


def dataset_for(existing: ConfigFile | None) -> Path:
    """Return the path of the dataset to train on. Raises DataError.

    existing: config.yaml that names the dataset; None: the current folder's only dataset.
    """
    data = find_dataset(Path()) if existing is None else dataset_of(existing.config.data, existing.path.parent)
    log.info("using dataset %s", data)
    return data
