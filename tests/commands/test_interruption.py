"""A signal ends any command with the shell's exit code, and the same command again makes the same bytes and leaves no litter.

Commands run in children of one process that has imported everything: this file, run as a script. The slow test interrupts at
random moments: pytest -m slow tests/cli/test_interruption.py, with another SEED for other moments.
"""

import importlib
import json
import os
import pkgutil
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from harness import environment, heed_signals, run_code, spawn_elbo

import elbocli
from elbocli import __main__ as script
from elbocli import main
from elbocli.commands.shared.commands import Command
from elbocli.core.elbo import reconstruction

SAMPLE = "sample {run} -n 6 --steps 3 --batch-size 2 -o"
TRAIN = (
    "train {data} -o x --preset {preset} --steps 6 --save-every 2 --snapshot-every 3 --keep-last 1 --val-split 20 --val-every 3 "
    "--ema .9 --ema power:std=.1 --ema halflife:images=100"
)
COMMANDS = {
    "adapt": "adapt {run} -o x.yaml --plot x.svg",
    "bound": "bound {run} -n 4 --draws 2 --curve x.tsv --log x.jsonl",
    "ema": "ema {run} --std .1 -o x.safetensors",
    "eval": "eval {data} --ref {data} --extractor elbo-tiny --metrics fid --save-stats x.npz --save-features x.safetensors",
    "grid": "grid {run} -n 2 --steps 3 -o x.yaml",
    "info": "info {data} --sheet x.png",
    "report": "report {run} -o x.html",
    "weights plot": "weights plot sigmoid -o x.pdf",
    "import": "import {weights} x --plugin {plugin}",
    "prep": "prep {images} x.h5 --size 8 --channels 1",
    "sample npy": f"{SAMPLE} x.npy",
    "sample npz": f"{SAMPLE} x.npz",
    "sample h5": f"{SAMPLE} x.h5",
    "sample sheet": f"{SAMPLE} x.png",
    "sample pictures": f"{SAMPLE} x",
    "train": TRAIN,
}
ONE_BATCH = ("prep",)
"""Commands that look for signals between batches of images, and have one here: tests/prep has several."""
CHANGING = {"metrics.jsonl", "status.json", "meta.json", ".lock", "events"}
"""Files of a run that hold times or speeds, or the digest of one that does."""
HALF = (".tmp", ".old", ".trash", ".partial", ".json.partial")
"""Ends of names that half-written files have."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
NAMING = ("rename", "replace", "link")
CALLS = {*NAMING, "open", "mkdir", "unlink", "fsync", "fdatasync", "ftruncate", "posix_fallocate", "pwrite"}
PLOTTING = ("matplotlib.pyplot", "matplotlib.backends.backend_pdf", "matplotlib.backends.backend_svg")
"""Modules that commands import when they need them."""


def work(line, folder, signum, at):
    """Run a command line in this process, and end it. The signal comes at that call into the file system, counted from 1."""
    os.chdir(folder)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before elbo begins, no exception: the exit status tells the signal
    for descriptor, name in enumerate((os.devnull, "../stdout", "../stderr")):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC), descriptor)
    called = []
    code = 70

    def counted(name, real):
        def call(*args, **options):
            called.append(name)
            if len(called) == at:
                signal.raise_signal(signum)
            return real(*args, **options)

        return call

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    sys.argv = ["elbo", *line]
    try:
        script.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    Path("../called").write_text(" ".join(called))
    os._exit(code)


def serve():
    """Run jobs in children, one for each JSON line on standard input; answer with their exit codes, negative for signals."""
    names = {module.name for module in pkgutil.walk_packages(elbocli.__path__, "elbocli.")} - {script.__name__}
    for name in (*PLOTTING, *sorted(names)):
        importlib.import_module(name)
    reconstruction(10.0)  # takes a second, and stays in a cache, which children inherit
    for text in sys.stdin:
        job = json.loads(text)
        after = job.pop("after")
        child = os.fork()
        if child == 0:
            work(**job)
        if after:
            time.sleep(after)
            os.kill(child, job["signum"])
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()


class Done(NamedTuple):
    """How a command ended."""

    code: int
    stderr: str
    folder: Path

    @property
    def called(self):
        return (self.folder / "../called").read_text().split()

    @property
    def made(self):
        """Return the files and folders, sorted by name."""
        paths = [path for path in self.folder.rglob("*") if path.name not in CHANGING]
        files = {path: path.read_bytes() if path.is_file() else b"" for path in paths}
        return {str(path.relative_to(self.folder)): content for path, content in files.items()}


@pytest.fixture(scope="module")
def start(elbo, digits, digits_folder, preset, foreign, tmp_path_factory):
    """start(name, folder, *options, signum, at, after): a command in that folder, and its Done."""
    run = tmp_path_factory.mktemp("snapshots") / "run"
    assert elbo("train", digits, "-o", run, "--preset", preset, "--steps", 20, "--snapshot-every", 5).returncode == 0
    places = {"run": run, "data": digits, "images": digits_folder, "preset": preset, **foreign}
    quoted = {name: shlex.quote(str(path)) for name, path in places.items()}
    variables = environment(PYTHONPATH=os.pathsep.join(filter(None, sys.path)), OMP_NUM_THREADS="1")
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    line = [sys.executable, __file__]
    with subprocess.Popen(line, env=variables, preexec_fn=heed_signals, text=True, bufsize=1, **pipes) as server:

        def begin(name, folder, *options, signum=0, at=0, after=0.0):
            folder.mkdir(parents=True, exist_ok=True)
            words = [*shlex.split(COMMANDS[name].format(**quoted)), *options]
            job = {"line": words, "folder": str(folder), "signum": signum, "at": at, "after": after}
            server.stdin.write(json.dumps(job) + "\n")
            code = int(server.stdout.readline())
            stderr = (folder / "../stderr").read_text()
            assert "Traceback" not in stderr, stderr
            return Done(code, stderr, folder)

        yield begin


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
    """whole(name): the Done of a command that no signal meets, its files and its calls into the file system."""
    known = {}

    def undisturbed(name):
        if name not in known:
            done = start(name, tmp_path_factory.mktemp("whole") / "work")
            assert done.code == 0 and not [path for path in done.made if path.endswith(HALF)], done
            known[name] = done.made, done.called
        return known[name]

    return undisturbed


def end(name, start, folder, made):
    """Give the command again, and check what it makes."""
    complete = {path.name for path in folder.iterdir()} >= {path.split("/")[0] for path in made}
    done = start(name, folder)
    assert done.code == 0 or (complete and "already exists" in done.stderr), done
    assert sorted(done.made) == sorted(made)
    assert [path for path in made if done.made[path] != made[path]] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_a_signal_has_the_shells_code_and_after_a_kill_the_bytes_are_the_same(name, start, whole, tmp_path):
    made, called = whole(name)
    signum = SIGNALS[[*COMMANDS].index(name) % 3]
    done = start(name, tmp_path / "work", signum=signum, at=max(1, len(called) // 4))
    assert done.code in ((0, 128 + signum) if name in ONE_BATCH else (128 + signum,)), done
    assert (done.code == 0 or signum.name in done.stderr) and "error: " not in done.stderr
    if any(done.folder.iterdir()):
        end(name, start, tmp_path / "work", made)
        shutil.rmtree(tmp_path / "work")
    last = max(index for index, call in enumerate(called, 1) if call in NAMING)
    done = start(name, tmp_path / "work", signum=signal.SIGKILL, at=last)
    assert done.code == -signal.SIGKILL and set(done.made) != set(made)
    assert start(name, tmp_path / "work", signum=signal.SIGKILL, at=2).code in (-9, 2)
    end(name, start, tmp_path / "work", made)


@pytest.mark.parametrize("name", ["bound", "eval", "sample npy", "sample npz", "sample h5", "sample pictures"])
def test_a_kill_at_any_call_of_the_last_ones_leaves_what_the_same_command_completes(name, start, whole, tmp_path):
    made, called = whole(name)
    first = max(1, len(called) - 40 if name == "sample pictures" else called.index("link") - 1)
    for at in range(first, len(called) + 1):
        start(name, tmp_path / "work", signum=signal.SIGKILL, at=at)
        end(name, start, tmp_path / "work", made)
        shutil.rmtree(tmp_path / "work")


@pytest.mark.slow
def test_interrupted_at_random_moments(start, whole, tmp_path):
    draw = random.Random(int(os.environ.get("SEED", "0")))
    until = time.monotonic() + 150
    while time.monotonic() < until:
        name = draw.choice([*COMMANDS])
        made, _ = whole(name)
        for _ in range(draw.randint(1, 4)):
            signum = draw.choice([*SIGNALS, signal.SIGKILL, signal.SIGKILL])
            done = start(name, tmp_path / "work", signum=signum, after=draw.uniform(0.001, 1) ** 2)
            assert done.code in (0, 128 + signum, -signum) or "already exists" in done.stderr, done
        end(name, start, tmp_path / "work", made)
        shutil.rmtree(tmp_path / "work")


# Before a command has begun


@pytest.mark.parametrize(
    ("module", "line", "signum"),
    [
        ("click", ["--help"], signal.SIGINT),
        ("torch", ["train", "a.h5"], signal.SIGTERM),
        ("numpy", ["sample", "run", "-o", "a.npy"], signal.SIGINT),
        ("yaml", ["report", "run"], signal.SIGHUP),
    ],
)
def test_a_signal_while_modules_are_imported(module, line, signum, tmp_path):
    (tmp_path / f"{module}.py").write_text(f"import os, time\nos.kill(os.getpid(), {signum})\ntime.sleep(600)\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = spawn_elbo(*line, env={"PYTHONPATH": path}, cwd=tmp_path)
    stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (128 + signum, b"") and b"Traceback" not in stderr


IGNORING = """
import signal, sys
for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(signum, signal.SIG_IGN)
from elbocli import __main__ as script
sys.argv = ["elbo", "--version"]
try:
    script.main()
finally:
    print({signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)} == {signal.SIG_IGN})
"""


def test_ignored_signals_stay_ignored():
    assert run_code(IGNORING).stdout.endswith(b"True\n")


def test_a_keyboard_interrupt_is_no_error(monkeypatch, capsys):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "path", "elbo train")
    monkeypatch.setattr(main.elbo, "make_context", interrupted)
    assert main.run(["--help"]) == 130
    assert capsys.readouterr().err == "elbo train: interrupted\n"
