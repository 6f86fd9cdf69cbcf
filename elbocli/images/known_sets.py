"""Data sets in the files that they are published as: IDX (MNIST), batches (CIFAR), parquet (Hugging Face's `datasets`).

Names say which files may be such; the files' first bytes and lengths decide. Of a folder that holds several parts the
training images are taken, and the others are named.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from elbocli.errors import DataError, ElboError
from elbocli.files.reading import naming, refusing
from elbocli.images import cifar, idx, parquet
from elbocli.images.archives import Entry, clean
from elbocli.images.arrays import ArrayImages
from elbocli.images.image_refs import Content, ImageRef, Span
from elbocli.images.packed import GZIP, LARGEST_UNPACKED, first_bytes, first_bytes_inside, gunzipped
from elbocli.images.tar_headers import BROKEN, headers_of

MOST_FILES = 4096
"""A folder with more files is no such set."""
BEGINNING = 16 << 10
"""Bytes of a tar that hold the name of its first file."""
BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?")
CIFAR_FILES = re.compile(
    BATCH.pattern + r"|batches\.meta(\.txt)?|meta|readme\.html|(fine|coarse)_label_names\.txt|file\.txt~"
)
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("test", "t10k", "testing"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
}
"""Words of a file's name → the part of the dataset that it holds."""


@dataclass(frozen=True)
class KnownSet:
    """Images of such a set. where: the file, or the folder, that they come from."""

    where: str
    images: ArrayImages


@dataclass(frozen=True)
class _File:
    """A file of such a set. kind: idx, cifar or parquet."""

    name: str
    ref: ImageRef
    kind: str

    @property
    def is_whole(self) -> bool:
        """Whether it lies on disk as it is, and not in an archive."""
        return isinstance(self.ref, Span) and self.ref.size < 0

    @property
    def split(self) -> str:
        """The part of the set, by the words of its name; '' where it says nothing."""
        words = re.split(r"[^a-z0-9]+", self.name.lower().replace("data_batch", "train"))
        return next((SPLITS[word] for word in words if word in SPLITS), "")


def _kind(ref: ImageRef, name: str) -> str:
    """The kind of a file that may be one of a set; '' when it is none, or can't be read."""
    with contextlib.suppress(ElboError):
        head = first_bytes(ref)
        inside = first_bytes_inside(ref) if head.startswith(GZIP) else head
        if idx.dimensions(inside) == 3:
            return "idx"
        if head.startswith(parquet.MAGIC):
            return "parquet"
        batch = BATCH.fullmatch(name.rpartition("/")[2])
        if batch and (head.startswith(cifar.PICKLED) or cifar.is_binary(ref)):
            return "cifar"
    return ""


def in_folder(entries: Sequence[Entry], prefix: str) -> KnownSet | None:
    """Find such a set among the files of a folder or an archive; None when there is none.

    prefix: what stands before the names of files in messages. Raises DataError when it holds several sets, and for
    damaged files.
    """
    if len(entries) > MOST_FILES:
        return None
    twice = {f"{name}.gz" for name, _ in entries}
    kinds = {name: _kind(ref, name) for name, ref in entries if name not in twice}
    files = sorted((_File(name, ref, kinds[name]) for name, ref in entries if kinds.get(name)), key=_order)
    if not files:
        return None
    training = [file for file in files if file.split == "train"]
    taken = training or files
    sets = {(file.kind, file.split, file.name.rpartition("/")[0]) for file in taken}
    if len(sets) > 1 or (taken[0].kind == "idx" and len(taken) > 1):
        names = ", ".join(prefix + file.name for file in taken[:4])
        how = "name the files of one" if taken[0].is_whole else "unpack the archive and name the files of one"
        raise DataError(f"{prefix.rstrip(': /')}: holds several sets of images ({names}); {how}")
    found = _opened(taken, entries, prefix)
    found.images.notes.extend(_said(taken, [file for file in files if file not in taken], prefix))
    return found


def _order(file: _File) -> tuple[str, int, str]:
    """A key that sorts data_batch_10 behind data_batch_9."""
    number = re.search(r"_(\d{1,9})(\.bin)?$", file.name)
    return (file.name[: number.start()] if number else file.name, int(number[1]) if number else 0, file.name)


