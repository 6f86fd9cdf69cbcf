"""Hostile files, each declared once: how it is made, and the commands that are given it.

`python tests/hostile_files.py [NAME…]` runs them all by the elbo of this checkout and prints a table of exit code, seconds
and memory; tests/cli/test_hostile_files.py checks that each is refused in a sentence.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file


@dataclass(frozen=True)
class Hostile:
    """A file, a folder or something else. make: makes it, in a folder with good files (`good_files`). lines: command
    lines, in that folder.
    """

    name: str
    make: Callable[[Path], object]
    lines: tuple[str, ...]

    @property
    def quick(self) -> bool:
        """Whether it is made and refused in no time, so that it can be one of the tests."""
        return not any(word in self.name for word in SLOW)

    @property
    def harmless(self) -> bool:
        """Whether the first command needs nothing of what is wrong with it, and does what it should."""
        return self.name in HARMLESS


HOSTILE: list[Hostile] = []
SLOW = (
    *(
        "a socket",
        "an endless device",
        "a million",
    ),
    *("ICNS with",),
)
"""Words of those that take seconds: gigabytes are packed."""
HARMLESS = (
    *("metrics: a thousand names",),
    *(
        "HDF5: another array of 4 TB",
        "HDF5: num_classes 10^12",
        "HDF5: a label of 2^40",
    ),
)
M = 1 << 20


def hostile(name: str, *lines: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Declare a hostile file, made by the function."""

    def declare(make: Callable[[Path], object]) -> Callable[[Path], object]:
        HOSTILE.append(Hostile(name, make, lines))
        return make

    return declare


def text(name: str, file: str, content: Callable[[], str], *lines: str) -> None:
    """Declare a text file."""
    HOSTILE.append(Hostile(name, lambda folder: (folder / file).write_text(content()), lines))


GOOD = {"channels": 8, "levels": [1, 2], "blocks": 1, "attention": [4]}
DRY = "train good.h5 --dry-run --preset bad.yaml"
ADAPT = "adapt bad.jsonl"


def preset(**network: Any) -> str:
    return json.dumps({"network": {**GOOD, **network}, "train": {"steps": 10}})


def good_dataset(path: Path, **members: Any) -> None:
    """A dataset as another program may write one."""
    with h5py.File(path, "w") as file:
        found = {"images": np.zeros((12, 8, 8, 3), np.uint8), "labels": np.arange(12) % 3, **members}
        for name, value in found.items():
            if callable(value):
                value(file)
            elif value is not None:
                file[name] = value
        file.attrs.update({"format": "elbo-dataset", "version": 1})


# Texts

for what, knots in {
    "aliases": "a: &a [x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"{b}: &{b} [{','.join('*' + a for _ in range(9))}]\n" for a, b in zip("abcdefgh", "bcdefghi")),
    "100,000 digits": f"format: elbo-schedule\nversion: 1\nknots: [{{t: 0, logsnr: {'9' * 100_000}}}]\n",
    "1 MB in base 60": f"format: elbo-schedule\nversion: 1\nlogsnr_min: 1{':59' * (M // 3)}\n",
    "depth": "format: " + "[" * M,
    "a million values": "format: elbo-schedule\nknots: [" + "1," * M + "1]\n",
    "NaN": "format: elbo-schedule\nversion: 1\nknots:\n- {t: 0, logsnr: .nan}\n- {t: 1, logsnr: .nan}\n",
}.items():
    text(
        f"YAML: {what}",
        "bad.yaml",
        lambda knots=knots: knots,
        "info bad.yaml",
        "weights check u-mse@bad.yaml",
        "train good.h5 --dry-run --config bad.yaml",
        DRY,
    )  # type: ignore[misc]
for what, line in {
    "100,000 digits": '{"format": "elbo-losslog", "version": ' + "1" * 100_000 + "}",
    "depth": '{"format": ' + "[" * M,
    "one line of 64 MB": '{"format": "' + "x" * (64 * M),
    "a million empty lines": "\n" * M,
    "negative steps": '{"format":"elbo-losslog","version":1,"edges":[-1,1]}\n{"step":-5,"images":-7,"count":[1],"sum":[1],"sumsq":[1]}',
    "1e400 images": '{"format":"elbo-losslog","version":1,"edges":[-1,1]}\n{"step":1,"images":1'
    + "0" * 400
    + ',"count":[1],"sum":[1],"sumsq":[1]}',
}.items():
    text(f"loss log: {what}", "bad.jsonl", lambda line=line: line, ADAPT, "info bad.jsonl")  # type: ignore[misc]
