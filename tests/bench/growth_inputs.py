"""Inputs of growth.py, and its batches at random: in a process of their own, as what they import takes memory."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIDE, CLASSES, BATCH, BATCHES, BINS = 8, 10, 256, 200, 100
PRESET = """
network: {channels: 8, levels: [1], blocks: 1, attention: [], dropout: 0.0}
train: {prediction: v, schedule: cosine, logsnr_min: -10, logsnr_max: 10, steps: 1, batch: 16, lr: 2.0e-3,
        warmup: 1, ema: 0.9, label_dropout: 0.1, save_every: 1, preview_every: 0, log_every: 1}
"""


def make(n: int) -> None:
    """Make arrays of n images, and a preset, in the folder that this process is in."""
    rng = np.random.default_rng(0)
    for name in ("images", "more"):
        np.save(f"{name}.npy", rng.integers(0, 256, (n, SIDE, SIDE, 3), np.uint8))
    Path("preset.yaml").write_text(PRESET)


def make_tar(n: int) -> None:
    """Make a tar of n PNGs in folders of classes, of 256 images again and again."""
    files = []
    for pixels in np.load("images.npy", mmap_mode="r")[:256]:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "png")
        files.append(buffer.getvalue())
    with tarfile.open("images.tar", "w") as archive:
        for index in range(n):
            content = files[index % len(files)]
            member = tarfile.TarInfo(f"class{index * CLASSES // n}/{index:07d}.png")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def make_logs(lines: int) -> None:
    """Make a loss log of so many lines, and a copy of the run with it and with as many lines of metrics."""
    import torch

    from elbocli.core.adaptive import bin_edges
    from elbocli.files import losslog

    shutil.copytree("run", "logged")
    with open("losslog.jsonl", "w") as errors, open("logged/metrics.jsonl", "w") as metrics:
        errors.write(losslog.header(bin_edges(-10, 10, BINS), dimensions=3 * SIDE**2, schedule="cosine"))
        for step in range(1, lines + 1):
            sums = torch.tensor([[16.0], [8 + 16 / step], [5 + 16 / step]]).expand(3, BINS)
            errors.write(losslog.line(step, step * 16 * BINS, sums))
            row = {"step": step, "images": step * 16 * BINS, "loss": 1 + 1 / step, "images_per_s": 100.0}
            metrics.write(json.dumps(row) + "\n")
    shutil.copy("losslog.jsonl", "logged/losslog.jsonl")


def read_batches(source: str, cold: bool) -> float:
    """Read batches at random; the median of their times in seconds."""
    take: Callable[[np.ndarray], np.ndarray]
    if source.endswith(".npy"):
        rows = np.load(source, mmap_mode="r")
        count, take = len(rows), lambda some: np.take(rows, some, axis=0)
    else:
        from elbocli.files.dataset import Dataset

        data = Dataset(source)
        count, take = len(data), data.batch
    clock = time.perf_counter if cold else time.process_time  # other work on the machine is not to count
    rng, times = np.random.default_rng(0), []
    with open(source, "rb") as file:
        for _ in range(BATCHES):
            if cold:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            some, begun = rng.integers(0, count, BATCH), clock()
            take(some)
            times.append(clock() - begun)
    return float(np.median(times))


def main() -> None:
    """Do what the first word says."""
    what, of, *more = sys.argv[1:]
    if what == "make":
        make(int(of))
        if more:
            make_tar(int(of))
    elif what == "logs":
        make_logs(int(of))
    else:
        print(read_batches(of, what == "cold"))


if __name__ == "__main__":
    main()
