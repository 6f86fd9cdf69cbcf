"""A shell command after each checkpoint, while training goes on: `--on-checkpoint`. Needs no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from elbocli.files.checkpoint import step_of

GRACE_S, LOOK_S = 5.0, 0.1
STDERR = 2
LAUNCHER = ("RANK", "LOCAL_", "GROUP_", "ROLE_", "MASTER_", "WORLD_SIZE", "TORCHELASTIC_")
"""Beginnings of torchrun's variables. A command that had these would wait for other processes."""


class CheckpointHook:
    """Runs `sh -c command` after a checkpoint, one at a time; '' runs nothing. Failures are warnings.

    The command has a session of its own, no input, and both outputs on stderr. A checkpoint that comes while the command
    is busy waits; a newer one takes its place.
    """

    def __init__(self, command: str, run: Path, warn: Callable[[str], None]):
        self.command, self.run, self._warn = command, run, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._held: list[Path] = []

    def start(self, checkpoint: Path) -> None:
        """Run the command for this checkpoint, now or when the one before has ended."""
        if self.command:
            self.held()
            if len(self._held) > 1:
                self._warn(f"--on-checkpoint: {self._held.pop().name} is left out: the command is still busy")
            self._held.append(checkpoint)
            if len(self._held) == 1:
                self._begin()

    def _begin(self) -> None:
        own = {key: value for key, value in os.environ.items() if not key.startswith(LAUNCHER)}
        own |= {"ELBO_CHECKPOINT": str(self._held[0].absolute()), "ELBO_RUN": str(self.run.absolute())}
        own["ELBO_STEP"] = str(step_of(self._held[0]))
        shell = ["/bin/sh", "-c", self.command]
        self._process = subprocess.Popen(
            shell, env=own, start_new_session=True, stdin=subprocess.DEVNULL, stdout=STDERR, stderr=STDERR
        )

    def held(self) -> set[Path]:
        """Return the checkpoints that the command uses or waits for, which must not be deleted."""
        if self._process is not None and (code := self._process.poll()) is not None:
            done, self._process = self._held.pop(0), None
            if code:
                self._warn(f"--on-checkpoint: exit code {code} for {done.name}: {self.command}")
            if self._held:
                self._begin()
        return set(self._held)

    def finish(self, hurry: Callable[[], object] = lambda: False) -> None:
        """Wait until the command has ended, or until `hurry()` is true."""
        while self.held() and not hurry():
            time.sleep(LOOK_S)

    def stop(self) -> None:
        """End the command, with all that it has started."""
        if self.held() and self._process is not None:
            with suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(self._process.pid, signal.SIGTERM)
                self._process.wait(GRACE_S)
            self._process, self._held = None, []
