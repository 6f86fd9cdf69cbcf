"""The run folder: held by one process while it trains, continued by the command that began it, and its record."""

from __future__ import annotations

import hashlib
import json
from contextlib import ExitStack, suppress
from pathlib import Path
from platform import python_version
from typing import Any

import torch
from msgspec import structs

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.atomic import is_aside, locked, writing
from elbocli.files.checkpoint import CONFIG, RunConfig
from elbocli.run.dataset_place import seen_from
from elbocli.run.imported import refuse_to_continue
from elbocli.run.settings import Basis, Resolved, difference
from elbocli.run.status import LOCK, read_status
from elbocli.version import __version__

PREVIEW_COUNT = 64
"""Most images in a preview: all of the same noise, and as many of each class that is drawn as of any other."""


def _check(out: Path, resolved: Resolved, anew: bool) -> None:
    """Raise UsageError unless training may begin or continue in the folder; DataError where the run's checkpoints are gone.

    A run without a checkpoint begins again, with any settings. A start that was killed leaves the lock, an empty folder of
    checkpoints, and files that were written aside. anew: begin again although checkpoints are gone.
    """
    saved = store.checkpoints(out)
    if not (out / CONFIG).exists():
        own = (LOCK, store.FOLDER)
        if saved or any(path.name not in own and not is_aside(path) for path in out.iterdir()):
            raise UsageError(f"{out}: exists and is not a run; choose another -o")
        return
    before = store.read_config(out)
    refuse_to_continue(before, out)
    if not saved:
        if not anew and _had_checkpoints(out):
            raise DataError(
                f"{out}: holds a run whose checkpoints are gone: there is none in {out / store.FOLDER}; put them back, or "
                "begin anew with --overwrite"
            )
        return
    if changed := difference(before, resolved.config()):
        raise UsageError(
            f"{out}: holds a run with other settings; choose another -o, or leave these out:\n  " + "\n  ".join(changed)
        )


def _had_checkpoints(out: Path) -> bool:
    """Tell whether a run without checkpoints ever had one: its status says so, or their folder is gone, too."""
    with suppress(FormatError):
        if read_status(out).saved is not None:
            return True
    return not (out / store.FOLDER).is_dir()


def basis_of(out: Path, anew: bool, preset: str | None) -> Basis | None:
    """The run that the folder holds, to take what isn't asked for from; None where it holds none.

    anew: whether a dataset is named, with which a run without a checkpoint begins anew. preset: the one that is asked for:
    another than the run's is of another run. Raises FormatError, and UsageError for a plug-in that it lacks.
    """
    with writing(out):
        if not (out / CONFIG).exists() or (anew and not store.checkpoints(out)):
            return None
    config = store.read_config(out)
    refuse_to_continue(config, out)
    if preset not in (None, config.settings.get("preset")):
        return None
    return Basis.of(out / CONFIG, config)


def claim(out: Path, resolved: Resolved, stack: ExitStack, patience: float, anew: bool = False) -> None:
    """Hold the folder for this process alone until the stack ends.

    patience: seconds to wait for another process to leave it. anew: begin again where checkpoints are gone. Raises
    UsageError when it holds something else, DataError when another process stays.
    """
    with writing(out):
        if out.exists() and not out.is_dir():
            raise UsageError(f"{out}: exists and is not a run; choose another -o")
        out.mkdir(parents=True, exist_ok=True)
        _check(out, resolved, anew)
    stack.enter_context(locked(out / LOCK, str(out), patience))
    with writing(out):
        _check(out, resolved, anew)
    store.clean(out)


def record_start(out: Path, resolved: Resolved, command: str, **about: Any) -> None:
    """Write config.yaml: what the steps from now on are made with, and the commands of all starts.

    command: as typed; repeated without a change, it stands there once. about: processes and device_name.
    """
    before = store.read_config(out) if store.checkpoints(out) else None
    commands = before.commands if before else []
    config = structs.replace(
        resolved.config(),
        run_id=(before and before.run_id) or _identity(resolved.config()),
        elbo_version=__version__,
        torch_version=str(torch.__version__),
        python_version=python_version(),
        commands=commands if commands[-1:] == [command] else [*commands, command],
        data=structs.replace(resolved.data, from_run=seen_from(out, Path(str(resolved.data.path)))),
        **about,
    )
    with writing(out):
        (out / store.FOLDER).mkdir(exist_ok=True)
    store.write_config(out, config)


def _identity(config: RunConfig) -> str:
    """Digest what a run is at its first start; it keeps that when it goes on with more steps, or is copied."""
    return hashlib.sha256(json.dumps(config.resolved(), sort_keys=True).encode()).hexdigest()[:32]
