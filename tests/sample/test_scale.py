"""The same images from any number of processes and batch sizes, whatever interrupts them, and nothing drawn twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

DRIVER = Path(__file__).parent / "sample_group.py"
MANY = 301
FILES = ["x.h5", "x.npz", "x.npy", "x", "x.png"]


def came_to(folder: Path, run: Path, jobs: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """What the jobs came to, and what was said on stderr."""
    written = [{"run": str(run), **job, "out": str(folder / job["out"])} for job in jobs]
    (folder / "jobs.json").write_text(json.dumps(written))
    line = [sys.executable, DRIVER, folder / "jobs.json", folder / "found.json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads((folder / "found.json").read_text()), result.stderr


def content(path: Path) -> dict[str, bytes]:
    """All bytes of a file or folder, by name."""
    return {file.name: file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])}


def folders(tmp_path: Path, count: int) -> list[str]:
    for number in range(count):
        (tmp_path / str(number)).mkdir()
    return [str(number) for number in range(count)]


def test_batches_and_processes_change_neither_noise_nor_labels_and_pixels_by_a_level_at_most(
    trained: Path, tmp_path: Path
) -> None:
    ways = [(batch, size) for batch in (64, 1, 7) for size in (1, 2)]
    jobs = [
        {"size": size, "out": f"{batch}-{size}.h5", "options": {"batch": batch, "classes": "random"}}
        for batch, size in ways
    ]
    found, said = came_to(tmp_path, trained, jobs)
    assert not any(any(one["codes"]) for one in found), said
    images, labels = {}, {}
    for way, job in zip(ways, jobs):
        with h5py.File(tmp_path / job["out"]) as file:
            images[way], labels[way] = file["images"][()].astype(int), file["labels"][()]
    assert len(found[0]["noise"]) == 4 * 61
    for way, one in zip(ways, found):
        assert one["noise"] == found[0]["noise"]
        assert np.array_equal(labels[way], labels[64, 1]) and len(set(labels[64, 1])) > 5
        assert np.abs(images[way] - images[64, 1]).max() <= 1
        starts = [start for start, _ in one["drawn"]]
        assert len(starts) == len(set(starts)) and sum(count for _, count in one["drawn"]) == 61
    assert np.array_equal(images[7, 1], images[7, 2]), "the same batches are the same to the last bit"
    assert max(count for _, count in found[1]["drawn"]) == 31, "a batch for all is shared"


def test_a_guided_walk_that_remembers_is_the_same_in_two_processes(trained: Path, tmp_path: Path) -> None:
    """A multistep sampler with noise, two networks, and as many calls of them as are told."""
    guide = str(min((trained / "checkpoints").iterdir()))
    options = {"sampler": "dpmpp-2m-sde", "clip": "dynamic"}
    jobs = [{"size": size, "out": f"{size}.h5", "guide": guide, "options": options} for size in (1, 2)]
    found, said = came_to(tmp_path, trained, jobs)
    assert not any(any(one["codes"]) for one in found), said
    with h5py.File(tmp_path / "1.h5") as one, h5py.File(tmp_path / "2.h5") as two:
        assert np.abs(one["images"][()].astype(int) - two["images"][()]).max() <= 1
        assert one.attrs["samples"] == two.attrs["samples"]
        about = json.loads(one.attrs["samples"])
    assert (about["nfe"], about["guide"], about["guide_step"]) == (8, str(trained), int(guide[-8:]))


@pytest.mark.parametrize(("size", "kills"), [(1, 3), *(pytest.param(n, 10, marks=pytest.mark.slow) for n in (1, 2))])
def test_kills_change_no_byte_and_nothing_is_drawn_twice(size: int, kills: int, trained: Path, tmp_path: Path) -> None:
    whole, killed = folders(tmp_path, 2)
    names = FILES if size == 1 else FILES[:1]
    job = {"size": size, "options": {"n": MANY, "steps": 2}}
    jobs: list[dict[str, Any]] = [{**job, "out": f"{whole}/{name}"} for name in names]
    jobs += [{**job, "out": f"{killed}/{name}", "kills": kills if name == "x.h5" else 3} for name in names]
    found, said = came_to(tmp_path, trained, jobs)
    for job, one in zip(jobs, found):
        assert one["codes"] == [0] * size, said
        assert one["kills"] == job.get("kills", 0) and one["again"] == 0
    for name in names:
        assert content(tmp_path / killed / name) == content(tmp_path / whole / name)
    assert sorted(os.listdir(tmp_path / killed)) == sorted(names), "nothing is left beside them"
    # What is lost by a kill is what was being drawn or written.
    assert sum(count for _, count in found[len(names)]["drawn"]) <= MANY + kills * 3 * 5 * size


@pytest.mark.parametrize(("size", "number"), [(1, "SIGINT"), (2, "SIGTERM")])
def test_a_signal_saves_and_the_same_again_goes_on(size: int, number: str, trained: Path, tmp_path: Path) -> None:
    job = {"out": "x.npz", "size": size}
    jobs = [{**job, "out": "whole.npz"}, {**job, "told": [number, 20]}, job]
    found, said = came_to(tmp_path, trained, jobs)
    code = {"SIGINT": 130, "SIGTERM": 143}[number]
    assert [one["codes"] for one in found] == [[0] * size, [code] * size, [0] * size], said
    (safe,) = re.findall(
        rf"rank 0 says: (?:rank 1: )?{number}: (\d+) of 61 images are written; with -o FILE the same command", said
    )
    assert 5 <= int(safe) <= 20 and f"going on after {safe} of 61 images" in said
    assert found[2]["again"] == 0 and sum(count for _, count in found[2]["drawn"]) == 61 - int(safe)
    assert (tmp_path / "x.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_a_stream_of_two_processes_is_in_order_and_ends_with_its_reader(trained: Path, tmp_path: Path) -> None:
    jobs: list[dict[str, Any]] = [
        {"out": "x.npy"},
        {"out": "stream", "stream": True, "size": 2},
        {"out": "gone", "leave": 10, "size": 2, "options": {"n": 5000, "steps": 1, "batch": 50}},
        {"out": "cut", "stream": True, "size": 2, "told": ["SIGTERM", 20]},
    ]
    found, said = came_to(tmp_path, trained, jobs)
    assert [one["codes"] for one in found] == [[0], [0, 0], [141, 141], [143, 143]], said
    assert (tmp_path / "stream").read_bytes() == (tmp_path / "x.npy").read_bytes()
    assert (tmp_path / "x.npy").read_bytes().startswith((tmp_path / "cut").read_bytes())
    assert sum(count for _, count in found[2]["drawn"]) < 5000
    assert "of 61 images are written" in said and "Traceback" not in said


def test_an_error_in_one_process_ends_all_with_its_message_and_what_was_drawn_stays(
    trained: Path, tmp_path: Path
) -> None:
    job = {"out": "x.npy", "size": 2}
    found, said = came_to(tmp_path, trained, [{**job, "fails": 1}, job, {"out": "whole.npy"}])
    assert [one["codes"] for one in found] == [[1, 1], [0, 0], [0]], said
    for rank in (0, 1):
        assert f"rank {rank} says: rank 1: the disk is on fire" in said
    assert min(start for start, _ in found[1]["drawn"]) == 20
    assert (tmp_path / "x.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
