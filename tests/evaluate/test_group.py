"""Several processes share the images, and the numbers are one process's."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from elbocli.core.metrics import asked
from elbocli.evaluate import scoring
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.dataset import Dataset
from elbocli.runtime.processes import ALONE, World

HERE = Path(__file__).parent
METRICS = ("fid", "is", "kid", "prc")


def scored(world: World, job: dict[str, Any]) -> dict[str, Any]:
    """What a process gets of it; the first one's is saved."""
    metrics = asked(METRICS, kid_subset_size=50, fid_infinity=True)
    outputs = {"save_features": Path(job["out"] + ".safetensors")} if world.size > 1 else {}
    settings = EvalSettings(metrics=metrics, extractor="elbo-tiny", batch=7, **outputs)
    samples: Any = Path(job["samples"])
    if job["streamed"]:
        samples = io.BytesIO(samples.read_bytes()) if world.first else io.BytesIO()
    result = scoring.run([samples], Path(job["ref"]), settings, world)
    assert (result is not None) == world.first
    found = result.json() if result else {}
    if world.first:
        Path(job["out"]).write_text(json.dumps(found))
    return found


CODE = f"""
import json, sys
sys.path[:0] = [{str(HERE)!r}, {str(HERE.parent)!r}]
import group
from test_group import scored
jobs = json.loads(sys.argv[1])
print(json.dumps([group.forked(job["size"], lambda world: scored(world, job)) for job in jobs]))
"""


def in_groups(jobs: list[dict[str, Any]]) -> tuple[list[list[int]], str]:
    """Exit codes by job and rank, and what was said."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps(jobs)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout), result.stderr


def test_numbers_do_not_depend_on_processes(digits: Path, tmp_path: Path) -> None:
    """100 images in batches of 7, which neither 2 nor 3 processes share evenly; from a file of each kind, and a stream."""
    images = Dataset(digits).batch(np.arange(100))
    np.save(tmp_path / "a.npy", images)
    np.savez_compressed(tmp_path / "a.npz", images)
    jobs = [
        {
            "size": size,
            "samples": str(tmp_path / name),
            "streamed": streamed,
            "ref": str(digits),
            "out": str(tmp_path / f"{k}"),
        }
        for k, (size, name, streamed) in enumerate([(2, "a.npy", False), (3, "a.npz", False), (2, "a.npy", True)])
    ]
    codes, said = in_groups(jobs)
    assert not any(any(ranks) for ranks in codes), said
    alone = scored(ALONE, {**jobs[0], "size": 1, "out": str(tmp_path / "alone")})
    for job in jobs:
        found = json.loads(Path(job["out"]).read_text())
        assert set(found) == set(alone)
        for key in set(alone) - {"samples"}:
            same = pytest.approx(alone[key], rel=1e-9) if isinstance(alone[key], float) else alone[key]
            assert found[key] == same, key


def test_an_error_of_any_process_ends_all_with_its_message(digits: Path, tmp_path: Path) -> None:
    """A picture is cut short in the second process's part: images 7 to 13."""
    (tmp_path / "a").mkdir()
    for index, image in enumerate(Dataset(digits).batch(np.arange(60))):
        Image.fromarray(image[:, :, 0]).save(tmp_path / "a" / f"{index:02d}.png")
    broken = tmp_path / "a" / "10.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    job = {"samples": str(tmp_path / "a"), "streamed": False, "ref": str(digits), "out": str(tmp_path / "out")}
    codes, said = in_groups([{**job, "size": 2}])
    assert codes == [[1, 1]] and said.count("rank 1: ") >= 1 and "10.png" in said, said
    assert not (tmp_path / "out").exists()
