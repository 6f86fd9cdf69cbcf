"""A trained run, opened: its network for sampling and scoring, its dataset, and its weighting over time."""

from __future__ import annotations

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
from elbocli.errors import DataError, ElboError, FormatError, UsageError
from elbocli.files.checkpoint import (
    CONFIG,
    META,
    WEIGHTS,
    Checkpoint,
    RunConfig,
    RunData,
    latest,
    read_checkpoint,
    read_config,
)
from elbocli.files.dataset import LATENTS, PREPROCESSING, Dataset
from elbocli.files.latents import ATTRIBUTES
from elbocli.files.losslog import LossLogRow, read_losslog
from elbocli.files.plugins import check_plugins
from elbocli.files.reading import file_sha256, one_line, open_file, reading
from elbocli.files.schedule_file import resolve_weighting
from elbocli.files.tensor_files import check_average, load, read_about
from elbocli.nn.networks import Network, build, config_of, loaded, place
from elbocli.run.settings import run_settings, schedule_of, trained_as
from elbocli.run.train_settings import TrainSettings

SPACE = [ATTRIBUTES[key] for key in ("convention", "shift", "scale", "input", "autoencoder_sha256")]
"""Facts of latents by which their numbers mean the same."""
AVERAGE = "ema-imported"
"""Name of an imported run's weights that were an average where they came from; others are called `model`."""
TIMES = 12
"""Moments of a run that are told: the start, the end, and others evenly between them."""


def imported_weights(names: list[str]) -> str:
    """Return the name of the weights of an imported run's checkpoint, which holds one kind."""
    return AVERAGE if AVERAGE in names else "model"


def began_from(config: RunConfig) -> dict[str, Any]:
    """Return the origin of a run's initial weights, as `init_run` and other keys; empty where they were drawn."""
    return config.init.about() if config.init else {}


def dataset_of(data: RunData, run: Path) -> Path:
    """Return where the dataset of a run is now; as it was typed where it is nowhere.

    data: section `data` of its config.yaml. Places are, in this order: as typed, from the folder that one is in; as seen from
    the run; as typed, from the folder that the run is in, which may have moved with it. The same images go before others.
    """
    typed, home = Path(str(data.path)), run.resolve()
    places = [typed, *([] if data.from_run is None else [home / data.from_run]), home.parent / typed]
    there = [place for place in places if place.exists()]
    same = (place for place in there if _holds(place, data.payload_sha256))
    found = next(same, there[0] if there else typed)
    return typed if found is typed else Path(os.path.relpath(found))


def _holds(path: Path, digest: Any) -> bool:
    try:
        return bool(Dataset(path, latents=True).attributes.payload_sha256 == digest)
    except ElboError:
        return False


def check_content(data: RunData, kind: str, known: RunData, run: object) -> None:
    """Raise UsageError for pixels where a run has latents, and the other way round, and for latents of another space.

    data, kind: a dataset's identity, and what it holds. known: section `data` of the run's config.yaml; what it doesn't
    say is not compared.
    """
    mine, theirs = ("latents" if each else "pixels" for each in (known.latents, kind == LATENTS))
    if mine != theirs:
        raise UsageError(f"{data.path}: holds {theirs}, and {run} was trained on {mine}; name a dataset of {mine}")
    for key in SPACE if known.latents else ():
        here, there = data.more.get(key), known.more.get(key)
        if None not in (here, there) and here != there:
            raise UsageError(
                f"{data.path}: latents of another space: {key} is {here}, and {there} in {run}; pack the images by the same "
                "autoencoder"
            )


def read_run_config(run: Path) -> RunConfig:
    """Read a run's config.yaml. Raises FormatError, and UsageError when a plug-in that it needs was not run."""
    config = read_config(run)
    check_plugins(config.plugins, run)
    return config


