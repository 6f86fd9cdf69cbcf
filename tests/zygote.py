"""Runs command lines in processes forked from one that has imported everything already, which saves seconds for each.

A line of JSON on stdin: {"line", "cwd", "env", "streams": paths of stdin, stdout, stderr, "closed": descriptors that are
closed at the start, "ordinary": whether modes of files bind it, "files": how many it may have open, None as many as any,
"at_fsync": a signal that comes when it first flushes a file to disk, "peak": a file for the most memory taken, in kB, and seconds of CPU, or ''}.
Answers with the process number, then with the exit code. As in a process of its own, all that a command reads is given
anew: arguments, folder, environment, streams; only imports are not.
"""

import atexit
import ctypes
import importlib
import json
import os
import pkgutil
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from PIL import Image

import elbocli
from elbocli.__main__ import main


def be_ordinary() -> None:
    """Drop all of root's privileges, so that the modes of its own files bind this process as they do any user's."""
    header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()  # version 3 of the call, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise OSError(ctypes.get_errno(), "capset")


def run(
    line: list[str],
    cwd: str,
    env: dict[str, str],
    streams: list[str],
    closed: list[int],
    ordinary: bool,
    files: int | None,
    at_fsync: int | None,
    peak: str,
) -> None:
    """Be that command; never returns."""
    for descriptor, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["elbo", *line]
    for descriptor in closed:
        os.close(descriptor)
        setattr(sys, ("stdin", "stdout", "stderr")[descriptor], None)
    if files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if ordinary:
        be_ordinary()
    if at_fsync is not None:
        os.fsync = lambda _: os.kill(os.getpid(), at_fsync)  # type: ignore[arg-type, assignment, return-value, unused-ignore]
    code: Any = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            code = 120
    if peak:
        memory = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
        Path(peak).write_text(f"{memory} {time.process_time()}")
    os._exit(code or 0)


if __name__ == "__main__":
    for module in pkgutil.walk_packages(elbocli.__path__, "elbocli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("matplotlib.pyplot")  # what commands import when they first draw, and first decode
    Image.init()
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    for request in requests:
        child = os.fork()
        if child == 0:
            requests.close()
            run(**json.loads(request))
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
