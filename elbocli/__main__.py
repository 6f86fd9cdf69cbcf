"""Entry point of `elbo` and `python -m elbocli`. Imports only modules that load fast."""

import os
import signal
import sys
from types import FrameType

STDERR = 2


def end(signum: int, frame: FrameType | None) -> None:
    """End the process at once with exit code 128 + signum, as shells expect."""
    # No exception: an import or a finalizer would print a traceback. The next command removes partial files.
    try:
        if os.environ.get("RANK", "0") == "0" and sys.argv[1:]:
            bar = "\r\x1b[K" if os.isatty(STDERR) else ""
            os.write(STDERR, f"{bar}elbo {sys.argv[1]}: ended by {signal.Signals(signum).name}\n".encode())
    finally:
        os._exit(128 + signum)


def fill_streams() -> None:
    """Open the null device where stdin, stdout or stderr is closed; write messages there if stderr is closed."""
    # Otherwise the next files that are opened get their numbers, and libraries write messages into them.
    while (handle := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(handle, True)
    os.close(handle)
    if sys.stderr is None:
        sys.stderr = open(STDERR, "w", closefd=False)  # noqa: SIM115 (open until the process ends)


def main() -> None:
    """Install signal handlers and run the command line."""
    if os.name != "posix":
        sys.exit("elbo: error: this system lacks fcntl and fork, which elbo needs; run it on Linux, or on Windows within WSL")
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:
            signal.signal(signum, end)  # commands that save their work replace this handler
    fill_streams()
    from elbocli.main import main as run

    run()


if __name__ == "__main__":
    if not sys.flags.safe_path:
        del sys.path[0]  # the working directory, which `python -m` puts there: its files may have the names of modules
    main()
