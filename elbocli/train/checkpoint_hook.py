"""A shell command after each checkpoint, while training goes on: `--on-checkpoint`. Needs no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from elbocli.files.retention import step_of
from elbocli.runtime.background import Background

GRACE_S = 5.0
"""Time from SIGTERM to SIGKILL: short, because a launcher that has asked for the end kills after its own grace."""
LOOK_S = 0.1
STDERR = 2
LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
LAUNCHERS_PREFIX = "TORCHELASTIC_"
"""Variables by which torchrun talks to a worker. A command that had these would take itself for one, and wait for the others."""


def environment(run: Path, checkpoint: Path) -> dict[str, str]:
    """Return the command's environment: paths are absolute, and there is no trace of a launcher."""
    own = {k: v for k, v in os.environ.items() if k not in LAUNCHERS and not k.startswith(LAUNCHERS_PREFIX)}
    about = {"ELBO_CHECKPOINT": str(checkpoint.absolute()), "ELBO_RUN": str(run.absolute())}
    return {**own, **about, "ELBO_STEP": str(step_of(checkpoint))}


class CheckpointHook:
    """Runs `sh -c command` after each checkpoint, one at a time, in a thread; '' runs nothing.

    A checkpoint that comes while the command is busy waits; a newer one takes its place. The command has a session of
    its own, so that Ctrl-C at the terminal doesn't reach it, no input, and both of its outputs go to stderr. Failures
    are reported to `warn`, from any thread, and never end training.

    `stop` ends a command that still runs: SIGTERM to all of its processes, SIGKILL after GRACE_S. So call `finish` before,
    where training has ended well. Only a process that is killed outright leaves it running.
    """

    def __init__(self, command: str, run: Path, warn: Callable[[str], None]):
        self.command, self.run, self._warn = command, run, warn
        self._background = Background("on-checkpoint", abandon=True)
        self._jobs: dict[Path, Future[None]] = {}
        self._lock = threading.Lock()
        self._running: tuple[Path, subprocess.Popen[bytes]] | None = None
        self._stopped = False

    def start(self, checkpoint: Path) -> None:
        """Run the command for this checkpoint, now or when the one before has ended."""
        if not self.command or self._stopped:
            return
        self.held()
        busy, *waiting = self._jobs or [checkpoint]
        if waiting and self._jobs[waiting[-1]].cancel():
            self._warn(
                f"--on-checkpoint: {waiting[-1].name} is left out, because the command was still busy with {busy.name} "
                f"when {checkpoint.name} came"
            )
        self._jobs[checkpoint] = self._background.start(partial(self._run, checkpoint))

    def held(self) -> set[Path]:
        """Checkpoints that the command uses or is about to use: they must not be deleted."""
        self._jobs = {path: job for path, job in self._jobs.items() if not job.done()}
        return set(self._jobs)

    def finish(self, hurry: Callable[[], object] = lambda: False) -> None:
        """Wait until the command has seen the last checkpoint, or until `hurry()` is true."""
        while self.held() and not hurry():
            wait(self._jobs.values(), LOOK_S)

    def stop(self) -> None:
        """End the command that runs, and run no other."""
        with self._lock:
            self._stopped = True
        if self._running is not None and self._running[1].poll() is None:
            checkpoint, process = self._running
            self._warn(f"--on-checkpoint: the command for {checkpoint.name} was ended, as training has ended before it")
            _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline and _signal_group(process, 0):
                time.sleep(LOOK_S / 2)
            _signal_group(process, signal.SIGKILL)
        wait(self._jobs.values())

    def _run(self, checkpoint: Path) -> None:
        with self._lock:
            if self._stopped:
                return
            try:
                shell, own = ["/bin/sh", "-c", self.command], environment(self.run, checkpoint)
                std: Any = {"stdin": subprocess.DEVNULL, "stdout": STDERR, "stderr": STDERR}
                process = subprocess.Popen(shell, env=own, start_new_session=True, **std)
            except (OSError, ValueError) as error:
                self._warn(f"--on-checkpoint: could not start the command for {checkpoint.name}: {error}")
                return
            self._running = checkpoint, process
        code = process.wait()
        if code and not self._stopped:
            how = f"exit code {code}" if code > 0 else f"signal {-code}"
            self._warn(f"--on-checkpoint: the command for {checkpoint.name} ended with {how}: {self.command}")


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a command and what it has started; whether there was anybody."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
        return True
    return False
