"""The run folder while a process holds it: that it is this run's, and where it is."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from platform import python_version
from typing import Any

import torch

from elbocli.errors import DataError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.atomic import is_aside, locked, told
from elbocli.files.run_config import RunConfig
from elbocli.files.sealed_folder import CONFIG, run_id
from elbocli.run.dataset_place import seen_from
from elbocli.run.imported import refuse_to_continue
from elbocli.run.settings import Basis, Resolved, difference
from elbocli.version import __version__

LOCK = ".lock"
PREVIEW_COUNT = 64
"""Most images in a preview: all of the same noise, and as many of each class that is drawn as of any other."""


def _check(out: Path, resolved: Resolved) -> None:
    """Raise UsageError unless the folder is empty or this run's; with the differences when it is another's.

    Empty is one too in which a claim was killed: nothing but the lock and files that were written aside.

    A run that got nowhere may go on with any settings: one that ran out of memory at once, with a smaller batch.
    """
    if (out / CONFIG).exists():
        before = store.read_config(out)
        refuse_to_continue(before, out)
        changed = difference(before, resolved.config()) if _begun(out) else []
        if changed:
            raise UsageError(
                f"{out}: holds a run with other settings; choose another -o, or leave these out:\n  "
                + "\n  ".join(changed)
            )
    elif out.exists() and (not out.is_dir() or not all(path.name == LOCK or is_aside(path) for path in out.iterdir())):
        raise UsageError(f"{out}: exists and is not a run; choose another -o")


def _begun(out: Path) -> bool:
    """Whether a run got anywhere: what it measures before its first step doesn't count."""
    log = out / "metrics.jsonl"
    if store.checkpoints(out) or not log.exists():
        return bool(store.checkpoints(out))
    with open(log, "rb") as file:
        return any(line and not line.startswith(b'{"step": 0,') for line in (file.readline(), file.readline()))


def basis_of(out: Path, anew: bool, preset: str | None) -> Basis | None:
    """The run that the folder holds, to take what isn't asked for from; None where it holds none.

    anew: whether a dataset is named, with which a run that got nowhere begins anew. preset: the one that is asked for:
    another than the run's is of another run. Raises FormatError, and UsageError for a plug-in that it lacks.
    """
    with told(out):
        if not (out / CONFIG).exists() or (anew and not _begun(out)):
            return None
    config = store.read_config(out)
    refuse_to_continue(config, out)
    if preset not in (None, config.settings.get("preset")):
        return None
    return Basis.of(out / CONFIG, config)


class RunFolder:
    """A run's folder, held while the run is trained, wherever somebody moves it to.

    path: where it was found last. unlocked: a warning, where the file system can't keep other processes from it.
    """

    def __init__(self, path: Path, handle: int, config: RunConfig, unlocked: str):
        self.path, self.unlocked = path, unlocked
        self._handle, self._config = handle, config

    def find(self) -> Path:
        """Look where the folder is now, and that its config.yaml is in it. Raises DataError when it is gone."""
        if not self._is_at(self.path):
            with suppress(OSError):
                moved = Path(f"/proc/self/fd/{self._handle}").readlink()
                self.path = moved if self._is_at(moved) else self.path
        if not self._is_at(self.path):
            gone = "the run's folder is gone, deleted or moved to another disk"
            raise DataError(f"{self.path}: {gone}; no checkpoint can be saved any more")
        if not (self.path / CONFIG).exists():
            store.write_config(self.path, self._config)
        return self.path

    def write(self, write: Callable[[Path], Path]) -> Path:
        """Return what `write` has made in the folder; it does it again where somebody has moved the folder meanwhile."""
        while True:
            before = self.find()
            try:
                return write(before)
            except DataError:
                if self.find() == before:
                    raise

    def _is_at(self, path: Path) -> bool:
        with suppress(OSError):
            return os.path.samestat(os.fstat(self._handle), path.stat())
        return False


def claim(out: Path, resolved: Resolved, stack: ExitStack, patience: float, about: dict[str, Any]) -> RunFolder:
    """Make the folder this process's alone until the stack ends, and this run's.

    patience: seconds to wait for another process to leave it. about: how it is trained now, for config.yaml. Raises
    UsageError when it holds something else, DataError when another process stays.
    """
    with told(out):
        if out.exists():
            _check(out, resolved)
        out.mkdir(parents=True, exist_ok=True)
    unlocked = stack.enter_context(locked(out / LOCK, str(out), patience))
    with told(out):
        _check(out, resolved)
        handle = os.open(out, os.O_RDONLY)
    stack.callback(os.close, handle)
    store.clean(out)
    known = run_id(out) if _begun(out) else None
    data = replace(resolved.data, from_run=seen_from(out, Path(str(resolved.data.path))))
    config = replace(
        resolved.config(),
        run_id=known or _identity(resolved.config()),
        elbo_version=__version__,
        torch_version=str(torch.__version__),
        python_version=python_version(),
        data=data,
        **about,
    )
    store.write_config(out, config)
    return RunFolder(out, handle, config, unlocked)


def _identity(config: RunConfig) -> str:
    """Digest what a run is at its first start; it keeps that when it goes on with more steps, or is copied."""
    return hashlib.sha256(json.dumps(config.resolved(), sort_keys=True).encode()).hexdigest()[:32]
