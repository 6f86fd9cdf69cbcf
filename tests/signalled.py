"""A signal for a process that handles signals already, and one for a process that is left behind."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import time
from pathlib import Path

SIGTERM_BIT = 14
PR_SET_PDEATHSIG = 1


def end(process: int, signum: int, after: float) -> None:
    """Send a process a signal, some seconds after it has begun to handle SIGTERM; none when it is gone."""
    try:
        while True:
            caught = re.findall(r"SigCgt:\s*(\w+)", Path(f"/proc/{process}/status").read_text())
            if int(caught[0], 16) >> SIGTERM_BIT & 1:
                break
            time.sleep(0.002)
        time.sleep(after)
        os.kill(process, signum)
    except (OSError, IndexError):
        return


def end_with(parent: int) -> None:
    """Have the system kill this process, a fork of that one, when that one ends, however it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it has ended already
        os._exit(1)
