"""A run that ends at any step, in any way, and goes on by the same command is the undisturbed run to the last bit."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from group import in_processes, lines_of, poisoned, train_here, weights_of
from harness import ELBO, environment, heed_signals
from safetensors.torch import load_file

from elbocli.errors import DataError, NonFiniteError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import checkpoints
from elbocli.training import loop
from elbocli.training.batches import Batches

pytestmark = pytest.mark.usefixtures("short_previews")


def steps_of(run):
    return [store.step_of(path) for path in checkpoints(run)]


def status_of(run):
    return json.loads((run / "status.json").read_text())


def content(run):
    """Return the bytes of everything that a run has computed: weights, pictures and logs."""
    kinds = ("*.safetensors", "*.png", "losslog.jsonl", "validation.jsonl")
    files = {str(path.relative_to(run)): path.read_bytes() for kind in kinds for path in run.rglob(kind)}
    return {**files, "metrics": lines_of(run / "metrics.jsonl")}


# --- ended and begun again ---

SMALL = {"network.levels": [1], "network.attention": []}
EVERYTHING = {"schedule": "adaptive", "ema": ["0.9", "power:std=0.1"], "lr_decay": "cosine:final=.1", "flip": True}
EVERYTHING |= {"grad_clip": 0.5, "val_split": 20, "val_every": 5, "snapshot_every": 5, "preview_every": 6}
EVERYTHING |= {"eval_every": 5, "eval_samples": 10, "eval_metrics": "fid,prc"}
LEARNED = {"weighting": "uncertainty", "schedule": "edm2-img512", "precision": "fp16", "micro_batch": 6}
SHARDED = {"parallel": "fsdp", "schedule": "adaptive", "val_split": 20, "val_every": 5, "eval_every": 5, "eval_samples": 10}
MUON = {"optimizer": "muon", "network.dropout": 0.0}
SIGNALS = [("SIGKILL", 3), ("SIGINT", 5), ("SIGTERM", 6), ("SIGHUP", 7), ("SIGKILL", 8), ("SIGUSR1", 10)]
KILLS = [("SIGKILL", 5), ("SIGKILL", 8), ("SIGTERM", 10)]


@pytest.mark.parametrize(
    ("size", "ends", "options"),
    [
        pytest.param(1, SIGNALS, EVERYTHING, id="alone"),
        pytest.param(1, KILLS, LEARNED, id="learned", marks=pytest.mark.long),
        pytest.param(1, KILLS[:1], {**MUON, "micro_batch": 8}, id="muon"),
        pytest.param(2, KILLS[1:2], {**MUON, "parallel": "fsdp"}, id="muon-fsdp", marks=pytest.mark.long),
        pytest.param(3, KILLS[1:], {"parallel": "ddp", "schedule": "adaptive"}, id="ddp", marks=pytest.mark.long),
        pytest.param(2, KILLS[1:], SHARDED, id="fsdp", marks=pytest.mark.long),
    ],
)
def test_ended_at_any_step_by_any_signal_and_begun_again_a_run_is_the_same_bits(size, ends, options, digits, preset, tmp_path):
    """The last process gets the signal, at a step between log lines or where a checkpoint is written."""
    plan = {"preset": preset, "steps": 12, "save_every": 4, "log_every": 3, "keep_last": 1, **SMALL, **options}
    job = {"size": size, "data": digits, "options": {**plan, "preset": str(preset)}, "out": tmp_path / "pieces"}
    pieces = [{**job, "ends": end} for end in ends]
    codes, said = in_processes({**job, "out": tmp_path / "whole"}, *pieces, job)
    wanted = [[1] * (size - 1) + [-9] if name == "SIGKILL" else [128 + signal.Signals[name]] * size for name, _ in ends]
    assert codes == [[0] * size, *wanted, [0] * size], said
    assert content(tmp_path / "pieces") == content(tmp_path / "whole")
    assert status_of(tmp_path / "pieces")["state"] == "done" and steps_of(tmp_path / "pieces") == [12]
    weights = load_file(checkpoints(tmp_path / "whole")[-1] / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_a_run_that_meets_a_loss_that_is_not_finite_keeps_its_last_good_checkpoint(digits, preset, tmp_path, monkeypatch):
    options = {"steps": 16, "save_every": 4, "log_every": 5, "keep_last": 9}
    train_here(digits, tmp_path / "good", preset, **options)
    with monkeypatch.context() as patch:
        patch.setattr(Batches, "at", Batches.at)
        poisoned(11, 5)
        with pytest.raises(NonFiniteError) as caught:
            train_here(digits, tmp_path / "bad", preset, **options)
    assert caught.value.exit_code == 4 and steps_of(tmp_path / "bad") == [4, 8]
    status = status_of(tmp_path / "bad")
    assert status["state"] == "failed" and "step 11" in status["message"]
    assert [row["step"] for row in lines_of(tmp_path / "bad" / "metrics.jsonl")] == [5, 10]
    train_here(digits, tmp_path / "bad", preset, **options)  # as with a lower lr: the same command goes on
    assert content(tmp_path / "bad") == content(tmp_path / "good")


def test_a_time_limit_saves_and_the_run_is_no_failure(elbo, digits, preset, tmp_path):
    run = tmp_path / "run"
    done = elbo("train", digits, "-o", run, "--preset", preset, "--steps", 10**6, "--time-limit", ".1s")
    assert done.returncode == 0 and done.stdout.decode() == f"{run}\n", done.stderr
    status = status_of(run)
    assert status["state"] == "stopped" and b"time limit" in done.stderr
    assert steps_of(run) == [status["step"]] * (status["step"] > 0)


def test_a_run_that_ends_before_its_first_step_keeps_no_checkpoint(digits, preset, tmp_path):
    job = {"size": 1, "data": digits, "options": {"preset": str(preset), "steps": 2, **SMALL}, "out": tmp_path / "run"}
    assert in_processes({**job, "ends": ("SIGTERM", 0)})[0] == [[128 + signal.SIGTERM]]
    assert steps_of(tmp_path / "run") == [] and status_of(tmp_path / "run")["step"] == 0
    assert in_processes(job)[0] == [[0]] and steps_of(tmp_path / "run") == [1, 2]


# --- terminals and launchers ---


@pytest.mark.long
@pytest.mark.parametrize(("way", "code"), [("closed", 128 + signal.SIGHUP), ("nohup", 1), ("pipe", 0)])
def test_a_reader_that_goes_away_ends_no_training_but_a_terminal_does_with_a_checkpoint(way, code, digits, preset, tmp_path):
    """Under nohup a terminal that is closed can't be told the run's path: exit code 1 after the last step."""
    ours, its = os.pipe() if way == "pipe" else os.openpty()

    def control():
        heed_signals()
        if way != "pipe":
            fcntl.ioctl(its, termios.TIOCSCTTY, 0)
        if way == "nohup":
            signal.signal(signal.SIGHUP, signal.SIG_IGN)

    line = [*ELBO, "train", digits, "--preset", preset, "--steps", 10**6 if way == "closed" else 400, "--save-every", 20]
    line.append("-v")
    streams = {"stdout": subprocess.DEVNULL if way == "pipe" else its, "stderr": its}
    how = {**streams, "cwd": tmp_path, "env": environment(), "start_new_session": True, "preexec_fn": control}
    process = subprocess.Popen([*map(str, line)], **how)
    os.close(its)
    os.set_blocking(ours, False)
    while not checkpoints(tmp_path / "run"):
        assert process.poll() is None
        with suppress(BlockingIOError):
            os.read(ours, 1 << 16)
        time.sleep(0.01)
    os.close(ours)
    assert process.wait() == code
    status = status_of(tmp_path / "run")
    assert status["state"] == ("interrupted" if way == "closed" else "done")
    assert steps_of(tmp_path / "run")[-1] == status["step"] >= 20


def under_torchrun(folder, *line, patch=""):
    """Start two workers. patch: code that they run before they become `elbo`."""
    (folder / "program.py").write_text(f"import os\n{patch}\nfrom elbocli.main import main\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "program.py"]
    streams = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    how = {"cwd": folder, "env": environment(OMP_NUM_THREADS="1"), "preexec_fn": heed_signals, "text": True, **streams}
    return subprocess.Popen([*map(str, [*torchrun, "train", *line])], **how)


@pytest.mark.long
def test_under_torchrun_a_signal_to_the_launcher_saves_once_and_one_process_speaks(digits, preset, tmp_path):
    process = under_torchrun(tmp_path, digits, "--preset", preset, "--steps", 10**6, "--save-every", 10**6)
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.terminate()
    out, said = process.communicate()  # returns when the workers have ended, too
    status = status_of(tmp_path / "run")
    assert process.returncode == 1 and out == "" and status["state"] == "interrupted"
    assert steps_of(tmp_path / "run") == [status["step"]]
    assert len([line for line in said.splitlines() if line.startswith("elbo train: SIGTERM: saved step ")]) == 1, said


LACKING = """
import torch
from elbocli.training import loop
def lacking(*_):
    raise torch.OutOfMemoryError("9 GiB")