text(
    "results: 100,000 digits",
    "run/bad.json",
    lambda: '{"n_samples": ' + "1" * 100_000 + ', "extractor": ""}',
    "report run --scores run/bad.json -o x.html",
)
text("results: depth", "run/bad.json", lambda: "[" * M, "report run --scores run/bad.json -o x.html")
text(
    "scheduler: 100,000 digits",
    "bad.json",
    lambda: '{"num_train_timesteps": ' + "1" * 100_000 + "}",
    "weights check bad.json",
)
text(
    "metrics: a million short lines", "run/metrics.jsonl", lambda: '{"step":1,"images":1}\n' * M, "report run -o x.html"
)
text(
    "metrics: a thousand names",
    "run/metrics.jsonl",
    lambda: "".join(f'{{"step":1,"images":1,"n{i}":1}}\n' for i in range(1000)),
    "report run -o x.html",
)
text(
    "status: 100,000 digits",
    "run/status.json",
    lambda: '{"state": "running", "step": ' + "1" * 100_000 + "}",
    "info run",
    "report run -o x.html",
)
for field, value in {"step": "-5", "images": "1" * 100_000, "log_bytes": "{" * 1000}.items():
    text(f"meta.json: {field} {value[:4]}", "run/checkpoints/step-00000010/meta.json",
         lambda field=field, value=value: '{"format": "elbo-checkpoint", "version": 1, "files": {}, "step": 10, "images": 10, "log_bytes": {}}'.replace(f'"{field}": ' + ("{}" if field == "log_bytes" else "10"), f'"{field}": {value}'),  # type: ignore[misc]
         "info run/checkpoints/step-00000010", "sample run -n 1 -o x.npy")  # fmt: skip
text(
    "run's config: aliases",
    "run/config.yaml",
    lambda: "format: elbo-run\nversion: 1\nsettings: &a {}\nnetwork: *a\ndata: *a\nfiles: *a\n",
    "info run",
    "sample run -n 1 -o x.npy",
    "report run -o x.html",
)

# Networks

for what, network in {
    "10^9 channels": {"channels": 10**9}, "10^6 levels": {"levels": [1] * 10**5}, "10^9 blocks": {"blocks": 10**9},
    "10^40 channels": {"channels": 10**40}, "a level of 10^9": {"levels": [10**9, 1]}, "no levels": {"levels": []},
    "negative channels": {"channels": -8}, "dropout NaN": {"dropout": 2.0},
}.items():  # fmt: skip
    text(
        f"network: {what}",
        "bad.yaml",
        lambda network=network: preset(**network),
        DRY,
        "train good.h5 --preset bad.yaml -o new",
    )  # type: ignore[misc]
text(
    "preset's data: 10^9 pixels",
    "bad.yaml",
    lambda: json.dumps(
        {
            "network": GOOD,
            "train": {"steps": 10},
            "data": {"image_size": 10**9, "channels": 3, "classes": 1, "images": 10},
        }
    ),
    "train --dry-run --preset bad.yaml",
)
text(
    "preset's data: 10^15 classes",
    "bad.yaml",
    lambda: json.dumps(
        {
            "network": GOOD,
            "train": {"steps": 10},
            "data": {"image_size": 8, "channels": 1, "classes": 10**15, "images": 10**30},
        }
    ),
    "train --dry-run --preset bad.yaml",
)
text(
    "run's config: 10^9 blocks",
    "run/config.yaml",
    lambda: (
        "format: elbo-run\nversion: 1\nsettings: {steps: 10}\nnetwork: {image_size: 8, image_channels: 3, num_classes: 0, channels: 8, levels: [1], blocks: 1000000000, attention: []}\ndata: {path: good.h5}\nfiles: {}\n"
    ),
    "sample run -n 1 -o x.npy",
    "train good.h5 -o run --dry-run",
    "report run -o x.html",
)

