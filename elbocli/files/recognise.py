"""Recognise kinds of files."""

import re
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from elbocli.errors import FormatError
from elbocli.files.atomic import PIPE, special
from elbocli.files.reading import open_file

PICTURES = "*.png *.jpg *.jpeg *.webp *.bmp *.gif *.tif *.tiff *.PNG *.JPG *.JPEG"
MISSING, EMPTY, UNKNOWN = "no file or folder", "an empty file", "a file that is none of elbo's"
FOLDER = "a folder of PNGs"
HERE = "/"  # begins Kind.names of folders


class Kind(NamedTuple):
    """A kind of file or folder.

    names: glob patterns of a file's name, with spaces between; for a folder: "/", then patterns of names inside.
    content: regular expression to find in the first 4 kB of such a file; b"": any.
    """

    name: str
    names: str
    content: bytes


# a path has the first kind that matches
KINDS = [
    Kind("a run", "/config.yaml", b""),
    Kind("a snapshot", "/meta.json", b"elbo-snapshot"),
    Kind("a checkpoint of a run", "/meta.json", b""),
    Kind("a pipeline of diffusers", "/model_index.json", b""),
    Kind("an autoencoder of diffusers", "/config.json", b"AutoencoderKL"),
    Kind("a model of diffusers", "/config.json", b"_class_name"),
    Kind("a scheduler of diffusers", "/scheduler_config.json", b""),
    Kind("images", f"/{PICTURES}", b""),
    Kind("images in class folders", "/*/" + PICTURES.replace(" ", " */"), b""),
    Kind("a folder that is none of elbo's", "/*", b""),
    Kind("a dataset", "*", rb"\A\x89HDF\r\n\x1a\n"),
    Kind("samples", "*", rb"\A\x93NUMPY"),
    Kind("a program of torch.export", "*.pt2", rb"\APK"),
    Kind("statistics", "*.npz", rb"\APK.{28}(mu|sigma)\.npy"),
    Kind("samples", "*.npz", rb"\APK"),
    Kind("images in an archive", "*", rb"\APK|\A.{257}ustar"),
    Kind("images in an archive", "*.tar *.tar.gz *.tgz", b""),
    Kind("images", PICTURES, b""),
    Kind("a page", "*", rb"\A<!doctype html"),
    Kind("a figure", "*", rb"\A<\?xml|\A%PDF"),
    Kind("a table", "*", rb"\Aindex\t|\Alogsnr_low\t"),
    Kind("a model card", "*", rb"\A---\nlibrary_name: elbo\n"),
    Kind("a score card", "*", rb"\A# Score card"),
    Kind("numbers by step", "*", rb'\A{"step"'),
    Kind("an average of weights", "*", b"elbo-ema"),
    Kind("features", "*", b"elbo-features"),
    Kind("a loss log", "*", b"elbo-losslog"),
    Kind("a schedule", "*", b"elbo-schedule"),
    Kind("an optimum", "*", b"elbo-optimum"),
    Kind("a config of a run", "*", b"format: elbo-run"),
    Kind("a scheduler of diffusers", "*", rb"_class_name\W+\w*Scheduler"),
    Kind("a model of diffusers", "*", b"_class_name"),
    Kind("a pickle, which could run code", "*", rb"\A\x80[\x02-\x05][^\0]"),
    Kind(UNKNOWN, "*", b""),
]
# expected kind of file → how to make such files, for messages
MAKERS = {
    "a run": "'elbo train DATA.h5 -o RUN' makes one",
    "a dataset": "'elbo prep SRC OUT.h5' makes one",
    "a loss log": "'elbo train' writes one into its run",
    "a schedule": "'elbo adapt RUN -o FILE' makes one",
    "an optimum": "'elbo optimum DATA.h5 -o FILE' makes one",
    "images": "'elbo sample RUN -o FILE' draws some, and 'elbo prep SRC OUT.h5' packs them",
    "a file made by elbo": "'elbo info' knows datasets, runs, checkpoints, snapshots, averages, loss logs, schedules, statistics, "
    "features and samples",
}


def recognise(path: Path) -> str:
    """Return a file's kind: name of a Kind, MISSING, EMPTY, PIPE, "an empty folder", or "out of reach (reason)"."""
    try:
        if not path.exists():
            return MISSING
        if special(path):
            return PIPE
        if path.is_dir() and not any(path.iterdir()):
            return "an empty folder"
        if path.is_file() and not path.stat().st_size:
            return EMPTY
        return next(kind.name for kind in KINDS if _fits(path, kind))
    except OSError as error:
        return f"out of reach ({error.strerror})"


def _fits(path: Path, kind: Kind) -> bool:
    folder, names = kind.names.startswith(HERE), kind.names.removeprefix(HERE).split()
    if path.is_dir() != folder:
        return False
    if folder:
        files = [file for name in names for file in path.glob(name)]
    else:
        files = [path for name in names if fnmatch(path.name.lower(), name)]
    return any(not kind.content or re.search(kind.content, _head(file), re.DOTALL) for file in files)


def _head(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(4096)


def wrong_kind(path: Path, wanted: str) -> str:
    """Return the error message, with a remedy, for a missing file or a wrong kind. wanted: a key of MAKERS."""
    return f"{path}: expected {wanted}, found {recognise(path)}; {MAKERS[wanted]}"


def expect(path: Path, wanted: str) -> None:
    """Raise FormatError if a file is missing, or of another known kind. wanted: a key of MAKERS."""
    if recognise(path) not in (wanted, UNKNOWN, PIPE):
        raise FormatError(wrong_kind(path, wanted))


def png_names(count: int) -> list[str]:
    """Return the file names of `count` images in a folder of PNGs."""
    digits = len(str(max(count - 1, 999999)))
    return [f"{index:0{digits}d}.png" for index in range(count)]