def _said(taken: Sequence[_File], others: Sequence[_File], prefix: str) -> list[str]:
    """Say what was taken, where not everything was."""
    if not others:
        return []
    more = f" and {len(taken) - 1} more" if len(taken) > 1 else ""
    left = f"{prefix}{others[0].name}{f' and {len(others) - 1} more' if len(others) > 1 else ''}"
    how = f"elbo prep {prefix}{others[0].name} OTHER.h5" if others[0].is_whole else "unpack the archive and name them"
    return [f"the training images are taken: {prefix}{taken[0].name}{more}; left out: {left}; to pack these: {how}"]


def _opened(taken: Sequence[_File], entries: Sequence[Entry], prefix: str) -> KnownSet:
    """Open files of one kind in one folder."""
    first = taken[0]
    folder = first.name[: len(first.name) - len(first.name.rpartition("/")[2])]
    beside = {name.removeprefix(folder): ref for name, ref in entries if name.startswith(folder)}
    base = first.name.removeprefix(folder)
    if first.kind == "idx":
        return KnownSet(prefix + first.name, idx.open_idx(base, first.ref, beside, prefix + first.name))
    if first.kind == "cifar":
        batches = [(file.name.removeprefix(folder), file.ref) for file in taken]
        return KnownSet(prefix + folder, cifar.open_batches(batches, beside, prefix + folder))
    spans = [file.ref for file in taken if isinstance(file.ref, Span)]
    if not first.is_whole:
        raise DataError(f"{prefix}{first.name}: a parquet file in an archive can't be read; unpack the archive first")
    return KnownSet(prefix + folder, parquet.open_parquet([span.path for span in spans]))


def in_file(root: Path) -> KnownSet | None:
    """Open a file of such a set, or CIFAR's .tar.gz; None when it is none.

    Labels and names of classes are looked for in its folder. Raises DataError and FormatError for damaged files.
    """
    ref = Span(str(root))
    head = first_bytes(ref)
    inside = first_bytes_inside(ref) if head.startswith(GZIP) else head
    companions = [root.with_name(name) for name in (*idx.labels_names(root.name), *cifar.NAMES.values())]
    beside = {path.name: Span(str(path)) for path in companions if path.is_file()}
    where = str(root)
    if idx.dimensions(inside):
        return KnownSet(where, idx.open_idx(root.name, ref, beside, where))
    if head.startswith(parquet.MAGIC):
        return KnownSet(where, parquet.open_parquet([where]))
    if head.startswith(cifar.PICKLED) or cifar.is_binary(ref):
        folder = where.removesuffix(root.name)
        return KnownSet(where, cifar.open_batches([(root.name, ref)], beside, folder))
    if head.startswith(GZIP) and CIFAR_FILES.fullmatch(_first_in_tar(first_bytes_inside(ref, BEGINNING))):
        return in_folder(_unpacked(ref, where), f"{where}: ")
    return None


def _first_in_tar(beginning: bytes) -> str:
    """The name, without folders, of the first file in a tar that begins so; '' where it begins like none."""
    with contextlib.suppress(*BROKEN):
        for info in headers_of(beginning).members():
            if info.isreg():
                return info.name.rpartition("/")[2]
    return ""


def _unpacked(ref: ImageRef, where: str) -> list[Entry]:
    """Unpack a .tar.gz in memory. Raises DataError when it is damaged or too large."""
    with naming(where):
        content = gunzipped(ref, LARGEST_UNPACKED)
        if len(content) > LARGEST_UNPACKED:
            raise DataError(
                f"unpacks to more than {LARGEST_UNPACKED >> 20} MiB; unpack it with 'tar xzf', and name the folder"
            )
        with refusing("damaged", "; get it again", DataError, BROKEN):
            found = islice(headers_of(content).members(), MOST_FILES)
            members = [info for info in found if info.isreg() and not info.issparse()]
            spans = ((clean(info.name), info.offset_data, info.size) for info in members)
            return [(name, Content(content[start : start + size])) for name, start, size in spans]
