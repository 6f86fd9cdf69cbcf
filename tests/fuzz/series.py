"""Many inputs in one process: to fork one for each, and to end it, costs more than most commands do.

`python series.py GOOD FOLDER SEED NUMBER…` draws these inputs, each in a copy of GOOD below FOLDER, and runs their commands one
after the other. Writes two lines of JSON for each: its number as it begins, and what came of it. Inputs with signals or
closed streams have no second line: they need processes of their own, as whatever is taken amiss gets one too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from inputs import Drawer

from elbocli import main
from elbocli.cli.commands import Command

OUT, ERR = 1, 2


def peak() -> int:
    """The most memory since it was last asked, in bytes."""
    most = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
    Path("/proc/self/clear_refs").write_text("5")
    return int(most) << 10


def run(line: list[str], folder: Path) -> tuple[int, str]:
    """Run a command line there: its exit code, and what it said."""
    Command.path, Command.quiet, Command.verbose, Command.silent = "elbo", False, False, False
    os.chdir(folder)
    with tempfile.TemporaryFile() as said:
        for descriptor, stream in ((OUT, os.open(os.devnull, os.O_WRONLY)), (ERR, os.dup(said.fileno()))):
            os.dup2(stream, descriptor)
            os.close(stream)
        try:
            code = main.run(line)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            traceback.print_exc()
            code = 1
        for stream_of in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream_of.flush()
        said.seek(0)
        return code, said.read().decode(errors="replace")


def begin(good: Path, folder: Path, seed: str, numbers: list[int]) -> None:
    """Run those inputs, and tell of each."""
    results = os.fdopen(os.dup(OUT), "w")
    drawer = Drawer(good, folder)
    for number in numbers:
        print(json.dumps(number), file=results, flush=True)
        case, there = drawer.drawn(seed, number)
        if not case.ended and not case.closed:
            peak()
            begun = time.process_time()
            code, said = run(case.line, there)
            found = [case.name, case.file, case.line, code, time.process_time() - begun, peak(), said[-4000:]]
            print(json.dumps(found), file=results, flush=True)
        os.chdir(folder)
        drawer.remove(there)


if __name__ == "__main__":
    begin(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], [*map(int, sys.argv[4:])])
