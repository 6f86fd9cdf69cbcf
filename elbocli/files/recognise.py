"""Recognise what lies at a path, so that a message on a mistaken file says what it is and which command takes it.

Nothing here decides how a file is read: whoever reads it checks it for himself.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from pathlib import Path

from elbocli.errors import FormatError
from elbocli.files.file_system import SPECIAL
from elbocli.files.opening import open_file
from elbocli.files.records import read_json

HDF5_MAGIC = b"\x89HDF\r\n\x1a\n"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MISSING, EMPTY = "no such file or folder", "an empty file"
AUTOENCODER = "an autoencoder of diffusers"
USES = {
    "a dataset": "'elbo train {} -o RUN' trains a run on it, and 'elbo bound RUN {}' measures one",
    "a run": "'elbo sample {}' draws images from it, and 'elbo adapt {}' fits a schedule to its loss log",
    "a checkpoint of a run": "'elbo sample {}' draws images from it",
    "a loss log": "'elbo adapt {}' fits a schedule to it",
    "a schedule": "'elbo train DATA.h5 --schedule {}' draws noise levels by it",
    "an optimum": "'elbo adapt --data-only {}' fits a schedule to it",
    "a config of a run": "'elbo train DATA.h5 --config {}' takes its settings",
    "samples": "'elbo eval {} --ref DATA.h5' scores them",
    "an average of weights": "'elbo sample RUN --ema {}' draws images by it",
    "features": "'elbo eval {} --ref DATA.h5' scores them",
    "statistics": "'elbo eval SAMPLES --ref {}' scores samples against them",
    "a program of torch.export": "'elbo eval SAMPLES --ref DATA.h5 --extractor {}' sees images by it",
    AUTOENCODER: "'elbo prep SRC OUT.h5 --latents {}' encodes images by it",
    "a scheduler of diffusers": "'elbo weights check {}' says which weighting it is, and 'elbo train DATA.h5 --schedule {}' draws noise levels by it",
    "a pipeline of diffusers": "only its parts are read: its vae/ by 'elbo prep --latents', its scheduler_config.json by "
    "'elbo weights check'",
    "a model of diffusers": "its own pipeline draws from it; 'elbo train DATA.h5 -o RUN' trains a network of elbo's",
    "images": "'elbo prep {} OUT.h5' packs them",
    "images in class folders": "'elbo prep {} OUT.h5' packs them",
    "images in an archive": "'elbo prep {} OUT.h5' packs them",
}
"""Kinds of files that are recognised → the commands that take them, with the path in place of {}."""
BEGINNINGS = {
    b"<!doctype html": "a page",
    b"<?xml": "a figure",
    b"%PDF": "a figure",
    b"index\t": "a table",
    b"logsnr_low\t": "a table",
    b"# Score card": "a score card",
    b"# A preset": "a preset",
    b'{"step"': "numbers by step",
}
"""Beginnings of other files that elbo writes."""
MAKERS = {
    "run": "'elbo train DATA.h5 -o RUN' makes one",
    "dataset": "'elbo prep SRC OUT.h5' makes one",
    "loss log": "'elbo train' writes one into its run",
    "schedule": "'elbo adapt RUN -o FILE' makes one",
    "optimum": "'elbo optimum DATA.h5 -o FILE' makes one",
    "images": "'elbo sample RUN -o FILE' draws some, and 'elbo prep SRC OUT.h5' packs them",
    "file of elbo's": "'elbo info' knows datasets, runs, checkpoints, snapshots, averages, loss logs, schedules, statistics, "
    "features and samples",
}
"""Kinds of files that a command may want → the commands that make them."""


def recognise(path: Path) -> str:
    """Return a word of USES for what is at the path, or in other words what little can be said. Reads 4 kB at most."""
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            return _folder(path)
        if not stat.S_ISREG(found.st_mode):
            return SPECIAL.get(stat.S_IFMT(found.st_mode), "no file")
        with open_file(path) as file:
            head = file.read(4096)
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"out of reach ({error.strerror})"
    return _file(path, head) if head else EMPTY


def _folder(path: Path) -> str:
    with contextlib.suppress(OSError):
        names = {entry.name for entry in os.scandir(path)}
        inner = {
            entry.name for name in sorted(names)[:3] if (path / name).is_dir() for entry in os.scandir(path / name)
        }
        for name, what in (("config.yaml", "a run"), ("meta.json", "a checkpoint of a run")):
            if name in names:
                return what
        if "model_index.json" in names:
            return "a pipeline of diffusers"
        if "config.json" in names:
            return _of_class(path / "config.json") or "a folder that is none of elbo's"
        if "scheduler_config.json" in names:
            return "a scheduler of diffusers"
        for held, what in ((names, "images"), (inner, "images in class folders")):
            if any(name.lower().endswith(PICTURES) for name in held):
                return what
        return "a folder that is none of elbo's" if names else "an empty folder"
    return "a folder out of reach"


def _of_class(config: Path) -> str:
    """Return what a config of diffusers is of, by its class; '' where it says none."""
    with contextlib.suppress(FormatError, AttributeError):
        name = str(read_json(config).get("_class_name") or "")
        if name:
            return AUTOENCODER if name == "AutoencoderKL" else "a model of diffusers"
    return ""


def _file(path: Path, head: bytes) -> str:
    name = path.name.lower()
    if head.startswith(HDF5_MAGIC):
        return "a dataset"
    if head.startswith(b"\x93NUMPY"):
        return "samples"
    if head.startswith(b"PK"):
        if name.endswith((".pt2", ".npz")):
            return "a program of torch.export" if name.endswith(".pt2") else _npz(path)
        return "images in an archive"
    if head[257:262] == b"ustar" or name.endswith((".tar", ".tar.gz", ".tgz")):
        return "images in an archive"
    if name.endswith(PICTURES):
        return "images"
    for beginning, what in BEGINNINGS.items():
        if head.startswith(beginning):
            return what
    if b"_class_name" in head and head.lstrip().startswith(b"{"):
        return "a scheduler of diffusers" if b"beta" in head or b"Scheduler" in head else "a model of diffusers"
    for mark, what in (
        (b"elbo-ema", "an average of weights"),
        (b"elbo-features", "features"),
        (b"elbo-losslog", "a loss log"),
        (b"elbo-schedule", "a schedule"),
        (b"elbo-optimum", "an optimum"),
        (b"format: elbo-run", "a config of a run"),
    ):
        if mark in head:
            return what
    return "a file that is none of elbo's"


def _npz(path: Path) -> str:
    from elbocli.files.statistics import is_statistics

    return "statistics" if is_statistics(path) else "samples"


def begins_like_tensors(path: Path) -> bool:
    """Whether a file begins as one of safetensors: the length of a header that it can hold, and a brace. Raises OSError."""
    with open_file(path) as file:
        head, size = file.read(9), os.fstat(file.fileno()).st_size
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= size - 8


def instead(path: Path, wanted: str) -> str:
    """Return a message on a path where a `wanted` of MAKERS was expected: what it is, and what to do with that."""
    found = recognise(path)
    remedy = USES[found].replace("{}", shlex.quote(str(path))) if found in USES else MAKERS[wanted]
    if found == MISSING:
        return f"{path}: no such {wanted}; {remedy}"
    return f"{path}: {found}, not {_article(wanted)}{wanted}; {remedy}"


def _article(noun: str) -> str:
    return "" if noun == "images" else "an " if noun[0] in "aeiou" else "a "


def refuse_other(path: Path, wanted: str) -> None:
    """Raise FormatError where a path is recognised as something else; what isn't recognised its reader must judge."""
    found = recognise(path)
    if found in USES and found != _article(wanted) + wanted:
        raise FormatError(instead(path, wanted))