def find_run(path: Path) -> tuple[Path, Checkpoint]:
    """Find a run and its newest whole checkpoint; or, when `path` is a checkpoint, its run and that one.

    Raises FormatError when it is neither, or the checkpoint is damaged; DataError when there is none yet.
    """
    if (path / META).exists():
        run = path.resolve().parent.parent
        if not (run / CONFIG).exists():
            raise FormatError(f"{path}: a checkpoint outside its run (no {run / CONFIG}); put it back there")
        return run, read_checkpoint(path)
    read_config(path)
    checkpoint = latest(path)
    if checkpoint is None:
        raise DataError(f"{path}: no checkpoint yet; let 'elbo train -o {path}' reach its first one")
    return path, checkpoint


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
        return f"TrainedRun({str(self.path)!r}, {self.age})"

    @property
    def step(self) -> int:
        """Optimizer updates that the weights have seen; 0 where that isn't known."""
        return int(self.about.get("step", 0))

    @property
    def age(self) -> str:
        """Age of the weights in words: step 4500, or imported."""
        return f"step {self.step}" if "step" in self.about else "imported"

    @property
    def prediction(self) -> Prediction:
        """The meaning of the network's output."""
        return Prediction(self.settings.prediction)

    def schedule(self) -> Schedule:
        """Return the run's noise schedule; an adaptive schedule as of the checkpoint.

        Raises FormatError when it can't be read, DataError when its file has changed since.
        """
        fixed = schedule_of(self.settings)
        if fixed is None:
            return self._online().schedule(resolve_weighting(self.settings.weighting), self.settings.floor)
        file = fixed.file
        if file is not None and self.files.get(str(file)) not in (None, file_sha256(file)):
            raise DataError(f"{file}: has changed since {self.path} was trained on it; name the schedule to use")
        return fixed

    def weighting(self) -> Weighting:
        """Return the one it was trained with; one that is learned, as it was at the checkpoint.

        Raises FormatError when it can't be read, and what `schedule` raises.
        """
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
    run, checkpoint = find_run(path)
    config = read_run_config(run)
    settings = run_settings(config.settings, run / CONFIG)
    if weights == "ema":
        weights = imported_weights(checkpoint.names) if config.source else settings.ema[0]
    name = weights
    with suppress(UsageError):
        name = parse_average(weights).name
    if name in checkpoint.names:
        tensors = checkpoint.weights(name)
        about = {"weights": name, "weights_sha256": checkpoint.meta.files[name + WEIGHTS].sha256}
    else:
        tensors, about = _average(Path(weights), checkpoint, config)
    known: dict[str, Any] = {
        f"trained_{key}": getattr(settings, key) for key in ("weighting", "schedule") if key in config.settings
    }
    known |= {"prediction": settings.prediction, "trained_on": config.data.payload_sha256}
    known |= {key: value for key in PREPROCESSING if (value := getattr(config.data, key)) is not None}
    known |= began_from(config)
    trained = {"step": checkpoint.step, "images_trained": checkpoint.images}
    known |= config.source.about() if config.source else trained
    network = empty_network(config, run / CONFIG)
    try:
        network = loaded(network, tensors)
    except RuntimeError as error:
        where = about.get("weights_file", checkpoint.path)
        raise FormatError(f"{where}: its weights don't fit {run / CONFIG}: {one_line(error)}") from error
    network = place(network, device).eval().requires_grad_(False)
    return TrainedRun(run, network, settings, config.data, config.files, checkpoint, {**known, **about})


def _average(file: Path, checkpoint: Checkpoint, config: RunConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of an average that 'elbo ema' made, and what they are."""
    if not file.is_file():
        raise UsageError(
            f"no average {str(file)!r} among {', '.join(checkpoint.names)} in {checkpoint.path}, and no such file"
        )
    made, digest = read_about(file)
    ours = trained_as(config)
    for key, value in made.trained.items():
        if key in ours and value != ours[key]:
            raise DataError(
                f"{file}: is of another run, with {key} {value}, and this one has {ours[key]}; name its own"
            )
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

    def verdict(self) -> str:
        """Say in words whether its loss is an ELBO."""
        verdict, rise = self.weighting.verdict(self.low, self.high), self.weighting.rise(self.low, self.high)
        return f"{verdict}; it rises by {100 * rise:.3g}% of its largest value" if rise else verdict


class RunWeighting(NamedTuple):
    """A run's weighting over time: one entry where it is fixed, else one for each moment that is told, the last being now."""

    run: Path
    settings: TrainSettings
    times: list[EffectiveWeighting]

    def json(self) -> dict[str, Any]:
        """Return all of it but the curves. monotone: whether the loss was an ELBO all the time."""
        settings, times = self.settings, [each.json() for each in self.times]
        return {
            "run": str(self.run),
            "weighting": settings.weighting,
            "schedule": settings.schedule,
            "monotone": all(each["monotone"] for each in times),
            "logsnr": [settings.logsnr_min, settings.logsnr_max],
            "times": times,
        }

    def lines(self) -> list[str]:
        """Say it to people, a line for each moment."""
        head = f"{self.run}: {self.settings.weighting}"
        if len(self.times) == 1:
            return [f"{head}: {self.times[0].verdict()}"]
        head = f"{head}, learned under {self.settings.schedule}"
        return [head, *(f"after step {each.step} ({each.images} images): {each.verdict()}" for each in self.times)]


def means_run(text: str) -> bool:
    """Tell whether text that may be a weighting's SPEC is the folder of a run instead; a name counts before a folder."""
    return WEIGHTINGS.named(text.partition(":")[0]) is None and (Path(text) / CONFIG).is_file()


def weighting_of_run(run: Path) -> RunWeighting:
    """Read the weighting of a run over all it has trained so far. Raises ElboError."""
    config = read_run_config(run)
    if not {"weighting", "schedule"} <= set(config.settings):
        raise DataError(f"{run}: was imported without its objective; 'elbo import' takes --weighting and --schedule")
    settings = run_settings(config.settings, run / CONFIG)
    return RunWeighting(run, settings, effective_weightings(run, settings))


def effective_weightings(run: Path, settings: TrainSettings) -> list[EffectiveWeighting]:
    """Return a run's weightings over time, from its settings and its loss log alone.

    One that is learned follows from the log, because training adapts it at the end of each of the log's intervals, from the
    same sums by the same code. Raises ElboError for a file that is gone, and for a damaged log.
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
