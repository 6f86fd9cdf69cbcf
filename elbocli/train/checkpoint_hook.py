"""A shell command after each checkpoint, while training goes on: `--on-checkpoint`. Needs no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from elbocli.files.retention import step_of

GRACE_S = 5.0
"""From SIGTERM to SIGKILL: short, because a launcher that has asked for the end kills after its own grace."""
LOOK_S = 0.1
STDERR = 2
LAUNCHERS = (
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
)
LAUNCHERS_PREFIX = "TORCHELASTIC_"
"""What torchrun tells a worker. A command that had these would take itself for one, and wait for the others."""


def environment(run: Path, checkpoint: Path) -> dict[str, str]:
    """What the command finds: paths are absolute, and of a launcher there is no trace."""
    own = {k: v for k, v in os.environ.items() if k not in LAUNCHERS and not k.startswith(LAUNCHERS_PREFIX)}
    return {
        **own,
        "ELBO_CHECKPOINT": str(checkpoint.absolute()),
        "ELBO_RUN": str(run.absolute()),
        "ELBO_STEP": str(step_of(checkpoint)),
    }


class CheckpointHook:
    """Runs `sh -c command` after each checkpoint, one at a time, in a thread; '' runs nothing.

    A checkpoint that comes while the command is busy waits; a newer one takes its place. The command has a session of
    its own, so that Ctrl-C at the terminal doesn't reach it, no input, and both of its outputs go to stderr. What goes
    wrong is told to `warn`, from any thread, and never ends training.

    Leaving a `with` block ends a command that still runs: SIGTERM to all of its processes, SIGKILL after GRACE_S. So call
    `finish` before, where training has ended well. Only a process that is killed outright leaves it running.
    """

    def __init__(self, command: str, run: Path, warn: Callable[[str], None]):
        self.command, self.run, self._warn = command, run, warn
        self._lock = threading.Lock()
        self._running: Path | None = None
        self._waiting: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def __enter__(self) -> CheckpointHook:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, checkpoint: Path) -> None:
        """Run the command for this checkpoint, now or when the one before has ended."""
        with self._lock:
            if not self.command or self._stopped:
                return
            if self._running is None:
                self._running = checkpoint
                self._thread = threading.Thread(target=self._work, name="elbo-on-checkpoint", daemon=True)
                self._thread.start()
                return
            if self._waiting is not None:
                self._warn(
                    f"--on-checkpoint: {self._waiting.name} is left out, because the command was still busy with "
                    f"{self._running.name} when {checkpoint.name} came"
                )
            self._waiting = checkpoint

    def held(self) -> set[Path]:
        """Checkpoints that the command uses or is about to use: they must not be deleted."""
        with self._lock:
            return {path for path in (self._running, self._waiting) if path is not None}

    def finish(self, hurry: Callable[[], object] = lambda: False) -> None:
        """Wait until the command has seen the last checkpoint, or until `hurry()` is true."""
        while (thread := self._thread) is not None and thread.is_alive() and not hurry():
            thread.join(LOOK_S)

    def stop(self) -> None:
        """End the command that runs, and run no other."""
        with self._lock:
            self._stopped, self._waiting = True, None
            process, running = self._process, self._running
        if process is not None and running is not None and process.poll() is None:
            self._warn(f"--on-checkpoint: the command for {running.name} was ended, as training has ended before it")
            _signal_group(process, signal.SIGTERM)
            deadline = time.monotonic() + GRACE_S
            while time.monotonic() < deadline and _signal_group(process, 0):
                time.sleep(LOOK_S / 2)
            _signal_group(process, signal.SIGKILL)
        if self._thread is not None:
            self._thread.join()

    def _work(self) -> None:
        checkpoint = self._running
        while checkpoint is not None:
            process = self._begun(checkpoint)
            code = process.wait() if process else 0
            if code and not self._stopped:
                how = f"exit code {code}" if code > 0 else f"signal {-code}"
                self._warn(f"--on-checkpoint: the command for {checkpoint.name} ended with {how}: {self.command}")
            with self._lock:
                self._process, self._waiting, checkpoint = None, None, self._waiting
                self._running = checkpoint

    def _begun(self, checkpoint: Path) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._stopped:
                return None
            try:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=STDERR,
                    stderr=STDERR,
                    env=environment(self.run, checkpoint),
                    start_new_session=True,
                )
            except (OSError, ValueError) as error:
                self._warn(f"--on-checkpoint: could not start the command for {checkpoint.name}: {error}")
            return self._process


def _signal_group(process: subprocess.Popen[bytes], number: int) -> bool:
    """Send a signal to a command and what it has started; whether there was anybody."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
        return True
    return False
