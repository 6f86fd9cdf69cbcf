"""Check the files that a command is to write."""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path

from elbocli.errors import DataError, ElboError, UsageError
from elbocli.files.atomic import undo_unfinished
from elbocli.files.dataset import Dataset
from elbocli.files.recognise import EMPTY, FOLDER, MISSING, png_names, recognise
from elbocli.files.resumable import finished_by, journal_of

# files and folders that training writes into a run
RECORD = {
    "config.yaml",
    "status.json",
    "metrics.jsonl",
    "losslog.jsonl",
    "validation.jsonl",
    "checkpoints",
    "snapshots",
    "previews",
}


def check_outputs(outputs: Sequence[tuple[Path, Collection[str]]], inputs: Collection[Path], overwrite: bool) -> None:
    """Check that a command may write its output files.

    outputs: pairs (path, kinds of existing files that may be replaced).
        FOLDER among the kinds: a path without a suffix is a folder of PNGs.
    inputs: files that the command reads.
    Raises UsageError for a path that may not be written, DataError if the path's folder is missing.
    """
    read = [source.absolute() for source in inputs]
    seen = set[Path]()
    if not overwrite:
        undo_unfinished([path for path, _ in outputs])
    for path, kinds in outputs:
        here = path.absolute()
        folder = FOLDER in kinds and not path.suffix
        runs = [run for run in here.parents if run in read or (run / "config.yaml").exists()]
        wrong = ""
        if here in seen:
            wrong = "is named for two results; choose another name for one of them"
        elif any(here.relative_to(run).parts[0] in RECORD for run in runs):
            wrong = "is a file that training writes into a run; choose another name"
        elif not os.path.lexists(path):
            if not folder and not path.parent.is_dir() and path.parent not in inputs:
                raise DataError(f"{path}: there is no folder {path.parent}; make it first")
        elif path.resolve() in [source.resolve() for source in inputs]:
            wrong = "is read by this command; choose another name"
        elif not overwrite and not _finished_by_killed(path):
            wrong = f"already exists; choose another name{' or add --overwrite' if kinds else ''}"
        elif overwrite and (kind := _written_kind(path)) not in ({FOLDER} if folder else {*kinds, EMPTY} - {FOLDER}) | {MISSING}:
            wrong = f"is {kind}, and --overwrite replaces only what this command writes; choose another name"
        if wrong:
            raise UsageError(f"{path}: {wrong}")
        seen.add(here)


def _finished_by_killed(path: Path) -> bool:
    # The same command then removes what the killed process left.
    return finished_by(journal_of(path), path) is not None


def _written_kind(path: Path) -> str:
    kind = recognise(path)
    if path.is_dir():
        names = sorted(os.listdir(path))
        return FOLDER if names == png_names(len(names)) else kind
    if kind == "a dataset":
        with suppress(ElboError):
            return "samples" if Dataset(path, latents=True).attributes.samples is not None else kind
    return kind
