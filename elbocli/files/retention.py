"""Rules and names: when a checkpoint is due, which of them stay, and what their folders are called."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from elbocli.errors import DataError

PREFIX = "step-"


def due(step: int, save_every: int, milestone_every: int) -> bool:
    """Whether a checkpoint is due after that step: every `save_every` steps, and at milestones. 0: no milestones."""
    return step % save_every == 0 or _milestone(step, milestone_every)


def kept(steps: Collection[int], keep: int, milestone_every: int, held: Collection[int]) -> set[int]:
    """Choose the steps whose checkpoints stay: the newest `keep`, milestones, and those in use.

    steps: those of all checkpoints. milestone_every: multiples of it are milestones; 0 is none. held: steps whose
    checkpoints are in use now.
    """
    newest = sorted(steps)[len(steps) - min(keep, len(steps)) :]
    return {step for step in steps if step in newest or _milestone(step, milestone_every) or step in held}


def folder_name(step: int) -> str:
    """The name of a checkpoint or snapshot, `step-00001000`."""
    return f"{PREFIX}{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name, `step-00001000`."""
    return int(checkpoint.name.removeprefix(PREFIX))


def numbered(folder: Path) -> list[Path]:
    """Paths in a folder that have such a name, by step; a copy that somebody called `step-00001000-good` has none.

    Raises DataError when the folder is there and can't be listed: nobody shall take it for an empty one.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"{folder}: could not list: {error.strerror}") from error
    steps = [name for name in names if name.startswith(PREFIX) and name.removeprefix(PREFIX).isdecimal()]
    return sorted((folder / name for name in steps), key=step_of)


def _milestone(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
