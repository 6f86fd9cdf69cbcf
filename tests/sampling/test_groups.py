"""Sampling gives the same images for any number of processes and any batch size, also after interruptions, and draws none twice."""

import contextlib
import json
import os
import random
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from group import in_processes
from harness import heard

from elbocli.errors import DataError
from elbocli.sampling import draw as sample
from elbocli.sampling.plan import Sampling
from elbocli.sampling.settings import SampleSettings

MANY = 301
pytestmark = pytest.mark.long
Batch = tuple[int, int]
"""Index of the first image, and number of images."""
Start = Callable[..., tuple[list[int], str, list[Batch]]]


@pytest.fixture
def start(trained: Path, tmp_path: Path) -> Start:
    """start(out, size=1, **job): (exit codes by rank, stderr, batches drawn) of `work` in processes, which writes tmp_path/out."""

    def run(out: str, size: int = 1, **job: Any) -> tuple[list[int], str, list[Batch]]:
        log = tmp_path / "batches"
        log.write_text("")
        place = {"work": f"{__file__}:work", "size": size, "run": trained, "out": tmp_path / out, "log": log}
        (codes,), said = in_processes({**place, **job})
        return codes, said, [(first, count) for first, count in map(json.loads, log.read_text().splitlines())]

    return run


def drawn(path: Path) -> tuple[np.ndarray, list[int], dict[str, Any]]:
    """Images and labels of a file, and what they say of themselves."""
    with h5py.File(path) as file:
        return file["images"][()].astype(int), file["labels"][()].tolist(), json.loads(file.attrs["samples"])


def test_batches_and_processes_change_no_label_and_pixels_by_a_level_at_most(start, trained, tmp_path):
    """Also with a multistep sampler that adds noise, and a guide."""
    guide = min((trained / "checkpoints").iterdir())
    walk = {"n": 31, "sampler": "dpmpp-2m-sde", "threshold": "dynamic"}
    jobs: list[dict[str, Any]] = [
        {"size": size, "options": {"n": 31, "batch_size": batch, "classes": "random"}}
        for batch, size in ((64, 1), (64, 2), (1, 2), (7, 1), (7, 2))
    ]
    jobs += [{"size": size, "guide": guide, "options": walk} for size in (1, 2)]
    results = []
    batches = []
    for job in jobs:
        codes, said, drawn_here = start("x.h5", **{**job, "options": {"overwrite": True, **job["options"]}})
        assert not any(codes), said
        results.append(drawn(tmp_path / "x.h5"))
        batches.append(drawn_here)
    images, labels, about = zip(*results)
    assert len(set(labels[0])) > 5
    for which, own in enumerate(batches):
        first = 0 if which < 5 else 5
        assert labels[which] == labels[first]
        assert np.abs(images[which] - images[first]).max() <= 1 and about[which] == about[first]
        assert len(dict(own)) == len(own) and sum(count for _, count in own) == 31
    assert np.array_equal(images[3], images[4]), "the same batches are the same to the last bit"
    assert max(count for _, count in batches[1]) == 16, "a batch for all is shared"
    assert (about[6]["nfe"], about[6]["guide"], about[6]["guide_step"]) == (8, str(trained), int(guide.name[-8:]))


def test_kills_change_no_byte_and_nothing_is_drawn_twice(start, tmp_path):
    """In two processes, one of which is killed at a random moment; tests/cli/test_interruption.py kills one alone."""
    options = {"n": MANY, "steps": 2}
    assert start("whole.h5", 2, options=options)[0] == [0, 0]
    total = 0
    for kill in (1, 2, 3, None):
        before = safe(tmp_path / "x.h5")
        codes, said, batches = start("x.h5", 2, options=options, kill=kill)
        assert (-signal.SIGKILL in codes) == (kill is not None) and (kill or codes == [0, 0]), said
        assert all(first >= before for first, _ in batches), "batches that were safe are not drawn again"
        total += sum(count for _, count in batches)
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))
    # What is lost by a kill is what was being drawn or written.
    assert total <= MANY + 3 * 3 * 5 * 2


