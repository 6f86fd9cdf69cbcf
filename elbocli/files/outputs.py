"""The files that a command may write: new ones, and with --overwrite those of the kind that it writes.

No command writes into a run's own record, or over a file that it reads.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from elbocli.errors import DataError, ElboError, UsageError
from elbocli.files.atomic import sweep
from elbocli.files.file_system import special
from elbocli.files.recognise import EMPTY, MISSING, recognise

FOLDER = "a folder of PNGs"
RECORD = (
    *("config.yaml", "status.json", "metrics.jsonl", "losslog.jsonl", "validation.jsonl"),
    *("checkpoints", "snapshots", "previews"),
)
"""Files and folders that training writes into a run."""


def check_outputs(outputs: Sequence[tuple[Path, Collection[str]]], inputs: Collection[Path], overwrite: bool) -> None:
    """Raise UsageError for a file that may not be written, DataError where its folder is missing.

    outputs: paths and the kinds of files that are written there, as `recognise` and FOLDER name them; a name without a
    suffix is a folder's where FOLDER is among them. No kind: nothing is replaced. inputs: what the command was given to read.
    """
    seen: set[Path] = set()
    for path, kinds in outputs:
        if path.absolute() in seen:
            raise UsageError(f"{path}: is to hold two results; choose another name for one of them")
        seen.add(path.absolute())
        _check(path, kinds, inputs, overwrite)


def _check(path: Path, kinds: Collection[str], inputs: Collection[Path], overwrite: bool) -> None:
    folder = FOLDER in kinds and not path.suffix
    if folder:
        sweep(path.parent, path.name)  # which may put back the old folder
    if what := special(path):
        raise UsageError(f"{path}: is {what}, and only files are replaced; choose another name")
    if run := _run_of(path, inputs):
        raise UsageError(f"{path}: belongs to the run {run}; choose another name")
    if path.exists() and any(_same(path, source) for source in inputs):
        raise UsageError(f"{path}: is read by this command; choose another name")
    if not os.path.lexists(path):
        if not folder and not path.parent.is_dir() and path.parent not in inputs:
            raise DataError(f"{path}: there is no folder {path.parent}; make it first")
    elif not overwrite:
        from elbocli.files.resumable import clear_left

        clear_left(path)
        raise UsageError(f"{path}: already exists; choose another name{' or add --overwrite' if kinds else ''}")
    elif (found := _kind(path)) not in ({FOLDER, MISSING} if folder else {*kinds, EMPTY, MISSING} - {FOLDER}):
        raise UsageError(
            f"{path}: is {found}, and --overwrite replaces only what this command writes; choose another name, or delete it"
        )


def png_names(count: int) -> list[str]:
    """Return the names of the files in a folder of PNGs."""
    digits = len(str(max(count - 1, 999999)))
    return [f"{index:0{digits}d}.png" for index in range(count)]


def _run_of(path: Path, inputs: Collection[Path]) -> Path | None:
    """Return the run whose record a path is part of: one of the inputs, or any folder with a run's config.yaml."""
    here = path.absolute()
    for folder in here.parents:
        own = here.relative_to(folder).parts[0] in RECORD
        if own and (any(_same(folder, each) for each in inputs) or recognise(folder / "config.yaml").endswith("a run")):
            return folder
    return None


def _same(path: Path, other: Path) -> bool:
    with suppress(OSError):
        return path.samefile(other)
    return path.absolute() == other.absolute()


def _kind(path: Path) -> str:
    """Name what lies at a path as `recognise` does; samples and folders of samples more closely."""
    found = recognise(path)
    if path.is_dir():
        names = sorted(os.listdir(path))
        return FOLDER if names == png_names(len(names)) else found
    if found == "a dataset":
        from elbocli.files.dataset import Dataset

        with suppress(ElboError):
            return "samples" if Dataset(path, latents=True).attributes.samples is not None else found
    return found
