"""Tars, and tars in them: files are read where they lie, from the headers alone."""

from __future__ import annotations

import contextlib
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from elbocli.files.reading import open_file
from elbocli.images.image_refs import Nowhere, Span
from elbocli.images.registry import Complain, Row, clean, hidden, printable, source

FOLDER = Nowhere("a folder")
BROKEN = (tarfile.TarError, ValueError, OverflowError, IndexError, KeyError, EOFError, MemoryError, RecursionError)
"""Errors of tarfile for damaged archives."""


def begins_like_tar(path: Path, head: bytes) -> bool:
    """Whether a file's first block is one of a tar."""
    with contextlib.suppress(tarfile.TarError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return True
    return False


@source("tar", test=begins_like_tar, tree=True)
def list_tar(path: Path, complain: Complain, prefix: str = "") -> Iterator[Row]:
    """List the files of a tar. A tar inside is a folder. complain: told when it can't be read, is damaged or ends early."""
    try:
        with open_file(path) as file:
            yield from _members(file, str(path), 0, prefix, str(path), complain)
    except OSError as error:
        complain(f"{printable(str(path))}: can't be read: {error.strerror}; make it readable")


def _members(file: IO[bytes], path: str, offset: int, prefix: str, shown: str, complain: Complain) -> Iterator[Row]:
    """List the members of a tar that lies at an offset of `path`. file: the tar. shown: its name in messages."""
    spans: dict[str, Span] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            while (info := tar.next()) is not None:
                if info.size < 0:  # the next header would be this one again
                    raise tarfile.ReadError(f"a file of {info.size} bytes")
                tar.members.clear()  # type: ignore[attr-defined]
                name = clean(info.name)
                if not name or hidden(name):
                    continue
                span = Span(path, offset + info.offset_data, info.size)
                if info.isdir():
                    yield f"{prefix}{name}/", None, FOLDER
                elif info.islnk():
                    target = clean(info.linkname)
                    nowhere = Nowhere(f"a link to {printable(target)}, which is not in the archive")
                    yield prefix + name, None, spans.get(target, nowhere)
                elif not info.isreg() or info.issparse():
                    what = "a link" if info.issym() else "a sparse file" if info.issparse() else "not a regular file"
                    yield prefix + name, None, Nowhere(f"{what}, in an archive")
                elif name.endswith(".tar") and (inside := tar.extractfile(info)):
                    folder = f"{prefix}{name.removesuffix('.tar')}"
                    yield f"{folder}/", None, FOLDER
                    yield from _members(inside, path, span.offset, f"{folder}/", f"{path}: {folder}", complain)
                else:
                    spans[name] = span
                    yield prefix + name, None, span
            file.seek(tar.offset)
            mark, size = file.read(tarfile.BLOCKSIZE), file.seek(0, os.SEEK_END)
    except BROKEN as error:
        complain(f"{printable(shown)}: the archive is damaged or ends early ({error}); get it again")
        return
    if mark and mark != bytes(tarfile.BLOCKSIZE):
        complain(f"{printable(shown)}: the archive is damaged at byte {tar.offset} of {size}; get it again")
    elif not mark:
        complain(f"{printable(shown)}: the archive has no end mark and may be cut short; get it again")
