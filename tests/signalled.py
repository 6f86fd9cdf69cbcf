"""A signal for a process that handles signals already."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

SIGTERM_BIT = 14


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
