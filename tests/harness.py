"""How tests run elbo: in this process with captured streams, or in a process of its own."""

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import elbocli.networks.published
import elbocli.plugin  # noqa: F401 - with these, all tables of declarations
from elbocli import main
from elbocli.commands.shared.commands import ADDED, Command
from elbocli.core.registry import Registry
from elbocli.data import sources  # noqa: F401 - declares elbo's own kinds
from elbocli.data.registry import SOURCES
from elbocli.files import plugins
from elbocli.files.recognise import KINDS

Result = subprocess.CompletedProcess[bytes]
ROOT = Path(__file__).parent.parent
ELBO = [sys.executable, "-m", "elbocli"]
BIN = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
"""PATH with the installed `elbo` and `python` first, for shells."""
STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def environment(**more: str) -> dict[str, str]:
    """This process's variables without elbo's own, and with these."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("ELBO_") or key == "ELBO_DEVICE"}
    return {**kept, **more}


@contextlib.contextmanager
def redirected(files: list[Any]) -> Iterator[None]:
    """Replace descriptors 0 to 2 and the streams of `sys` by these open files inside the block."""
    saved = [os.dup(descriptor) for descriptor in range(3)]
    before = [getattr(sys, name) for name, _ in STREAMS]
    for stream in before[1:]:
        stream.flush()
    try:
        for descriptor, (name, mode) in enumerate(STREAMS):
            os.dup2(files[descriptor].fileno(), descriptor)
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
        yield
    finally:
        for name, _ in STREAMS[1:]:
            with contextlib.suppress(OSError):
                getattr(sys, name).flush()
        for descriptor, (name, _) in enumerate(STREAMS):
            os.dup2(saved[descriptor], descriptor)
            os.close(saved[descriptor])
            setattr(sys, name, before[descriptor])


def registries() -> list[Registry]:
    """All tables of declarations that a plug-in can add to."""
    modules = [module for name, module in sys.modules.items() if name.startswith("elbocli")]
    found = {id(each): each for module in modules for each in vars(module).values() if issubclass(type(each), Registry)}
    return [*found.values()]


@contextlib.contextmanager
def declarations_kept() -> Iterator[None]:
    """Remove what a plug-in declares inside the block, and the command's state, at the end."""
    tables: list[dict[str, Any]] = [*registries(), ADDED, SOURCES, plugins._RUN]  # type: ignore[list-item]
    before = [dict(table) for table in tables]
    state = {name: getattr(Command, name) for name in ("path", "overwrite", "quiet", "verbose", "silent")}
    lists: list[list[Any]] = [sys.path, KINDS]
    listed = [list(each) for each in lists]
    try:
        yield
    finally:
        for names, kept in zip(lists, listed, strict=True):
            names[:] = kept
        for table, entries in zip(tables, before, strict=True):
            table.clear()
            table.update(entries)
        for name, value in state.items():
            setattr(Command, name, value)


def run_elbo(*args: Any, cwd: Path | None = None, stdin: Any = b"", env: dict[str, str] | None = None) -> Result:
    """Run a command line in this process; bytes of both streams and the exit code.

    stdin: bytes or an open file. env: more variables. An error that is a bug of elbo's is raised.
    """
    line = [*map(str, args)]
    with (
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        patch.dict(os.environ, environment(**(env or {})), clear=True),
        contextlib.chdir(cwd or Path.cwd()),
        declarations_kept(),
        patch.object(sys, "argv", ["elbo", *line]),
    ):
        if isinstance(stdin, bytes):
            given.write(stdin)
            given.seek(0)
        with redirected([given if isinstance(stdin, bytes) else stdin, out, err]):
            code = main.run(line)
        for stream in (out, err):
            stream.seek(0)
        return Result(line, code, out.read(), err.read())


def spawn_elbo(*args: Any, env: dict[str, str] | None = None, **options: Any) -> subprocess.Popen[bytes]:
    """Start a command line in a process of its own, with pipes as streams; signals that this one ignores come to it.

    options: as Popen takes them.
    """
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    line = [*ELBO, *map(str, args)]
    return subprocess.Popen(line, env=environment(**(env or {})), preexec_fn=heed_signals, **{**pipes, **options})


@contextlib.contextmanager
def terminal(columns: int = 80) -> Iterator[list[str]]:
    """A terminal as all streams inside the block; yields a list that holds what it shows, after the block."""
    ours, its = os.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    seen = list[bytes]()
    shown = list[str]()

    def read() -> None:
        try:
            while piece := os.read(ours, 4096):
                seen.append(piece)
        except OSError:  # it is closed
            os.close(ours)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with open(its, "r+b", buffering=0) as file, declarations_kept(), redirected([file] * 3):
            yield shown
    finally:
        reader.join()
        shown.append(b"".join(seen).decode())


def on_terminal(*args: Any, columns: int = 80, cwd: Path | None = None) -> tuple[int, str]:
    """Run a command line in this process on a terminal; the exit code, and what the terminal shows."""
    line = [*map(str, args)]
    with contextlib.chdir(cwd or Path.cwd()), patch.object(sys, "argv", ["elbo", *line]), terminal(columns) as shown:
        code = main.run(line)
    return code, shown[0].replace("\r\n", "\n")


def run_code(code: str, *args: Any, **options: Any) -> Result:
    """Run Python code in a process of its own; `sys.argv[1:]` are args. options: as subprocess.run takes them."""
    line = [sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(line, capture_output=True, check=False, preexec_fn=heed_signals, **options)


def heed_signals() -> None:
    """Give all signals their default handlers, as a terminal does, and end with the parent."""
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def heard(counted: Any = lambda *report: None, level: int = logging.DEBUG) -> Iterator[list[str]]:
    """Messages that elbo logs inside the block. counted: is called with each report of progress."""
    from elbocli.runtime.progress import log, show_progress_with

    lines: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    before = log.level
    log.addHandler(handler)
    log.setLevel(level)
    show_progress_with(counted)
    try:
        yield lines
    finally:
        show_progress_with(lambda *report: None)
        log.removeHandler(handler)
        log.setLevel(before)
