"""Processes without the seconds that importing torch takes: a zygote for each test process, and who asks it."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import Any

from fork_client import ask
from signalled import end

HERE = Path(__file__).parent
FLAGS = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
Result = subprocess.CompletedProcess[bytes]


class Zygote:
    """tests/zygote.py, run by that interpreter. `tools`: a folder with `elbo`, `python` and `python3` that it runs."""

    def __init__(self, python: str = sys.executable, env: dict[str, str] | None = None) -> None:
        self.tools = Path(tempfile.mkdtemp(prefix="elbo-"))  # short, as the name of a socket must be
        line = [python, str(HERE / "zygote.py"), str(self.tools / "socket")]
        self.process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
        client = (HERE / "fork_client.py").read_text()
        for name in ("elbo", "python", "python3"):
            (self.tools / name).write_text(f"#!{python} -IS\n{client}")
            (self.tools / name).chmod(0o755)
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"
        atexit.register(self.close)

    def close(self) -> None:
        """End it."""
        with self.process:
            self.process.kill()
        shutil.rmtree(self.tools, ignore_errors=True)

    def run(
        self,
        line: list[str],
        cwd: Path | None,
        env: dict[str, str],
        stdin: Any,
        timeout: float,
        ended: tuple[int, float] | None = None,
        **conditions: Any,
    ) -> Result:
        """Run it as subprocess.run does, under conditions as tests/zygote.py takes them. Raises TimeoutExpired.

        line: what follows `python`. stdin: bytes or an open file. ended: a signal, and the seconds until it comes, counted
        from the moment at which the command begins to heed any.
        """
        with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as connection:
            paths = [Path(folder) / name for name in ("in", "out", "err")]
            paths[0].write_bytes(stdin if isinstance(stdin, bytes) else b"")
            streams = [os.open(path, flags) for path, flags in zip(paths, FLAGS, strict=True)]
            if not isinstance(stdin, bytes):
                os.dup2(stdin.fileno(), streams[0])
            try:
                connection.settimeout(timeout)
                connection.connect(str(self.tools / "socket"))
                ask(connection, streams, {"line": line, "cwd": str(cwd or Path.cwd()), "env": env, **conditions})
            finally:
                for stream in streams:
                    os.close(stream)
            with connection.makefile() as answers:
                child = int(answers.readline())
                if ended is not None:
                    threading.Thread(target=end, args=(child, *ended)).start()
                try:
                    code = int(answers.readline())
                except TimeoutError as error:
                    raise subprocess.TimeoutExpired(line, timeout) from error
            return Result(line, code, *(path.read_bytes() for path in paths[1:]))


@cache
def zygote() -> Zygote:
    """This test process's own."""
    return Zygote()


def tools() -> Path:
    """A folder with an `elbo` and a `python` that start at once; for PATH, or to name the latter in a line."""
    return zygote().tools


def quick() -> str:
    """A `python` that has imported torch and elbo already, for lines of Popen."""
    return str(tools() / "python")


def path_with_tools() -> str:
    """PATH, with these first and what is installed beside this interpreter next."""
    return os.pathsep.join([str(tools()), str(Path(sys.executable).parent), os.environ["PATH"]])
