"""Lock a run folder during training, and write the run's config.yaml and status.json."""

import hashlib
import json
import os
import time
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from platform import python_version
from threading import Lock
from typing import Annotated, Any

import torch
from msgspec import Meta, structs

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files import checkpoint as store
from elbocli.files.atomic import lock, locked, write_json, writing
from elbocli.files.checkpoint import CONFIG
from elbocli.files.records import Count, Record, read_json, stored
from elbocli.runs.config import ConfigFile, read_config, write_config
from elbocli.runs.settings import Resolved, difference
from elbocli.version import __version__

STATUS = "status.json"
LOCK = ".lock"
RUNNING = "running"
DONE = "done"
EVERY_S = 5.0  # least time between two writes of the current step to status.json


def config_to_resume(out: Path, anew: bool, preset: str | None) -> ConfigFile | None:
    """Return the config.yaml of a run to resume; None: no such run.

    anew: a run without a checkpoint counts as no run. preset: a run with another preset counts as no run; None: any counts.
    Raises FormatError: config.yaml is damaged. Raises UsageError: an imported run can't resume.
    """
    if not (out / CONFIG).exists() or (anew and not store.checkpoints(out)):
        return None
    config = read_config(out)
    if config.source:
        raise UsageError(f"{out}: an imported run can't be resumed; 'elbo train DATA.h5 --init {out} -o NEW' trains its weights")
    return ConfigFile(out / CONFIG, config) if preset in (None, config.settings.preset) else None


def claim(out: Path, resolved: Resolved, stack: ExitStack, patience: float) -> None:
    """Lock a run folder until `stack` closes, and check that the run can begin or resume there.

    patience: seconds to wait for another process's lock.
    Raises UsageError: the folder holds files but no run, or checkpoints of a run with other settings.
    Raises DataError: another process keeps the lock, or the checkpoints are gone.
    """
    with writing(out):
        # A start that failed or was killed leaves a lock, hidden temporary files, and status.json.
        taken = out.exists() and (not out.is_dir() or any(path.name[0] != "." and path.name != STATUS for path in out.iterdir()))
        if taken and not (out / CONFIG).exists():
            raise UsageError(f"{out}: exists and is not a run; choose another -o")
        out.mkdir(parents=True, exist_ok=True)
        stack.enter_context(locked(out / LOCK, str(out), patience))
    if (out / CONFIG).exists():
        before = read_config(out)
        changed = difference(before, resolved.config())
        if changed and store.checkpoints(out):
            raise UsageError(
                f"{out}: holds a run with other settings; choose another -o, or leave out these options:\n  "
                + "\n  ".join(changed)
            )
        if Status(out, 0).now.saved is not None and not store.checkpoints(out):
            raise DataError(f"{out}: the run here has lost its checkpoints; put the checkpoints back, or choose another -o")
    store.clean(out)


def record_start(out: Path, resolved: Resolved, command: str, **about: Any) -> None:
    """Write config.yaml. command: command line as typed. about: fields `processes` and `device_name`."""
    config = resolved.config()
    before = read_config(out) if store.checkpoints(out) else config
    commands = before.commands
    text = json.dumps(config.json(), sort_keys=True)
    new = structs.replace(
        config,
        run_id=before.run_id or hashlib.sha256(text.encode()).hexdigest()[:32],
        elbo_version=__version__,
        torch_version=str(torch.__version__),
        python_version=python_version(),
        commands=commands if commands[-1:] == [command] else [*commands, command],
        data=structs.replace(config.data, from_run=os.path.relpath(str(config.data.path), out.resolve())),
        **about,
    )
    write_config(out, new)


@stored("status.json of a run")
class RunStatus(Record):
    """Status of a run.

    state: running, done, stopped, interrupted, failed; or dead (only from `read_status`): the process is gone.
    step, steps: updates done, and in the whole run. images: number of images trained on.
    saved: step of the newest checkpoint; None: no checkpoint.
    images_per_s: speed in the last log interval, as in metrics.jsonl; None: no interval yet.
    message: why the run ended before its last step, or ''. time: seconds since 1970.
    """

    state: str
    step: Count
    steps: Count
    images: Count
    time: Annotated[float, Meta(ge=0, le=253402300799)]
    message: str = ""
    saved: Count | None = None
    images_per_s: Annotated[float, Meta(ge=0)] | None = None

    @property
    def when(self) -> str:
        """Time of writing as text, in UTC."""
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%d %H:%M UTC")


def read_status(run: Path) -> RunStatus:
    """Return the current status of a run. Raises FormatError: status.json is missing or damaged."""
    path = run / STATUS
    status = RunStatus.of(read_json(path), f"{path}: the run's state is unknown")
    if status.state != RUNNING:
        return status
    try:
        with open(run / LOCK, "rb") as file:
            if not lock(file.fileno(), shared=True):  # this file system has no locks
                return status
    except BlockingIOError:
        return status
    except FileNotFoundError:
        pass
    return structs.replace(status, state="dead", message="its process is gone; the same command resumes the run")


class Status:
    """Writer of a run's status.json. Write errors are ignored.

    now: the status; at the beginning, that of status.json. writes: False on ranks other than 0.
    """

    def __init__(self, run: Path, steps: int, writes: bool = True):
        self.run = run
        self.writes = writes
        self._lock = Lock()
        self._written = time.monotonic()
        self.now = RunStatus("", 0, steps, 0, 0.0)
        with suppress(FormatError):
            self.now = structs.replace(read_status(run), steps=steps)

    def reached(self, **values: Any) -> None:
        """Change fields of the status, such as `step`; write status.json if its last write was EVERY_S seconds ago."""
        self.write(RUNNING, time.monotonic() - self._written >= EVERY_S, **values)

    def write(self, state: str, due: bool = True, **values: Any) -> None:
        """Change fields of the status, and write status.json. Thread-safe. due: False only changes the fields."""
        with self._lock, suppress(DataError):  # the checkpoint writer reports write errors
            self.now = structs.replace(self.now, **{"message": "", "state": state, "time": round(time.time(), 3), **values})
            if due:
                self._written = time.monotonic()
            if due and self.writes:
                write_json(self.run / STATUS, self.now.json())
