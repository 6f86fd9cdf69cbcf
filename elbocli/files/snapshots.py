"""Snapshots of averages along a run, from which other averages are made afterwards.

run/snapshots/step-00001000/{ema-power-….safetensors, meta.json}, a folder that was written aside, flushed and renamed;
meta.json holds the step and a sha256 of each file.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from elbocli.errors import DataError, FormatError
from elbocli.files.atomic import told, writing_folder
from elbocli.files.checkpoint import STALE, digest
from elbocli.files.retention import numbered, step_of

FORMAT = "elbo-snapshot"
FOLDER = "snapshots"
SUFFIX = ".safetensors"
SnapshotLayout = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor → its type as safetensors calls it (F32) and its shape."""


@dataclass(frozen=True)
class Snapshot:
    """A snapshot on disk and its meta.json. names: of the averages in it, as their files are called."""

    path: Path
    meta: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer updates done."""
        return int(self.meta["step"])

    @property
    def images(self) -> int:
        """Images seen."""
        return int(self.meta["images"])

    @property
    def names(self) -> list[str]:
        """Of the averages that it holds."""
        return sorted(name.removesuffix(SUFFIX) for name in self.meta["files"])

    def check(self) -> None:
        """Compare every file with its digest. Raises FormatError naming the damaged one."""
        for name, known in self.meta["files"].items():
            path = self.path / name
            with told(path, "read"):
                found = digest(path)
            if found != known["sha256"]:
                raise FormatError(f"{path}: damaged: its sha256 is not the one in meta.json")

    def tensors(self, name: str) -> Any:
        """An open safetensors file: its tensors are read when asked for. Raises FormatError."""
        path = self.path / f"{name}{SUFFIX}"
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise FormatError(f"{path}: not usable weights: {error}") from error

    def layout(self, name: str) -> SnapshotLayout:
        """What tensors an average has. Raises FormatError."""
        return layout_of(self.tensors(name))


def layout_of(file: Any) -> SnapshotLayout:
    """The layout of an open safetensors file."""
    parts = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118
    return {key: (str(part.get_dtype()), tuple(part.get_shape())) for key, part in parts.items()}


def write(run: Path, step: int, averages: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> Path:
    """Keep averages as they are after `step`. averages: file name → tensors; meta: at least `images`.

    Raises DataError, and leaves no trace, when the disk is full.
    """
    path = run / FOLDER / f"step-{step:08d}"
    with told(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with writing_folder(path) as aside:
            files = {}
            for name, tensors in averages.items():
                file = aside / f"{name}{SUFFIX}"
                save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, file)
                files[file.name] = {"bytes": file.stat().st_size, "sha256": digest(file)}
            content = {"format": FORMAT, "version": 1, "step": step, **meta, "files": files}
            (aside / "meta.json").write_text(json.dumps(content, indent=1) + "\n")
    except (SafetensorError, RuntimeError) as error:  # how safetensors reports a full disk
        raise DataError(f"{path}: could not write: {' '.join(str(error).split())[:200]}") from error
    return path


def folders(run: Path) -> list[Path]:
    """Folders of all snapshots of a run, damaged ones too, by step."""
    return numbered(run / FOLDER)


def is_snapshot(path: Path) -> bool:
    """Whether a folder says that it is one."""
    try:
        return json.loads((path / "meta.json").read_text())["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read(path: Path) -> Snapshot:
    """One snapshot, its meta.json and the sizes of its files checked. Raises FormatError."""
    try:
        meta = json.loads((path / "meta.json").read_text())
        if meta["format"] != FORMAT or meta["version"] != 1:
            raise FormatError(
                f"{path}: format is {meta['format']!r} version {meta['version']!r}, expected {FORMAT!r} version 1"
            )
        for name, known in meta["files"].items():
            if Path(name).name != name or not name.endswith(SUFFIX) or len(known["sha256"]) != 64:
                raise FormatError(f"{path}: its meta.json names no file that a snapshot has: {name!r}")
            if (path / name).stat().st_size != known["bytes"]:
                raise FormatError(f"{path / name}: damaged: its size is not the one in meta.json")
        int(meta["images"])
        if path.name.startswith("step-") and path.name != f"step-{int(meta['step']):08d}":
            raise FormatError(f"{path}: damaged: its meta.json is of step {meta['step']}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{path}: not a whole snapshot: {error}") from error
    return Snapshot(path, meta)


def whole(run: Path, warn: Callable[[str], None], until: int | None = None) -> list[Snapshot]:
    """Every snapshot up to step `until` by step, its files checked; damaged ones are named to `warn` and left out."""
    found = []
    for path in folders(run):
        try:
            snapshot = read(path)
            if until is not None and snapshot.step > until:
                continue
            snapshot.check()
        except (FormatError, DataError) as error:
            warn(f"{error}; going on without this snapshot")
        else:
            found.append(snapshot)
    return found


def drop_after(run: Path, step: int) -> list[int]:
    """Remove the snapshots of later steps, and what a killed writer left; the steps removed.

    For a run that goes on from `step`, and only for the process that holds its lock.
    """
    late = [path for path in folders(run) if step_of(path) > step]
    with told(run / FOLDER, "remove old snapshots"):
        _clean(run)
        for path in late:
            path.rename(path.with_name(f".{path.name}.trash"))
        _clean(run)
    return [step_of(path) for path in late]


def _clean(run: Path) -> None:
    for left in (run / FOLDER).glob(".step-*"):
        if left.name.endswith(STALE):
            shutil.rmtree(left)
