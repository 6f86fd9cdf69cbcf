"""Sampling gives the same images for any number of processes and any batch size, also after interruptions, and draws none twice.

python test_groups.py LOG draws in forked processes that find each other as torchrun's do; all tests share one start of Python.
A line of its input is a list of jobs, {"run", "out", "size"?, "options"?, …}; a line of its output is a list of {"codes" of the last
start, by rank, "kills", "drawn": [first image, count] of every batch, "again": batches drawn though they were safe}. stream: write
`out` as a stream. leave: bytes of a stream to read before it is closed. kills: number of SIGKILLs, each with a new start. told:
[signal, images] for the last process when so many are drawn. fails: rank that can't draw its third batch. guide: a checkpoint.
"""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from harness import heed_signals

Came = Callable[[Path, list[dict[str, Any]]], tuple[list[dict[str, Any]], str]]
MANY = 301
pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def came_to(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Came]:
    """Return came_to(folder, jobs), which runs the jobs and returns their results and the text on stderr."""
    log = tmp_path_factory.mktemp("script") / "log"
    line, said = [sys.executable, __file__, str(log)], log.with_name("stderr")
    how: dict[str, Any] = {**dict.fromkeys(("stdin", "stdout"), subprocess.PIPE), "preexec_fn": heed_signals}
    how["env"] = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with said.open("w") as stderr, subprocess.Popen(line, stderr=stderr, text=True, **how) as script:

        def run(folder: Path, jobs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
            before = len(said.read_text())
            written = [{"run": str(trained), **job, "out": str(folder / job["out"])} for job in jobs]
            print(json.dumps(written), file=script.stdin, flush=True)
            found = script.stdout.readline()  # type: ignore[union-attr]
            assert found, said.read_text()
            return json.loads(found), said.read_text()[before:]

        yield run
        script.stdin.close()  # type: ignore[union-attr]
    assert script.returncode == 0, said.read_text()


def drawn(path: Path) -> tuple[np.ndarray, list[int], dict[str, Any]]:
    """Images and labels of a file, and what they say of themselves."""
    with h5py.File(path) as file:
        return file["images"][()].astype(int), file["labels"][()].tolist(), json.loads(file.attrs["samples"])


def test_batches_and_processes_change_no_label_and_pixels_by_a_level_at_most(came_to, trained, tmp_path):
    """Also with a multistep sampler that adds noise, and a guide."""
    jobs: list[dict[str, Any]] = [
        {"size": size, "out": f"{batch}-{size}.h5", "options": {"n": 31, "batch_size": batch, "classes": "random"}}
        for batch, size in ((64, 1), (64, 2), (1, 2), (7, 1), (7, 2))
    ]
    guide = str(min((trained / "checkpoints").iterdir()))
    walk = {"n": 31, "sampler": "dpmpp-2m-sde", "threshold": "dynamic"}
    jobs += [{"size": size, "out": f"{size}.h5", "guide": guide, "options": walk} for size in (1, 2)]
    found, said = came_to(tmp_path, jobs)
    assert not any(any(one["codes"]) for one in found), said
    images, labels, about = zip(*(drawn(tmp_path / job["out"]) for job in jobs))
    assert len(set(labels[0])) > 5
    for which, one in enumerate(found):
        first = 0 if which < 5 else 5
        assert labels[which] == labels[first]
        assert np.abs(images[which] - images[first]).max() <= 1 and about[which] == about[first]
        starts = [start for start, _ in one["drawn"]]
        assert len(starts) == len(set(starts)) and sum(count for _, count in one["drawn"]) == 31
    assert np.array_equal(images[3], images[4]), "the same batches are the same to the last bit"
    assert max(count for _, count in found[1]["drawn"]) == 16, "a batch for all is shared"
    assert (about[6]["nfe"], about[6]["guide"], about[6]["guide_step"]) == (8, str(trained), int(guide[-8:]))


def test_kills_change_no_byte_and_nothing_is_drawn_twice(came_to, tmp_path):
    """In two processes; tests/cli/test_interruption.py kills one."""
    job = {"size": 2, "options": {"n": MANY, "steps": 2}}
    jobs = [{**job, "out": "whole.h5"}, {**job, "out": "x.h5", "kills": 3}]
    (_, killed), said = came_to(tmp_path, jobs)
    assert (killed["codes"], killed["kills"], killed["again"]) == ([0, 0], 3, 0), said
    assert (tmp_path / "x.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()
    assert not list(tmp_path.glob("*.partial*"))
    # What is lost by a kill is what was being drawn or written.
    assert sum(count for _, count in killed["drawn"]) <= MANY + 3 * 3 * 5 * 2


def test_a_signal_saves_and_the_same_again_goes_on(came_to, tmp_path):
    job = {"out": "x.npz", "size": 2}
    jobs = [{**job, "out": "whole.npz"}, {**job, "told": ["SIGTERM", 20]}, job]
    found, said = came_to(tmp_path, jobs)
    assert [one["codes"] for one in found] == [[0, 0], [143, 143], [0, 0]], said
    (safe,) = re.findall(r"rank 0 says: (?:rank 1: )?SIGTERM: (\d+) of 61 images are written", said)
    assert 5 <= int(safe) <= 20 and f"going on after {safe} of 61 images" in said
    assert found[2]["again"] == 0 and sum(count for _, count in found[2]["drawn"]) == 61 - int(safe)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_stream_of_two_processes_is_in_order_and_ends_with_its_reader(came_to, tmp_path):
    jobs: list[dict[str, Any]] = [
        {"out": "x.npy"},
        {"out": "stream", "stream": True, "size": 2},
        {"out": "gone", "leave": 10, "size": 2, "options": {"n": 5000, "steps": 1, "batch_size": 50}},
    ]
    found, said = came_to(tmp_path, jobs)
    assert [one["codes"] for one in found] == [[0], [0, 0], [141, 141]], said
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "x.npy").read_bytes()
    assert sum(count for _, count in found[2]["drawn"]) < 5000 and "Traceback" not in said


def test_an_error_in_one_process_ends_all_with_its_message_and_what_was_drawn_stays(came_to, tmp_path):
    job = {"out": "x.npy", "size": 2}
    found, said = came_to(tmp_path, [{**job, "fails": 1}, job, {"out": "whole.npy"}])
    assert [one["codes"] for one in found] == [[1, 1], [0, 0], [0]], said
    assert all(f"rank {rank} says: rank 1: the disk is on fire" in said for rank in (0, 1))
    assert min(start for start, _ in found[1]["drawn"]) == 20
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


# The script


def safe(job: dict[str, Any]) -> int:
    """Images that a start of the job goes on after."""
    try:
        return int(json.loads(Path(job["out"] + ".partial.json").read_text())["rows"])
    except FileNotFoundError:
        return 0


def work(world: Any, job: dict[str, Any]) -> None:
    """Draw as `elbo sample` does, and note a line for each batch."""
    from calls import typed
    from harness import heard

    from elbocli.core.guidance import Guidance
    from elbocli.errors import DataError
    from elbocli.sample import draw as sample

    whole, batches = sample.draw_batch, []

    def draw(denoiser: Any, indices: range, *args: Any) -> Any:
        batches.append(indices)
        if len(batches) == 3 and job.get("fails") == world.rank:
            raise DataError("the disk is on fire")
        with open(sys.argv[1], "a") as file:  # a line is written at once
            file.write(f"[{indices.start}, {len(indices)}]\n")
        return whole(denoiser, indices, *args)

    sample.draw_batch = draw  # type: ignore[assignment]
    options = {"n": 61, "steps": 4, "batch_size": 5, "device": "cpu", **job.get("options", {})}
    if "guide" in job:
        options |= {"guide": Path(job["guide"]), "guidance": Guidance(2.0)}
    target: Any = Path(job["out"])
    if "leave" in job:
        out, into = os.pipe()
        target = open(into, "wb")  # noqa: SIM115
        if world.first and os.fork() == 0:
            target.close()
            os.read(out, job["leave"])
            os._exit(0)
        os.close(out)
    elif job.get("stream"):
        target = open(target, "wb") if world.first else None  # noqa: SIM115
    number, after = job.get("told", ["SIGTERM", 1 << 40])

    def told(done: int, *rest: Any) -> None:
        if world.rank == world.size - 1 and done >= after * options["steps"]:
            os.kill(os.getpid(), signal.Signals[number])

    try:
        with target if hasattr(target, "close") else contextlib.nullcontext(), heard(told) as lines:
            try:
                sample.draw_samples(Path(job["run"]), target, typed(**options), world)
            finally:
                if world.first:
                    print("\n".join(lines), file=sys.stderr)
    except BrokenPipeError:  # as the command line ends when nobody reads any more
        os._exit(141)


def start(job: dict[str, Any], rng: random.Random, kill: bool) -> list[int]:
    """Start a job, and perhaps kill a process: when some more images are safe, or a little later. The exit codes."""
    import group

    before = safe(job)
    children = group.started(job.get("size", 1), lambda world: work(world, job))
    if kill:
        aim = before + rng.randint(1, 7)
        while safe(job) < aim and not os.waitid(os.P_PID, children[0], os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.001)
        time.sleep(rng.choice([0, 0.002, 0.005, 0.01]))
        os.kill(rng.choice(children), signal.SIGKILL)
    return group.ended(children)


def finish(job: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """All starts of a job."""
    kills, again, lines = 0, 0, Path(sys.argv[1])
    drawn: list[list[int]] = []
    while True:
        before = safe(job)
        lines.write_text("")
        codes = start(job, rng, kills < job.get("kills", 0))
        batches = [json.loads(line) for line in lines.read_text().splitlines()]
        again += sum(first < before for first, _ in batches)
        drawn += batches
        if -signal.SIGKILL not in codes:
            return {"drawn": drawn, "codes": codes, "kills": kills, "again": again}
        kills += 1


if __name__ == "__main__":
    import group  # noqa: F401 - this and the next import what takes every start 2 s otherwise

    from elbocli.run.config import read_config
    from elbocli.run.open import empty_network

    for line in sys.stdin:
        jobs = json.loads(line)
        empty_network(read_config(Path(jobs[0]["run"])), Path())
        print(json.dumps([finish(job, random.Random(7)) for job in jobs]), flush=True)
