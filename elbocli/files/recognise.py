"""Recognise kinds of files."""

import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from elbocli.errors import FormatError
from elbocli.files.atomic import PIPE, special
from elbocli.files.reading import open_file

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
MISSING = "no file or folder"
EMPTY = "an empty file"
UNKNOWN = "a file that is none of elbo's"
FOLDER = "a folder of PNGs"
HERE = "/"  # begins Kind.names of folders
HEAD = 1 << 14  # bytes of a file that are looked at


def arrays_in(path: Path) -> set[str]:
    """Return the names of the arrays in an npz; none for another file."""
    with suppress(Exception), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist()}
    return set()


def _is_tar(path: Path, head: bytes) -> bool:
    with suppress(tarfile.TarError):
        return bool(tarfile.TarInfo.frombuf(head[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape"))
    return False


def _is_idx(path: Path, head: bytes) -> bool:
    # IDX begins with two zero bytes, a type (8 for uint8) and the number of dimensions; it may be gzipped.
    with suppress(zlib.error):
        head = zlib.decompressobj(31).decompress(head)
    return head.startswith(b"\0\0\x08\3")


def _has_pictures(path: Path, head: bytes = b"") -> bool:
    # Ends at the first picture: a folder may have millions.
    if not path.is_dir():
        return False
    with os.scandir(path) as entries:
        return any(entry.name.lower().endswith(PICTURES) for entry in entries)


def _has_class_folders(path: Path, head: bytes) -> bool:
    return path.is_dir() and any(map(_has_pictures, path.iterdir()))


class Kind(NamedTuple):
    """A kind of file or folder.

    content: regular expression to find in the first HEAD bytes of such a file; b"": any.
    names: glob patterns of a file's name, with spaces between; for a folder: "/", then patterns of names inside.
    test: further condition: function of the path and its first bytes (b"" for a folder).
    """

    name: str
    content: bytes = b""
    names: str = "*"
    test: Callable[[Path, bytes], bool] = lambda path, head: True


# Results (JSON): kind → value of the key `format`.
RESULTS = {
    "a likelihood": "elbo-likelihood",
    "a check of the theorem": "elbo-theorem-check",
    "a bound": "elbo-bound",
    "a comparison": "elbo-comparison",
    "scores": "elbo-scores",
}


# A path has the first kind that matches. `images.registry.source` says how images of a kind are read, and puts the kinds of
# plug-ins before these.
KINDS = [
    Kind("a run", b"format: elbo-run", "/config.yaml"),
    Kind("a snapshot", b"elbo-snapshot", "/meta.json"),
    Kind("a checkpoint of a run", b"elbo-checkpoint", "/meta.json"),
    Kind("a pipeline of diffusers", names="/model_index.json"),
    Kind("an autoencoder of diffusers", b"AutoencoderKL", "/config.json"),
    Kind("a model of diffusers", b"_class_name", "/config.json"),
    Kind("a scheduler of diffusers", names="/scheduler_config.json"),
    Kind("a folder of images", test=_has_pictures),
    Kind("images in class folders", test=_has_class_folders),
    Kind("a folder that is none of elbo's", names="/*"),
    Kind("a dataset", rb"\A\x89HDF\r\n\x1a\n"),
    Kind("samples", rb"\A\x93NUMPY"),
    Kind("a program of torch.export", rb"\APK", "*.pt2"),
    Kind("statistics", rb"\APK", "*.npz", lambda path, head: arrays_in(path) >= {"mu", "sigma"}),
    Kind("samples", rb"\APK", "*.npz"),
    Kind("a zip archive", rb"\APK"),
    Kind("a compressed archive", names="*.tar.gz *.tgz"),
    Kind("a tar archive", names="*.tar"),
    Kind("a tar archive", test=_is_tar),
    Kind("a parquet file", rb"\APAR1"),
    Kind("a CIFAR batch", names="data_batch_*.bin test_batch.bin train.bin test.bin"),
    Kind("an IDX file", test=_is_idx),
    Kind("images", names="*" + " *".join(PICTURES)),
    Kind("a page", rb"\A<!doctype html"),
    Kind("a figure", rb"\A<\?xml|\A%PDF"),
    Kind("a table", rb"\Alogsnr_low\t"),
    Kind("a model card", rb"\A---\nlibrary_name: elbo\n"),
    Kind("a score card", rb"\A# Score card"),
    Kind("numbers by step", rb'\A{"step"'),
    *(Kind(name, rb'\A{\s*"format":\s*"%s"' % format.encode()) for name, format in RESULTS.items()),
    Kind("an average of weights", b"elbo-ema"),
    Kind("features", b"elbo-features"),
    Kind("a loss log", b"elbo-losslog"),
    Kind("a schedule", b"elbo-schedule"),
    Kind("a config of a run", b"format: elbo-run"),
    Kind("a scheduler of diffusers", rb"_class_name\W+\w*Scheduler"),
    Kind("a model of diffusers", b"_class_name"),
    Kind("a pickle, which could run code", rb"\A\x80[\x02-\x05][^\0]"),
    Kind(UNKNOWN),
]
# expected kind of file → how to make such files, for messages
MAKERS = {
    "a run": "'elbo train DATA.h5 -o RUN' makes one",
    "a dataset": "'elbo prep SRC OUT.h5' makes one",
    "a loss log": "'elbo train' writes one into its run",
    "a schedule": "'elbo adapt RUN -o FILE' makes one",
    "a result": "'elbo eval' and 'elbo bound' print them as JSON",
    "images": "'elbo sample RUN -o FILE' draws some, and 'elbo prep SRC OUT.h5' packs them",
    "a file made by elbo": "'elbo info' knows datasets, runs, checkpoints, snapshots, averages, loss logs, schedules, statistics, "
    "features, samples and results",
}


def recognise(path: Path) -> str:
    """Return a path's kind: name of a Kind, MISSING, EMPTY, PIPE, "an empty folder", or "out of reach (reason)"."""
    try:
        if not path.exists():
            return MISSING
        if special(path):
            return PIPE
        if path.is_dir():
            return kind_of(path, b"") if any(path.iterdir()) else "an empty folder"
        return kind_of(path, _head(path)) if path.stat().st_size else EMPTY
    except OSError as error:
        return f"out of reach ({error.strerror})"


def kind_of(path: Path, head: bytes) -> str:
    """Return the name of the first Kind that fits a file, or the member of an archive, with these first HEAD bytes."""
    return next(kind.name for kind in KINDS if _fits(kind, path, head))


def _fits(kind: Kind, path: Path, head: bytes) -> bool:
    names = kind.names.removeprefix(HERE).split()
    if kind.names.startswith(HERE):
        return any(re.search(kind.content, _head(file) if kind.content else b"") for name in names for file in path.glob(name))
    named = any(fnmatch(path.name.lower(), name) for name in names)
    return bool(named and re.search(kind.content, head, re.DOTALL) and kind.test(path, head))


def _head(path: Path) -> bytes:
    with open_file(path) as file:
        return file.read(HEAD)


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
