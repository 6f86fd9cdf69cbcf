"""The console script, and `python -m elbocli` for launchers that take a module. Imports nothing that takes long."""

import os
import signal
from types import FrameType

IMPORTING = "<frozen importlib._bootstrap>"


def leave(signum: int, frame: FrameType | None) -> None:
    """End in silence at a Ctrl-C while modules are imported, when nothing is at stake yet; else raise KeyboardInterrupt."""
    while frame is not None:
        if frame.f_code.co_filename == IMPORTING:
            os._exit(128 + signum)
        frame = frame.f_back
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # it is ignored in a shell's background
        signal.signal(signal.SIGINT, leave)
    from elbocli.main import main as run

    run()


if __name__ == "__main__":
    main()