# Kinds of file


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def plug(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


for what, put in {"an endless device": endless, "a socket": plug}.items():
    for file, lines in {
        "bad.h5": ("info bad.h5", "train bad.h5 --dry-run", "info --verify bad.h5", "prep bad.h5 x.h5", "eval bad.h5 --ref good.h5 --extractor elbo-tiny"),
        "bad.yaml": (DRY, "train good.h5 --dry-run --config bad.yaml", "train good.h5 --dry-run --preset digits --schedule bad.yaml", "info bad.yaml"),
        "bad.json": ("weights check bad.json", "report run --scores bad.json -o x.html"),
        "bad.jsonl": (ADAPT,),
        "bad.npz": ("eval good.npy --ref bad.npz --extractor elbo-tiny", "info bad.npz", "eval bad.npz --ref good.h5 --extractor elbo-tiny"),
        "bad.npy": ("eval bad.npy --ref good.h5 --extractor elbo-tiny", "info bad.npy", "prep bad.npy x.h5"),
        "bad.safetensors": ("info bad.safetensors", "eval bad.safetensors --ref good.h5 --extractor elbo-tiny", "sample run -n 1 -o x.npy --weights bad.safetensors"),
        "bad.pt2": ("eval good.npy --ref good.h5 --extractor bad.pt2",),
        "bad.pth": ("eval good.npy --ref good.h5 --extractor-weights bad.pth",),
        "bad.tar": ("prep bad.tar x.h5",),
        "images/a.png": ("prep images x.h5",),
        "images/bad.tar": ("prep images x.h5",),
        "labels.txt": ("prep images x.h5 --labels labels.txt", "prep images x.h5 --classes labels.txt"),
        "run/config.yaml": ("info run", "sample run -n 1 -o x.npy", "train good.h5 -o run", "report run -o x.html"),
        "run/status.json": ("info run",),
        "run/metrics.jsonl": ("report run -o x.html",),
        "run/losslog.jsonl": ("adapt run", "report run -o x.html"),
        "run/checkpoints/step-00000010/meta.json": ("info run", "sample run -n 1 -o x.npy"),
        "run/checkpoints/step-00000010/model.safetensors": ("info run", "sample run -n 1 -o x.npy", "info --verify run"),
        "run/checkpoints/step-00000010/state.pt": ("info --verify run",),
        "run/previews/step-00000010.png": ("report run -o x.html",),
    }.items():  # fmt: skip

        def put_at(folder: Path, file: str = file, put: Callable[[Path], None] = put) -> None:
            path = folder / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            here = Path.cwd()
            os.chdir(path.parent)  # a socket's name has at most 107 bytes
            try:
                put(Path(path.name))
            finally:
                os.chdir(here)

        HOSTILE.append(Hostile(f"{file}: {what}", put_at, lines))

# HDF5

H5 = ("info bad.h5", "train bad.h5 --dry-run", "info --verify bad.h5", "prep bad.h5 x.h5")


@hostile("HDF5: another array of 4 TB", *H5)
def _(folder: Path) -> None:
    good_dataset(folder / "bad.h5", more=lambda file: file.create_dataset("more", (10**12,), "f4", chunks=(1000,)))


@hostile("HDF5: labels above 2^63", *H5, "train bad.h5 --preset digits -o new")
def _(folder: Path) -> None:
    good_dataset(folder / "bad.h5", labels=np.full(12, 2**64 - 1, "u8"))


@hostile("HDF5: a label of 2^40", *H5, "train bad.h5 --preset digits -o new")
def _(folder: Path) -> None:
    good_dataset(folder / "bad.h5", labels=np.full(12, 2**40, "i8"))


for what, shape in {"oblong images": (12, 8, 16, 3), "images of no width": (12, 8, 0, 3)}.items():

    def oblong(folder: Path, shape: tuple[int, ...] = shape) -> None:
        good_dataset(folder / "bad.h5", images=np.zeros(shape, np.uint8))

    HOSTILE.append(
        Hostile(
            f"HDF5: {what}",
            oblong,
            (
                "train bad.h5 --dry-run --preset digits",
                "train bad.h5 --preset digits -o new",
                "bound run bad.h5",
                "info --verify bad.h5",
            ),
        )
    )


@hostile("HDF5: num_classes 10^12", *H5)
def _(folder: Path) -> None:
    good_dataset(folder / "bad.h5", class_counts=np.zeros(3, int))
    with h5py.File(folder / "bad.h5", "a") as file:
        file.attrs["num_classes"] = 10**12


# Tensors


@hostile("safetensors: metadata of 100,000 digits", "info bad.safetensors")
def _(folder: Path) -> None:
    about = '{"spec": "0.9", "step": ' + "1" * 100_000 + "}"
    save_file({"x": torch.zeros(1)}, folder / "bad.safetensors", {"format": "elbo-ema", "version": "1", "about": about})


@hostile("weights: a tensor of 10^12 values on one", "eval good.npy --ref good.h5 --extractor-weights bad.pth")
def _(folder: Path) -> None:
    torch.save({"x": torch.zeros(1).expand(10**12)}, folder / "bad.pth")


# Archives


def record(word: str, value: object) -> bytes:
    rest = f" {word}={value}\n"
    length = len(rest) + len(str(len(rest)))
    return f"{length + (len(str(length)) > len(str(len(rest))))}{rest}".encode()


def block(kind: bytes, content: bytes) -> bytes:
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % tarfile.BLOCKSIZE)


