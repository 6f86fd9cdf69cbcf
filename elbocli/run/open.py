"""A trained run, opened: what sampling and scoring start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from elbocli.core.adaptive import AdaptiveSchedule, bin_edges, learned_weighting
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.training import parse_average
from elbocli.core.weighting import Weighting
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.checkpoint import Checkpoint, RunConfig, RunData, latest, read_checkpoint, read_config
from elbocli.files.dataset import PREPROCESSING
from elbocli.files.hashing import file_sha256
from elbocli.files.plugins import check_plugins
from elbocli.files.reading import reading
from elbocli.files.tensor_files import load_average, read_about
from elbocli.nn.networks import Network, build, config_of, loaded, place
from elbocli.run.imported import about_source, imported_weights
from elbocli.run.objective import Objective
from elbocli.run.settings import run_settings, trained_as
from elbocli.run.train_settings import TrainSettings


@dataclass(frozen=True)
class TrainedRun:
    """A network with the weights of a checkpoint, or of a file made by 'elbo ema', in eval mode on its device.

    path: of the run. about: which weights these are: weights, step, images_trained, weights_sha256, and for a file
    weights_file. files: digests of the files that settings name.
    """

    path: Path
    network: Network
    objective: Objective
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
        return self.objective.prediction

    def schedule(self) -> Schedule:
        """The one it was trained under; one that adapts, as it was at the checkpoint.

        Raises FormatError when it can't be read, DataError when its file has changed since.
        """
        fixed = self.objective.schedule
        if fixed is None:
            return self._online("adaptive schedule").schedule(self.objective.weighting, self.settings.floor)
        file = fixed.file
        if file is not None and self.files.get(str(file)) not in (None, file_sha256(file)):
            raise DataError(f"{file}: has changed since {self.path} was trained on it; name the schedule to use")
        return fixed

    def weighting(self) -> Weighting:
        """The one it was trained with; one that is learned, as it was at the checkpoint.

        Raises FormatError when it can't be read, and what `schedule` raises.
        """
        weighting = self.objective.weighting
        if not weighting.learned:
            return weighting
        return learned_weighting(weighting, self.schedule(), self.prediction, self._online("learned weighting"))

    def _online(self, what: str) -> AdaptiveSchedule:
        """The errors that the checkpoint remembers. Raises FormatError when it holds none, `what` being what they tell."""
        online = AdaptiveSchedule(bin_edges(self.settings.logsnr_min, self.settings.logsnr_max))
        try:
            online.state.copy_(self.checkpoint.state()["online"])
        except (KeyError, TypeError, RuntimeError) as error:
            raise FormatError(f"{self.checkpoint.path / 'state.pt'}: holds no {what}") from error
        return online


def empty_network(config: RunConfig, where: Path) -> Network:
    """The network of a run's config, without memory. Raises FormatError."""
    network = config_of(config.network, where)
    with reading(where), torch.device("meta"):
        return build(network)


def read_run_config(run: Path, warn: Callable[[str], None]) -> RunConfig:
    """A run's config.yaml. Raises FormatError, and UsageError when a plug-in that it needs was not run."""
    config = read_config(run)
    check_plugins(config.plugins, run)
    return config


def find_run(path: Path, warn: Callable[[str], None]) -> tuple[Path, Checkpoint]:
    """A run and its newest whole checkpoint; or, when `path` is a checkpoint, its run and that one.

    Raises FormatError when it is neither, or the checkpoint is damaged; DataError when there is none yet.
    """
    if (path / "meta.json").exists():
        run = path.resolve().parent.parent
        if not (run / "config.yaml").exists():
            raise FormatError(f"{path}: a checkpoint outside its run (no {run / 'config.yaml'}); put it back there")
        return run, read_checkpoint(path)
    read_config(path)
    checkpoint = latest(path)
    if checkpoint is None:
        raise DataError(f"{path}: no checkpoint yet; let 'elbo train -o {path}' reach its first one")
    return path, checkpoint


def began_from(config: RunConfig) -> dict[str, Any]:
    """Facts on the weights that a run began from, as `init_run` and others; none without such."""
    return config.init.about() if config.init else {}


def open_run(path: Path, device: torch.device, warn: Callable[[str], None], weights: str = "ema") -> TrainedRun:
    """A run or checkpoint. weights: `ema` is the run's first average, `model` the last weights; else an average's name or
    spec, or the path of a file that 'elbo ema' made.

    Raises FormatError (no run; damaged; weights that don't fit), DataError (no checkpoint yet; another run's average),
    UsageError (no such average).
    """
    run, checkpoint = find_run(path, warn)
    config = read_run_config(run, warn)
    settings = run_settings(config.settings, run / "config.yaml")
    held = imported_weights(checkpoint.names) if weights == "ema" and about_source(config) else weights
    if held in checkpoint.names:
        tensors, about = checkpoint.weights(held), _held(checkpoint, held)
    else:
        tensors, about = _average(settings.ema[0] if weights == "ema" else weights, checkpoint, config)
    seen = {"step": checkpoint.step, "images_trained": checkpoint.images}
    seen = about_source(config) or seen
    data = config.data
    trained = {f"trained_{key}": getattr(settings, key) for key in ("weighting", "schedule") if key in config.settings}
    trained |= {"prediction": settings.prediction, "trained_on": data.payload_sha256}
    trained |= {key: value for key in PREPROCESSING if (value := getattr(data, key)) is not None}
    trained |= began_from(config)
    network = empty_network(config, run / "config.yaml")
    try:
        network = loaded(network, tensors)
    except RuntimeError as error:
        raise FormatError(
            f"{about.get('weights_file', checkpoint.path)}: its weights don't fit {run / 'config.yaml'}: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    network = place(network, device).eval().requires_grad_(False)
    return TrainedRun(
        run, network, Objective(settings), settings, data, config.files, checkpoint, {**trained, **seen, **about}
    )


def _held(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Name and digest of weights of a checkpoint."""
    return {"weights": name, "weights_sha256": checkpoint.meta.files[f"{name}.safetensors"].sha256}


def _average(wanted: str, checkpoint: Checkpoint, config: RunConfig) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of an average and what they are."""
    try:
        name = parse_average(wanted).name
    except UsageError:
        name = ""
    if name in checkpoint.names:
        return checkpoint.weights(name), _held(checkpoint, name)
    file = Path(wanted)
    if not file.is_file():
        known = ", ".join(name for name in checkpoint.names if name.startswith("ema-")) or "none"
        raise UsageError(
            f"no average {wanted!r} in {checkpoint.path}, and no such file; averages there: {known}; "
            "'elbo ema RUN -o FILE' makes others of snapshots"
        )
    made, digest = read_about(file)
    ours = trained_as(config)
    for key, value in made.trained.items():
        if key in ours and value != ours[key]:
            raise DataError(
                f"{file}: is of another run, with {key} {value}, and this one has {ours[key]}; name its own"
            )
    seen = {"weights": parse_average(made.spec).name, "step": made.step, "images_trained": made.images}
    return load_average(file), {**seen, "weights_file": str(file), "weights_sha256": digest}
