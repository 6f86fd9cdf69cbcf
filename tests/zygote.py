"""Runs Python in processes forked from one that has imported everything already, which saves seconds for each.

python zygote.py SOCKET, until its standard input ends. A connection is one process: a byte with three descriptors, its
streams, then a line of JSON: {"line": what follows `python`: -m elbocli, -c CODE or FILE, and arguments; "cwd"; "env";
"umask"; "ignored": signals} and perhaps {"closed": descriptors that are closed at the start, "ordinary": whether modes of
files bind it, "files": how many it may have open, "at_fsync": a signal that comes when it first flushes a file
to disk, "peak": a file for the most memory taken, in kB, and seconds of CPU}.
Answers with the process number, then with the exit code, a line each. Who hangs up before has the process killed. All end
with the zygote.
As in a process of its own, all that it reads is given anew; only imports are not, nor terminal, group and limits. The
memory that a step of elbo's own networks needs, which takes a second to count whenever a training starts, is counted once.
"""

import atexit
import ctypes
import gc
import hashlib
import importlib
import json
import os
import pickle
import pkgutil
import resource
import runpy
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
import types
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from signalled import end_with

import elbocli
from elbocli.__main__ import main
from elbocli.nn.networks import NetworkConfig
from elbocli.nn.networks.edm2 import EDM2Config
from elbocli.nn.networks.transformers import DiTConfig, UViTConfig
from elbocli.nn.networks.unet import UNetConfig
from elbocli.train import plan


def be_ordinary() -> None:
    """Drop all of root's privileges, so that the modes of its own files bind this process as they do any user's."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3 of the call, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def do(line: list[str], cwd: str) -> None:
    """Do what an interpreter would with that line."""
    if line[:2] == ["-m", "elbocli"]:
        sys.argv, sys.path[0] = ["elbo", *line[2:]], cwd
        main()
    elif line[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *line[2:]], ""
        sys.modules["__main__"] = module = types.ModuleType("__main__")
        exec(compile(line[1], "<string>", "exec"), module.__dict__)
    else:
        sys.argv, sys.path[0] = line, str(Path(line[0]).parent.absolute())
        runpy.run_path(line[0], run_name="__main__")


def run(
    streams: list[int],
    line: list[str],
    cwd: str,
    env: dict[str, str],
    umask: int,
    ignored: list[int],
    closed: tuple[int, ...] = (),
    ordinary: bool = False,
    files: int | None = None,
    at_fsync: int | None = None,
    peak: str = "",
) -> None:
    """Be that process; never returns."""
    for descriptor, stream in enumerate(streams):
        os.dup2(stream, descriptor)
        os.close(stream)
    os.chdir(cwd)
    os.umask(umask)
    os.environ.clear()
    os.environ.update(env)
    sys.path[1:1] = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", *sys.path)]
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", torch.get_num_threads())))
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)
    for descriptor in closed:
        os.close(descriptor)
        setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if ordinary:
        be_ordinary()
    if at_fsync is not None:
        os.fsync = lambda _: os.kill(os.getpid(), at_fsync)  # type: ignore[arg-type, assignment, return-value, unused-ignore]
    # As in the suite itself: what is opened is closed, and nothing of elbo's own is about to go.
    warnings.filterwarnings("error", category=ResourceWarning)
    warnings.filterwarnings("ignore", "Implicitly cleaning up", ResourceWarning)  # folders of libraries: of torch 2.6
    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("error", category=kind, module="elbocli")
    code: Any = 0
    try:
        do(line, cwd)
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for output in filter(None, (sys.stdout, sys.stderr)):
        try:
            output.flush()
        except OSError:
            code = 120
    if peak:
        memory = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        Path(peak).write_text(f"{memory} {time.process_time()}")
    os._exit(code or 0)


def remember_steps(folder: Path) -> None:
    """Have all processes share what steps were found to need, in files of that folder."""
    count, own = plan.measure_step, (UNetConfig, UViTConfig, EDM2Config, DiTConfig)

    def measured(config: NetworkConfig, cuda: bool) -> plan.Step:
        if type(config) not in own:  # what is called alike elsewhere may be another network
            return count(config, cuda)
        path = folder / hashlib.sha256(repr((config, cuda)).encode()).hexdigest()
        with suppress(OSError, EOFError, pickle.UnpicklingError):
            found: plan.Step = pickle.loads(path.read_bytes())
            return found
        found = count(config, cuda)
        with suppress(OSError):
            path.write_bytes(pickle.dumps(found))
        return found

    plan.measure_step = measured  # type: ignore[assignment, attr-defined]


class Server:
    """Starts the processes that are asked for, and tells whoever asked how they ended."""

    def __init__(self, path: str) -> None:
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen(64)
        self.open: dict[int, socket.socket] = {}  # by process number, while somebody waits
        self.selector = selectors.PollSelector()
        self.selector.register(0, selectors.EVENT_READ, lambda: os._exit(0))
        self.selector.register(self.listening, selectors.EVENT_READ, self.begin)

    def serve(self) -> None:
        """Go on until standard input ends."""
        while True:
            for key, _ in self.selector.select():
                if key in self.selector.get_map().values():  # not ended by what came before it
                    key.data()

    def begin(self) -> None:
        """Start a process."""
        connection, _ = self.listening.accept()
        _, streams, *_ = socket.recv_fds(connection, 1, 3)
        with connection.makefile("rb") as file:
            said = file.readline()
        if not said.endswith(b"\n"):
            for stream in streams:
                os.close(stream)
            connection.close()
            return
        own = os.getpid()
        child = os.fork()
        if child == 0:
            end_with(own)
            connection.close()
            for key in self.selector.get_map().values():
                if isinstance(key.fileobj, socket.socket):
                    key.fileobj.close()
                elif key.fd:
                    os.close(key.fd)
            run(streams, **json.loads(said))
        for stream in streams:
            os.close(stream)
        self.open[child] = connection
        ended = os.pidfd_open(child)
        self.selector.register(ended, selectors.EVENT_READ, lambda: self.end(child, ended))
        self.selector.register(connection, selectors.EVENT_READ, lambda: self.leave(child))
        with suppress(OSError):
            connection.sendall(b"%d\n" % child)

    def leave(self, child: int) -> None:
        """Kill a process that nobody waits for any more."""
        self.selector.unregister(connection := self.open.pop(child))
        connection.close()
        os.kill(child, signal.SIGKILL)

    def end(self, child: int, ended: int) -> None:
        """Tell how a process ended."""
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        self.selector.unregister(ended)
        os.close(ended)
        if child in self.open:
            self.selector.unregister(connection := self.open.pop(child))
            with suppress(OSError):
                connection.sendall(b"%d\n" % code)
            connection.close()


if __name__ == "__main__":
    for module in pkgutil.walk_packages(elbocli.__path__, "elbocli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("matplotlib.pyplot")  # what commands import when they first draw, and first decode
    Image.init()
    server = Server(sys.argv[1])
    remember_steps(Path(sys.argv[1]).parent)
    gc.collect()
    gc.freeze()  # or each process would touch, and so copy, all that is there, when it first collects
    print("ready", flush=True)
    server.serve()
