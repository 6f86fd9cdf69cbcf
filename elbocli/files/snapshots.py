"""Snapshots of averages along a run, from which other averages are made afterwards.

run/snapshots/step-00001000/{ema-power-….safetensors, meta.json}: a sealed folder.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from elbocli.errors import FormatError, Vanished
from elbocli.files import sealed_folder
from elbocli.files.atomic import sweep
from elbocli.files.records import read_json, stored
from elbocli.files.retention import folder_name, numbered, step_of
from elbocli.files.sealed_folder import META, WEIGHTS, FolderMeta, SealedFolder
from elbocli.files.tensor_files import TensorFile

FOLDER = "snapshots"
SnapshotLayout = dict[str, tuple[str, tuple[int, ...]]]
"""Name of a tensor → its type as safetensors calls it (F32) and its shape."""


@stored("meta.json of a snapshot", "elbo-snapshot")
class SnapshotMeta(FolderMeta, frozen=True):
    """meta.json of a snapshot."""


@dataclass(frozen=True)
class Snapshot(SealedFolder):
    """A snapshot on disk and its meta.json."""

    SCHEMA = SnapshotMeta
    WORD = "snapshot"

    def tensors(self, name: str) -> TensorFile:
        """Open the file of an average, whose tensors are read when asked for. Raises FormatError."""
        return TensorFile(self.path / f"{name}{WEIGHTS}")

    def layout(self, name: str) -> SnapshotLayout:
        """Types and shapes of an average's tensors. Raises FormatError."""
        return self.tensors(name).layout


def write(run: Path, step: int, averages: dict[str, dict[str, Tensor]], meta: dict[str, Any]) -> Path:
    """Keep averages as they are after `step`, and return the path. averages: file name → tensors; meta: at least `images`.

    Raises DataError, and leaves no trace, when the disk is full.
    """
    with Snapshot.writing(run / FOLDER, step, meta) as aside:
        sealed_folder.write_weights(aside, averages)
    return run / FOLDER / folder_name(step)


def folders(run: Path) -> list[Path]:
    """Folders of all snapshots of a run, damaged ones too, by step."""
    return numbered(run / FOLDER)


def is_snapshot(path: Path) -> bool:
    """Whether a folder says that it is one."""
    with contextlib.suppress(FormatError):
        return read_json(path / META).get("format") == SnapshotMeta.head()["format"]
    return False


def read(path: Path, verify: bool = True) -> Snapshot:
    """One snapshot, every file checked against its digest, or only against its size. Raises FormatError."""
    found = Snapshot.read(path, verify)
    found.check_name()
    for name, known in found.meta.files.items():
        file = path / name
        if not file.exists() and not path.exists():
            raise Vanished(f"{path}: is gone since it was found")
        if not file.is_file() or file.stat().st_size != known.bytes:
            raise FormatError(f"{file}: damaged: its size is not the one in {META}")
    return found


def whole(run: Path, warn: Callable[[str], None], until: int | None = None) -> list[Snapshot]:
    """Every snapshot up to step `until`, by step, its files checked; damaged ones are named to `warn` and left out."""
    wanted = [path for path in folders(run) if until is None or step_of(path) <= until]
    return list(sealed_folder.whole(wanted, read, lambda trouble: warn(f"{trouble}; going on without this snapshot")))


def drop_after(run: Path, step: int) -> list[int]:
    """Delete the snapshots of later steps, and what a killed writer left; return the steps deleted.

    For a run that goes on from `step`, and only for the process that holds its lock. Raises DataError.
    """
    sweep(run / FOLDER)
    late = [path for path in folders(run) if step_of(path) > step]
    sealed_folder.remove(late)
    return [step_of(path) for path in late]
