"""The run folder and its checkpoints.

run/config.yaml, metrics.jsonl, losslog.jsonl, status.json, previews/, and
checkpoints/step-00001000/{model,ema-*}.safetensors, state.pt (tensors only), meta.json with a sha256 of each file.
A checkpoint is a folder that was written aside, flushed and renamed; a damaged one is named and the one before used.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import shutil
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files import strict_yaml
from elbocli.files.atomic import flush_folder, told, write_text, writing_folder
from elbocli.files.retention import numbered, step_of

RUN_FORMAT = "elbo-run"
FORMAT = "elbo-checkpoint"
STALE = (".tmp", ".trash")


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk and its meta.json."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return int(self.meta["step"])

    def weights(self, *names: str) -> dict[str, Tensor]:
        """A safetensors file of it by its name, `model` or `ema-…`; the first of several names that it holds.

        Raises FormatError when it holds none of them, or the file is no safetensors file.
        """
        held = [name for name in names if f"{name}.safetensors" in self.meta["files"]]
        if not held:
            raise FormatError(f"{self.path}: holds no weights {names[0]}; it holds {', '.join(self.names)}")
        path = self.path / f"{held[0]}.safetensors"
        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{path}: not usable weights: {error}") from error

    @property
    def names(self) -> list[str]:
        """Of all weights that it holds, those of averages beginning with `ema-`."""
        return sorted(name.removesuffix(".safetensors") for name in self.meta["files"] if name.endswith(".safetensors"))

    def state(self) -> dict[str, Any]:
        """Optimizer and schedule state. Raises FormatError; never runs code from the file."""
        return load_tensors(self.path / "state.pt")


def load_tensors(source: Path | io.BytesIO, name: str = "") -> Any:
    """torch.load of tensors and plain values only. Raises FormatError when the file holds anything else."""
    try:
        return torch.load(source, map_location="cpu", weights_only=True, mmap=isinstance(source, Path) or None)
    except pickle.UnpicklingError as error:
        raise FormatError(
            f"{name or source}: refused: it holds more than tensors, and loading it could run code"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise FormatError(f"{name or source}: not a file of tensors: {' '.join(str(error).split())[:160]}") from error


def digest(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(
    run: Path, step: int, weights: dict[str, dict[str, Tensor]], state: dict[str, Any], meta: dict[str, Any]
) -> Path:
    """Write a checkpoint. weights: file name → tensors. Raises DataError."""
    folder = run / "checkpoints"
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{step:08d}"
    try:
        with writing_folder(path) as aside:
            for name, tensors in weights.items():
                save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, aside / f"{name}.safetensors")
            torch.save(state, aside / "state.pt")
            files = {
                file.name: {"bytes": file.stat().st_size, "sha256": digest(file)} for file in sorted(aside.iterdir())
            }
            content = {"format": FORMAT, "version": 1, "step": step, **meta, "files": files}
            (aside / "meta.json").write_text(json.dumps(content, indent=1) + "\n")
    except (SafetensorError, RuntimeError) as error:  # how these libraries report a full disk
        raise DataError(f"{path}: could not write: {' '.join(str(error).split())[:200]}") from error
    return path


def drop(run: Path, kept: Callable[[list[int]], Collection[int]]) -> None:
    """Delete the checkpoints of a run that `kept` doesn't choose of all steps. Raises DataError."""
    by_step = {step_of(path): path for path in checkpoints(run)}
    stay = kept(list(by_step))
    with told(run / "checkpoints", "delete old ones in"):
        for step, old in by_step.items():
            if step not in stay:
                trash = old.with_name(f".{old.name}.trash")
                old.rename(trash)
                shutil.rmtree(trash)
        flush_folder(run / "checkpoints")


def checkpoints(run: Path) -> list[Path]:
    """Folders of all checkpoints of a run, damaged ones too, by step."""
    return numbered(run / "checkpoints")


def clean(run: Path) -> None:
    """Remove what a killed writer left behind. Only for the process that holds the run's lock."""
    for left in [*run.glob("checkpoints/.*"), *run.glob("previews/.*"), *run.glob(".*.tmp")]:
        if left.name.endswith(STALE):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def read_checkpoint(path: Path, verify: bool = True) -> Checkpoint:
    """One checkpoint, every file checked against its digest unless told not to. Raises FormatError."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        if meta["format"] != FORMAT or meta["version"] != 1:
            raise FormatError(
                f"{path}: format is {meta['format']!r} version {meta['version']!r}, expected {FORMAT!r} version 1"
            )
        for name, known in meta["files"].items():
            if Path(name).name != name or (verify and digest(path / name) != known["sha256"]):
                raise FormatError(f"{path / name}: damaged: its sha256 is not the one in meta.json")
            int(known.get("bytes", 0))
        int(meta["step"]), int(meta["images"]), dict(meta["log_bytes"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise FormatError(f"{path}: not a whole checkpoint: {error}") from error
    return Checkpoint(path, meta)


def latest(run: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """The newest whole checkpoint; damaged ones are passed to `warn` by name. None when there is none at all.

    Raises FormatError when there are some and all are damaged.
    """
    damaged: list[FormatError] = []
    for path in reversed(checkpoints(run)):
        try:
            found = read_checkpoint(path)
        except FormatError as error:
            damaged.append(error)
        else:
            for trouble in damaged:
                warn(f"{trouble}; using the checkpoint before it")
            return found
    if damaged:
        raise FormatError(
            f"{run}: every checkpoint is damaged; choose another run, or delete it to train again ({damaged[0]})"
        )
    return None


def write_config(run: Path, config: dict[str, Any]) -> None:
    """config.yaml: everything that was resolved."""
    write_text(run / "config.yaml", strict_yaml.dump({"format": RUN_FORMAT, "version": 1, **config}))


def read_config(run: Path) -> dict[str, Any]:
    """config.yaml of a run. Raises FormatError when it is not one."""
    path = run / "config.yaml"
    if not run.is_dir() or not path.exists():
        raise FormatError(f"{run}: not a run (no config.yaml inside); make one with 'elbo train -o {run}'")
    return checked_config(strict_yaml.read(path), path)


def checked_config(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """What a config.yaml says, if it is a run's. Raises FormatError."""
    if config.get("format") != RUN_FORMAT or config.get("version") != 1:
        raise FormatError(
            f"{path}: format is {config.get('format')!r} version {config.get('version')!r}, expected {RUN_FORMAT!r} version 1"
        )
    config.setdefault("files", {})  # those of a run that names none
    for key in ("settings", "network", "data", "files"):
        if not isinstance(config.get(key), dict):
            raise FormatError(f"{path}: no section {key!r}")
    return config