for what, blocks in {
    "a size of 100,000 digits": lambda: block(tarfile.XHDTYPE, record("size", "9" * 100_000)),
}.items():  # fmt: skip

    def put_tar(folder: Path, blocks: Callable[[], bytes] = blocks) -> None:
        (folder / "bad.tar").write_bytes(blocks() + block(tarfile.REGTYPE, b"content") + bytes(1024))

    HOSTILE.append(Hostile(f"tar: {what}", put_tar, ("prep bad.tar x.h5",)))


@hostile("zip: labels of 100,000 digits", "prep bad.zip x.h5")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        archive.writestr("dataset.json", '{"labels": [["a.png", ' + "1" * 100_000 + "]]}")


@hostile("zip: a label above 2^63", "prep bad.zip x.h5")
def _(folder: Path) -> None:
    with zipfile.ZipFile(folder / "bad.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        archive.writestr("dataset.json", json.dumps({"labels": [["a.png", 2**70]]}))


# Images

PREP = "prep images x.h5 --size 8"


def encoded(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def png() -> bytes:
    return encoded(Image.new("RGB", (8, 8)), "png")


def among_images(name: str, make: Callable[[], bytes]) -> None:
    def put(folder: Path) -> None:
        (folder / "images" / "bad.png").write_bytes(make())

    HOSTILE.append(Hostile(f"image: {name}", put, (PREP,)))


def icon(side: int) -> bytes:
    inner = encoded(Image.new("RGBA", (side, side)), "jpeg2000")
    return b"icns" + struct.pack(">I4sI", len(inner) + 16, b"ic10", len(inner) + 8) + inner


among_images("ICNS with JPEG 2000 of 9000 x 9000", lambda: icon(9000))


# Running


def good_files(folder: Path) -> None:
    """Files that hostile ones come beside: images, a dataset, samples and a run of two steps."""
    (folder / "images").mkdir()
    for number in range(3):
        (folder / "images" / f"{number}.png").write_bytes(png())
    good_dataset(folder / "good.h5")
    np.save(folder / "good.npy", np.zeros((12, 8, 8, 3), np.uint8))
    (folder / "tiny.yaml").write_text(
        json.dumps(
            {"network": GOOD, "train": {"steps": 10, "batch": 4, "save_every": 10, "log_every": 5, "preview_every": 0}}
        )
    )


TRAIN = "train good.h5 --preset tiny.yaml -o run -q"


WATCHED = """
import atexit, sys
def note():
    status = open("/proc/self/status").read()
    open(peak, "w").write(status.split("VmHWM:")[1].split()[0])
peak = sys.argv.pop(1)
atexit.register(note)
from elbocli.main import main
sys.argv[0] = "elbo"
main()
"""
"""elbo, which notes in the end how much memory it has had: what a parent is told counts what itself had before."""


@dataclass(frozen=True)
class Ran:
    """A command's end. seconds: of CPU; wall: of the clock. memory: bytes at most."""

    code: int | None
    seconds: float
    wall: float
    memory: int
    said: str


def run(line: str, folder: Path, limit: float = 120) -> Ran:
    """Run a command line in its own process. code is None where it had to be ended."""
    with tempfile.TemporaryFile() as err, tempfile.NamedTemporaryFile() as peak:
        start = time.monotonic()
        command = [sys.executable, "-c", WATCHED, peak.name, *line.split()]
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=err)
        while True:
            done, status, used = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if time.monotonic() - start > limit:
                process.kill()
                _, status, used = os.wait4(process.pid, 0)
                break
            time.sleep(0.02)
        wall = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0)
        said = err.read().decode(errors="replace")
        memory = int(peak.read() or used.ru_maxrss) << 10
    code = None if wall > limit else process.returncode
    return Ran(code, used.ru_utime + used.ru_stime, wall, memory, said)


def main(names: list[str]) -> None:
    """Run them all, and print a table."""
    with tempfile.TemporaryDirectory() as start:
        good = Path(start) / "good"
        good.mkdir()
        good_files(good)
        found = run(TRAIN, good)
        assert found.code == 0, found.said
        for case in HOSTILE:
            if names and not any(name in case.name for name in names):
                continue
            folder = Path(start) / "case"
            for line in case.lines:
                shutil.copytree(good, folder)
                try:
                    case.make(folder)
                    ran = run(line, folder)
                finally:
                    shutil.rmtree(folder)
                trace = "TRACE " if "Traceback" in ran.said else ""
                last = (ran.said.strip().splitlines() or [""])[-1]
                print(
                    f"{case.name}\t{line}\t{ran.code}\t{ran.seconds:.1f}\t{ran.wall:.1f}\t{ran.memory >> 20}\t{trace}{last[:300]}",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:])
