"""Runs command lines in processes forked from one that has imported everything already, which saves seconds for each.

A line of JSON on stdin: {"line", "cwd", "env", "streams": paths of stdin, stdout, stderr, "peak": a path, or ''}. Answers with the process number,
then with the exit code. As in a process of its own, all that a command reads is given anew: arguments, folder,
environment, streams; only imports are not.
"""

import atexit
import importlib
import json
import os
import pkgutil
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from PIL import Image

import elbocli
from elbocli.main import main


def run(line: list[str], cwd: str, env: dict[str, str], streams: list[str], peak: str) -> None:
    """Be that command; never returns. peak: a file for the most memory that it took, in kB, and seconds of CPU."""
    for descriptor, (path, flags) in enumerate(zip(streams, (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY), strict=True)):
        opened = os.open(path, flags)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv = ["elbo", *line]
    code: Any = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
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
