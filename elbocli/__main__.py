"""The console script, and `python -m elbocli` for launchers that take a module. Imports nothing that takes long."""

import signal
import sys
from types import FrameType


def end(signum: int, frame: FrameType | None) -> None:
    """End the process with the exit code by which shells tell the signal. Blocks that write files clean up."""
    sys.exit(128 + signum)


def main() -> None:
    """Run the command line. Commands that save their work take the signals themselves."""
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is signal.SIG_DFL:
            signal.signal(signum, end)
    try:
        from elbocli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()