if os.environ["RANK"] == "1":
    loop.update = lacking
"""
LATE = "import time; os.environ['RANK'] == '0' and time.sleep(2)"


@pytest.mark.long
@pytest.mark.parametrize(
    ("patch", "options", "words"), [(LACKING, (), "error: rank 1: out of memory (9 GiB)"), (LATE, ("--steps", "many"), "many")]
)
def test_under_torchrun_a_mistake_of_any_process_is_told_once(patch, options, words, digits, preset, tmp_path):
    process = under_torchrun(tmp_path, digits, "--preset", preset, *options, patch=patch)
    said = [line for line in process.communicate()[1].splitlines() if line.startswith("elbo")]
    assert process.returncode == 1 and sum(words in line for line in said) == 1, said


# --- disks and checkpoints ---


def until(condition):
    for _ in range(100_000):
        if condition():
            return
        time.sleep(0.005)
    pytest.fail("it never happened")


def fill(folder):
    """A file that takes all the room there is."""
    with open(folder / "ballast", "wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))
    return folder / "ballast"


@pytest.mark.parametrize("folder", ["checkpoints", "snapshots"])
def test_a_full_disk_ends_the_run_and_the_same_command_goes_on_when_there_is_room(folder, small_disk, digits, preset, tmp_path):
    options: dict[str, Any] = {"steps": 20, "save_every": 5, "log_every": 4, "val_split": 20, "val_every": 10}
    options |= {"network.channels": 4, "network.levels": [1], "network.attention": [], "keep_last": 1}
    options |= {"preview_every": 0, "snapshot_every": 8} if folder == "snapshots" else {"preview_every": 0}
    train_here(digits, tmp_path / "good", preset, **options)
    run = small_disk / "run"
    ballast = []

    def counted(done, *_):
        if done == 12 and not ballast:
            until(lambda: steps_of(run) == [10])
            ballast.append(fill(small_disk))

    with pytest.raises(DataError):
        train_here(digits, run, preset, counted, **options)
    assert steps_of(run) == [10]
    ballast[0].unlink()
    assert "going on after step 10" in " ".join(train_here(digits, run, preset, **options))
    assert not list(run.rglob(".*tmp")) and content(run) == content(tmp_path / "good")


@pytest.mark.parametrize("name", ["model.safetensors", "ema-0.9.safetensors", "state.pt", "meta.json"])
def test_a_flipped_bit_in_the_newest_checkpoint_is_named_and_the_one_before_used(name, trained, elbo, tmp_path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    path = checkpoints(run)[-1] / name
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    said = elbo("train", "-o", run).stderr.decode()
    assert str(path.parent) in said and "skipped" in said and "going on after step 30" in said
    assert weights_of(run) == weights_of(trained)


def test_a_run_goes_on_only_with_its_images_and_labels_also_where_the_dataset_has_no_digests(elbo, digits, preset, tmp_path):
    def dataset(name, seed, shift):
        with h5py.File(tmp_path / name, "w") as file:
            file["images"] = np.random.default_rng(seed).integers(0, 256, (40, 8, 8, 1), np.uint8)
            file["labels"] = (np.arange(40) + shift) % 2
            file.attrs.update({"format": "elbo-dataset", "version": 1})
        return tmp_path / name

    def train(data, steps):
        return elbo("train", data, "-o", tmp_path / "run", "--preset", preset, "--steps", steps).returncode

    first = dataset("a.h5", 0, 0)
    images = dataset("b.h5", 1, 0)
    labels = dataset("c.h5", 0, 1)
    assert [train(first, 4), train(images, 6), train(labels, 6), train(first, 6)] == [0, 2, 2, 0]


def test_a_start_that_fails_before_its_first_step_keeps_the_step_that_is_safe(digits, preset, tmp_path, monkeypatch):
    train_here(digits, tmp_path / "run", preset, steps=2)

    def lacking(*_):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(loop, "TrainState", lacking)
    with pytest.raises(torch.OutOfMemoryError):
        train_here(digits, tmp_path / "run", preset, steps=4)
    after = status_of(tmp_path / "run")
    assert (after["state"], after["step"], after["images"]) == ("failed", 2, 32)


def test_training_goes_on_while_a_checkpoint_of_an_earlier_moment_is_written(digits, preset, tmp_path, monkeypatch):
    later = threading.Event()
    whole = store.save

    def slow(*args):
        assert later.wait(300)
        return whole(*args)

    options = {"steps": 8, "save_every": 4, "keep_last": 9}
    train_here(digits, tmp_path / "straight", preset, **options)
    monkeypatch.setattr(store, "save", slow)
    train_here(digits, tmp_path / "run", preset, lambda done, *_: later.set() if done == 7 else None, **options)
    assert content(tmp_path / "run") == content(tmp_path / "straight")
