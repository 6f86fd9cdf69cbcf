"""The console script, and `python -m elbocli` for launchers that take a module. Imports nothing that takes long."""

import os
import signal
import sys
import time
from types import FrameType

from elbocli.runtime.undoing import undo_all

ENDING = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
}
"""Signals that end a command, and what they do to a process that has changed nothing. Shells ignore some for others."""
ELSEWHERE = "elbo: error: this system lacks fcntl or fork, which elbo needs; run it on Linux, or on Windows within WSL"
GRACE_S = 1.0
"""Time after the first signal in which another is an echo of it."""
IMPORTING = "<frozen importlib._bootstrap>"
_ended: list[float] = []


def end(signum: int, frame: FrameType | None) -> None:
    """End the process: undo what is half done, say a word, and leave with the exit code by which shells tell the signal.

    Nothing is raised: an exception may come in the middle of an import, which makes another of it, or of a finalizer,
    which swallows it. Commands that save their work take the signals themselves.
    """
    now = time.monotonic()
    if not _ended:
        _ended.append(now)
        undo_all()
        main = sys.modules.get("elbocli.main")
        if main is not None and not _imports(frame):
            main.say_ended(signum)
    elif now - _ended[0] < GRACE_S:
        return
    os._exit(128 + signum)


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported there. Nothing is at stake then, and nothing is said."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            return True
        frame = frame.f_back
    return False


def main() -> None:
    """Run the command line."""
    try:
        import fcntl  # noqa: F401
        import resource  # noqa: F401

        os.fork  # noqa: B018
    except (ImportError, AttributeError):
        sys.exit(ELSEWHERE)
    for name, usual in ENDING.items():
        signum = getattr(signal, name)
        if signal.getsignal(signum) is usual:
            signal.signal(signum, end)
    from elbocli.main import main as run

    run()


if __name__ == "__main__":
    main()
