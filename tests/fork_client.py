"""A `python` and an `elbo` for shells and subprocess that tests/zygote.py runs: `forks.tools()` is a folder with them.

Signals are passed on, and so is how the process ended. What the zygote doesn't do, a process of its own does. This file is
its own script, without anything that takes long to import.
"""

import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def ask(connection: socket.socket, streams: list[int], request: dict[str, object]) -> None:
    """Have the zygote start a process; umask and ignored signals are those of this one."""
    os.umask(umask := os.umask(0))
    ignored = [number for number in PASSED_ON if signal.getsignal(number) is signal.SIG_IGN]
    socket.send_fds(connection, [b"\0"], streams)
    connection.sendall(json.dumps({"umask": umask, "ignored": ignored, **request}).encode() + b"\n")


def main() -> None:
    """Be `python` or `elbo`, by the name of this file."""
    line = sys.argv[1:] if os.path.basename(sys.argv[0]) != "elbo" else ["-m", "elbocli", *sys.argv[1:]]
    line = line[line[:1] == ["-u"] :]  # torchrun asks for streams without buffers
    done = line and (line[0] == "-c" or not line[0].startswith("-") or line[:2] == ["-m", "elbocli"])
    connection = socket.socket(socket.AF_UNIX)
    signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    try:
        if not done:
            raise OSError
        connection.connect(os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "socket"))
        ask(connection, [0, 1, 2], {"line": line, "cwd": os.getcwd(), "env": dict(os.environ)})
    except OSError:  # also where a stream is closed
        signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
        os.execv(sys.executable, [sys.executable, *line])
    answers = connection.makefile()
    child = int(answers.readline())
    for number in PASSED_ON:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, _: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)
    code = int(answers.readline())
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(code)


if __name__ == "__main__":
    main()
