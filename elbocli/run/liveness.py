"""Identity of a process, by which another can tell later whether it still runs."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from elbocli.files.schema import Bounds, Record

ROOT = Path("/")
STARTED = 19
"""Index of a process's start time in /proc/PID/stat, behind its name in parentheses: field 22 of proc(5)."""


@dataclass(frozen=True)
class ProcessId(Record):
    """A process: its number, when it started (clock ticks since the boot), and where.

    boot: the kernel's name of its boot. pids: the kernel's name of its process numbers, which containers have of their own.
    """

    pid: Annotated[int, Bounds(1, 2**31 - 1)]
    started: int
    boot: str
    pids: str
    host: str

    @classmethod
    def mine(cls) -> ProcessId:
        """Return this process's."""
        pid = os.getpid()
        return cls(pid, _started(pid) or 0, _boot(), _pids(), socket.gethostname())

    def runs(self) -> bool | None:
        """Tell whether it still runs; None where that can't be seen from here."""
        if self.host != socket.gethostname():
            return None
        if self.boot != _boot():
            return False
        if self.pids != _pids():
            return None
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:  # somebody else's, which /proc may hide from us
            return _started(self.pid) in (None, self.started)
        return _started(self.pid) == self.started


def _started(pid: int) -> int | None:
    """When a process started; None when it is over, or not shown to us."""
    with suppress(OSError, ValueError, IndexError):
        state, *rest = (ROOT / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else int(rest[STARTED - 1])
    return None


def _boot() -> str:
    with suppress(OSError):
        return (ROOT / "proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _pids() -> str:
    with suppress(OSError):
        return str((ROOT / "proc/self/ns/pid").readlink())
    return ""