def test_a_signal_saves_and_the_same_again_goes_on(start, tmp_path):
    assert start("whole.npz", 2)[0] == [0, 0]
    codes, said, _ = start("x.npz", 2, told=["SIGTERM", 20])
    assert codes == [143, 143], said
    (written,) = re.findall(r"rank 0 says: (?:rank 1: )?SIGTERM: (\d+) of 61 images are written", said)
    codes, said, batches = start("x.npz", 2)
    assert codes == [0, 0] and 5 <= int(written) <= 20 and f"going on after {written} of 61 images" in said
    assert min(batches)[0] >= int(written) and sum(count for _, count in batches) == 61 - int(written)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_stream_of_two_processes_is_in_order_and_ends_with_its_reader(start, tmp_path):
    assert start("x.npy")[0] == [0]
    assert start("stream", 2, stream=True)[0] == [0, 0]
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "x.npy").read_bytes()
    codes, said, batches = start("gone", 2, leave=10, options={"n": 5000, "steps": 1, "batch_size": 50})
    assert codes == [141, 141] and "Traceback" not in said, said
    assert sum(count for _, count in batches) < 5000


def test_an_error_in_one_process_ends_all_with_its_message_and_what_was_drawn_stays(start, tmp_path):
    codes, said, _ = start("x.npy", 2, fails=1)
    assert codes == [1, 1] and all(f"rank {rank} says: rank 1: the disk is on fire" in said for rank in (0, 1)), said
    codes, said, batches = start("x.npy", 2)
    assert codes == [0, 0] and min(batches)[0] == 20, said
    assert start("whole.npy")[0] == [0]
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


# The job


def safe(out: Path) -> int:
    """Images that a start goes on after."""
    try:
        return int(json.loads(Path(f"{out}.partial.json").read_text())["rows"])
    except FileNotFoundError:
        return 0


def kill_later(out: Path, seed: int) -> None:
    """Kill this process when some more images are safe, or a little later."""
    rng = random.Random(seed)
    aim = safe(out) + rng.randint(1, 7)
    while safe(out) < aim:
        time.sleep(0.001)
    time.sleep(rng.choice([0, 0.002, 0.005, 0.01]))
    os.kill(os.getpid(), signal.SIGKILL)


def work(
    world: Any,
    run: str,
    out: str,
    log: str,
    options: dict[str, Any] | None = None,
    guide: str = "",
    stream: bool = False,
    leave: int = 0,
    told: tuple[str, int] | None = None,
    fails: int | None = None,
    kill: int | None = None,
) -> None:
    """Draw samples as `elbo sample` does, and write a line for each batch.

    stream: write `out` as a stream. leave: bytes of a stream to read before it is closed. told: signal for the last process when
    so many images are drawn. fails: rank that can't draw its third batch. kill: seed of the moment at which a process is killed.
    """
    whole = Sampling.draw
    batches = []

    def draw(plan: Sampling, denoiser: Any, noise: Any, indices: range, *args: Any) -> Any:
        batches.append(indices)
        if len(batches) == 3 and fails == world.rank:
            raise DataError("the disk is on fire")
        with open(log, "a") as file:  # a line is written at once
            file.write(f"[{indices.start}, {len(indices)}]\n")
        return whole(plan, denoiser, noise, indices, *args)

    Sampling.draw = draw  # type: ignore[method-assign, assignment]
    settings = {"n": 61, "steps": 4, "batch_size": 5, "device": "cpu", **(options or {})}
    if guide:
        settings |= {"guide": Path(guide), "guidance_scale": 2.0}
    if kill is not None and world.rank == kill % world.size:
        threading.Thread(target=kill_later, args=(Path(out), kill), daemon=True).start()
    target: Any = Path(out)
    if leave:
        reading, writing = os.pipe()
        target = open(writing, "wb")  # noqa: SIM115
        if world.first and os.fork() == 0:
            target.close()
            os.read(reading, leave)
            os._exit(0)
        os.close(reading)
    elif stream:
        target = open(target, "wb") if world.first else None  # noqa: SIM115

    def counted(done: int, *rest: Any) -> None:
        if told and world.rank == world.size - 1 and done >= told[1] * settings["steps"]:
            os.kill(os.getpid(), signal.Signals[told[0]])

    try:
        with target if hasattr(target, "close") else contextlib.nullcontext(), heard(counted) as lines:
            try:
                sample.draw_samples(Path(run), target, SampleSettings(**settings), world)
            finally:
                if world.first:
                    print("\n".join(lines), file=sys.stderr)
    except BrokenPipeError:  # as the command line ends when nobody reads any more
        os._exit(141)
