"""Makes the golden files of this version: `python -m golden.make FOLDER`, with tests/ on the path.

They are made once for a version, before it is released, and never again: later versions must read them as they are.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from golden.machine import kind
from golden.opened import FILES, UNFINISHED, dumped, seen
from made_data import SPACE

from elbocli.bound.result import LatentBound, LatentTerm
from elbocli.files import strict_json
from elbocli.files.checkpoint import read_checkpoint
from elbocli.files.dataset_block import BlockLayout, plain
from elbocli.files.dataset_writer import open_writer
from elbocli.files.statistics import read_statistics, write_statistics
from elbocli.main import run as elbo
from elbocli.run.liveness import ProcessId
from elbocli.run.status import RunStatus

PRESET = """
data: {image_size: 8, channels: 1, classes: 2, images: 12}
network: {channels: 4, levels: [1], blocks: 1, attention: [], middle_attention: false, embedding: 4}
train: {prediction: v, schedule: cosine, weighting: "sigmoid:bias=2", logsnr_min: -10, logsnr_max: 10, steps: 4,
        batch: 4, lr: 2.0e-3, warmup: 2, ema: "power:std=0.1", snapshot_every: 4, save_every: 4,
        preview_every: 0, log_every: 2, val_every: 4}
"""
ELSEWHERE = ProcessId(pid=1, started=0, boot="", pids="", host="elsewhere")


def command(line: str, out: str = "") -> None:
    """Run a command here. out: the file that its standard output goes to."""
    words = line.split()
    sys.argv = ["elbo", *words]
    with open(out or os.devnull, "w") as said, contextlib.redirect_stdout(said):
        assert elbo(words) == 0, line


def images(count: int, seed: int) -> np.ndarray:
    """Grey squares of two brightnesses, uint8 [count, 8, 8, 1]."""
    rng = np.random.default_rng(seed)
    bright = np.arange(count)[:, None, None, None] % 2 * 120
    return (bright + rng.integers(0, 100, (count, 8, 8, 1))).astype(np.uint8)


def pack(path: str, layout: BlockLayout, rows: Any, attributes: dict[str, Any]) -> None:
    """A dataset of rows, in two classes."""
    with open_writer(Path(path), layout, len(rows), "golden") as writer:
        writer.append(rows, len(rows), {})
        writer.finish({"labels": np.arange(len(rows)) % 2}, {"class_names": ["dark", "light"]}, attributes)


def half_made() -> None:
    """A file in the making whose writer was killed."""
    try:
        with open_writer(Path("unfinished.h5"), plain((2, 2, 1)), 5, "golden", preallocate=False) as writer:
            writer.append(np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), 3, {})
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert all(map(os.path.exists, UNFINISHED))


def results() -> None:
    """Write what commands say of the run, and of its samples."""
    how = "--draws 2 -n 4 --device cpu"
    command(f"bound run data.h5 {how}", "bound.json")
    command(f"bound run data.h5 {how} --check", "theorem.json")
    command(f"bound run data.h5 {how} --classify", "classification.json")
    command(f"bound run data.h5 {how} --estimator variational --estimator information", "likelihoods.json")
    command("optimum data.h5 --bins 4 --logsnr-min -10 --logsnr-max 10", "optimum.json")
    command("adapt run -o schedule.yaml --report", "adapt-report.json")
    command("adapt --data-only optimum.json -o adapted.yaml --report", "data-report.json")
    command("grid run --kind entropic --steps 2 --classes random -n 2 -o grid.yaml --report", "grid-report.json")
    score = "--ref data.h5 --extractor elbo-tiny --metrics fid --allow-mismatch"
    command(f"eval samples.npz {score} --save-stats statistics.npz --save-features features.safetensors", "eval.json")
    command("compare eval.json eval.json", "compare.json")
    term = LatentTerm(1.5, 0.5, 0.25, 0.125)
    bound = LatentBound(-0.5, 0.25, 0.125, 0.5, -4.0, 2.0, term, term, term, 4, 2, "cosine", {"run": "run"})
    Path("latent-bound.json").write_text(dumped(bound.json()))
    command("report run --json", "report.json")
    command("report run run-2 --json", "report-of-two.json")
    for name in ("report.json", "report-of-two.json"):  # of many numbers, each on a line
        said = json.loads(Path(name).read_text())
        Path(name).write_text(json.dumps({**said, **({"runs": said["runs"][:1]} if "runs" in said else {})}) + "\n")
    whole = read_statistics(Path("statistics.npz"))
    write_statistics(Path("statistics.npz"), replace(whole, mu=whole.mu[:4], sigma=whole.sigma[:4, :4]))


def make(folder: Path) -> None:
    """Make all files. folder: a new one."""
    folder.mkdir()
    os.chdir(folder)
    torch.set_num_threads(1)
    pack("data.h5", plain((8, 8, 1)), images(12, 0), {"image_size": 8, "crop": "center", "filter": "adm"})
    pack("val.h5", plain((8, 8, 1)), images(4, 1), {"image_size": 8, "crop": "center", "filter": "adm"})
    latents = BlockLayout("latents", "<f2", (8, 2, 2), 64)
    pack("latents.h5", latents, np.linspace(-1, 1, 64).reshape(2, 8, 2, 2).astype(np.float16), SPACE.attributes())
    half_made()
    Path("preset.yaml").write_text(PRESET.lstrip())
    command("train data.h5 -o run --preset preset.yaml --val val.h5 --device cpu")
    shutil.copytree("run", "run-2")
    command("train -o run-2 --steps 6 --device cpu")
    shutil.copy("run-2/checkpoints/step-00000006/model.safetensors", "after.safetensors")
    command("ema run --std 0.1 -o average.safetensors")
    for name in ("samples.npz", "samples.h5", "samples.png"):
        command(f"sample run -n 4 --steps 2 --seed 0 -o {name} --device cpu")
    results()
    for path in ("adapted.yaml", "grid.yaml"):
        Path(path).unlink()
    known = read_checkpoint(Path("run-2/checkpoints/step-00000006")).meta.files
    shutil.rmtree("run-2")
    status = RunStatus.of(strict_json.read(Path("run/status.json")), "status")
    Path("run/status.json").write_text(dumped(replace(status, process=ELSEWHERE).json()))
    Path("machine.json").write_text(
        dumped({"kind": kind(), "after": {name: seal.sha256 for name, seal in known.items()}})
    )
    Path("seen.json").write_text(json.dumps(all_seen(folder)) + "\n")


def all_seen(folder: Path) -> dict[str, list[Any]]:
    """Read each file; return what its readers make of it."""
    found: dict[str, list[Any]] = {}
    for name, files in FILES.items():
        whole = shutil.copytree(folder, folder.with_name("copy"))
        found[name] = [seen(read(whole / file)) for file, read in files]
        shutil.rmtree(whole)
    return found


if __name__ == "__main__":
    make(Path(sys.argv[1]).absolute())
