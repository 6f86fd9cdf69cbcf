"""The run folder and its checkpoints.

run/config.yaml, metrics.jsonl, losslog.jsonl, status.json, previews/, and
checkpoints/step-00001000/{model,ema-*}.safetensors, state.pt (tensors only), meta.json: a sealed folder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from msgspec import structs
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files import sealed_folder
from elbocli.files.atomic import sweep, write_text
from elbocli.files.recognise import instead
from elbocli.files.records import stored
from elbocli.files.retention import folder_name, numbered, step_of
from elbocli.files.run_config import RunConfig
from elbocli.files.sealed_folder import CONFIG, WEIGHTS, FolderMeta, SealedFolder
from elbocli.files.tensor_files import load, load_tensors
from elbocli.files.yaml_text import read_yaml, yaml_text

FOLDER = "checkpoints"
MOST_LOOKS = 100
"""Times that somebody may delete what was found, while it is opened, before one gives up."""
GONE = ("cudnn_benchmark", "manual_gc", "nccl_timeout", "on_checkpoint", "tensorboard", "tf32")
"""Settings that config.yaml of earlier versions holds, and that no run has any more."""
UNUSED = {"multiscale": False}
"""Such settings that changed the training unless they had this value: with another, the run is refused."""


@stored("meta.json of a checkpoint", "elbo-checkpoint")
class CheckpointMeta(FolderMeta, frozen=True):
    """meta.json of a checkpoint, which has log_bytes."""


@dataclass(frozen=True)
class Checkpoint(SealedFolder):
    """A whole checkpoint on disk and its meta.json."""

    SCHEMA = CheckpointMeta
    WORD = "checkpoint"
    HOLDS = True

    def weights(self, name: str) -> dict[str, Tensor]:
        """The tensors of `model` or of an average, `ema-…`, by name.

        Raises FormatError when it holds none of that name, or the file is no safetensors file.
        """
        file = f"{name}{WEIGHTS}"
        if file not in self.meta.files:
            raise FormatError(f"{self.path}: holds no weights {name}; it holds {', '.join(self.names)}")
        return load(self.file(file), self.path / file)

    def state(self) -> dict[str, Any]:
        """Optimizer and schedule state. Raises FormatError; never runs code from the file."""
        return load_tensors(self.file("state.pt"), str(self.path / "state.pt"))


def save(
    run: Path, step: int, weights: dict[str, dict[str, Tensor]], state: dict[str, Any], meta: dict[str, Any]
) -> Path:
    """Write a checkpoint, and return its path. weights: file name → tensors. Raises DataError."""
    with Checkpoint.writing(run / FOLDER, step, meta) as aside:
        sealed_folder.write_weights(aside, weights)
        torch.save(state, aside / "state.pt")
    return run / FOLDER / folder_name(step)


def drop(run: Path, kept: Callable[[list[int]], Collection[int]]) -> None:
    """Delete the checkpoints of a run that `kept` doesn't choose of all steps. Raises DataError."""
    by_step = {step_of(path): path for path in checkpoints(run)}
    stay = kept(list(by_step))
    sealed_folder.remove(path for step, path in by_step.items() if step not in stay)


def checkpoints(run: Path) -> list[Path]:
    """Folders of all checkpoints of a run, damaged ones too, by step."""
    return numbered(run / FOLDER)


def clean(run: Path) -> None:
    """Remove what killed writers left behind."""
    for folder in (run / FOLDER, run / "previews", run):
        sweep(folder)


def read_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """One checkpoint, every file checked against its digest unless told not to. Raises FormatError."""
    found = Checkpoint.read(path, verify)
    if found.meta.log_bytes is None:
        raise FormatError(f"{path}: not a whole checkpoint: 'log_bytes' is missing")
    return found


def latest(run: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are passed to `warn` by name. None when there is none at all.

    It is held: what it says can be read even when it is deleted. Raises FormatError when there are some and all are damaged.
    """
    found, damaged, gone = None, list[FormatError](), list[FormatError]()
    for _ in range(MOST_LOOKS):
        damaged, gone = [], []
        newest_first = reversed(checkpoints(run))
        found = next(sealed_folder.whole(newest_first, read_checkpoint, damaged.append, gone.append), None)
        if found is not None or not gone:  # else whoever trains it has deleted them meanwhile, and written others
            break
    if found is None and (gone or damaged):
        remedy = "choose another run, or delete it to train again"
        if gone:
            raise DataError(f"{run}: its checkpoints were deleted faster than they could be read; try again")
        raise FormatError(f"{run}: every checkpoint is damaged; {remedy} ({damaged[0]})")
    for trouble in damaged:
        warn(f"{trouble}; using the checkpoint before it")
    return found


def write_config(run: Path, config: RunConfig) -> None:
    """Write config.yaml."""
    write_text(run / CONFIG, yaml_text(config.json()))


def read_config(run: Path) -> RunConfig:
    """config.yaml of a run. Raises FormatError when it is not one."""
    path = run / CONFIG
    if not run.is_dir() or not path.exists():
        raise FormatError(instead(run, "run"))
    return checked_config(read_yaml(path), path)


def checked_config(content: dict[str, Any], path: Path) -> RunConfig:
    """The content of a config.yaml, if it is a run's. Raises FormatError."""
    config = RunConfig.of(content, path)
    settings = {
        key: value for key, value in config.settings.items() if key not in GONE and (key, value) not in UNUSED.items()
    }
    # Before tf32 was a precision, it was a setting beside fp32, without effect on a CPU.
    faster = config.settings.get("tf32", False) and not str(config.device_name).startswith("cpu")
    if faster and settings.get("precision") == "fp32":
        settings["precision"] = "tf32"
    # Before the commands of all starts were kept, it was that of the last.
    commands = config.commands or [config.more["command"]] if "command" in config.more else config.commands
    return structs.replace(config, settings=settings, commands=commands)
