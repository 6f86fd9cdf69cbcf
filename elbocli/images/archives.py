"""Lists of a folder, a tar (of tars) or a zip: every file's name and where it lies, without reading the files.

Names are paths with '/', cleaned of '.', '..' and leading slashes. Hidden files are left out. A tar inside a folder
or a tar is opened where it lies, like a folder with its name without '.tar'. Folders have entries of their own, whose
names end in '/', so that empty ones are known.
"""

from __future__ import annotations

import contextlib
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from elbocli.errors import DataError
from elbocli.files.opening import check_file, open_file
from elbocli.files.reading import one_line
from elbocli.images.image_refs import ImageRef, Nowhere, Span, ZipEntry
from elbocli.images.tar_headers import BLOCK, BROKEN, TarHeaders, begins_like_tar

if TYPE_CHECKING:
    from tarfile import TarInfo

Entry = tuple[str, ImageRef]
Complain = Callable[[str], None]
FOLDER = Nowhere("a folder")
DEEPEST = 3


def clean(name: str) -> str:
    """Clean a path of an archive of everything that leads elsewhere."""
    return "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))


def printable(name: str) -> str:
    """A name for people, with escapes for characters that would move their cursor or are no text."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in name)


def hidden(name: str) -> bool:
    """Whether any part of a path is hidden (begins with a dot), or is macOS's or Windows' own."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))


def list_folder(root: Path, complain: Complain) -> Iterator[Entry]:
    """List every file at any depth. A folder that contains itself through a link is entered once.

    Raises DataError when a folder can't be listed.
    """
    waiting: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            with os.scandir(folder) as entries:
                found = [(entry.name, entry.path, _is_folder(entry)) for entry in entries if not hidden(entry.name)]
        except OSError as error:
            raise DataError(f"{error.filename or folder}: could not list: {error.strerror}") from error
        for name, path, is_dir in found:
            if is_dir:
                yield f"{prefix}{name}/", FOLDER
                waiting.append((Path(path), f"{prefix}{name}/", above | {here}))
            elif name.endswith(".tar") and Path(path).is_file():
                inside = f"{prefix}{name.removesuffix('.tar')}/"
                yield inside, FOLDER
                yield from list_tar(path, complain, prefix=inside)
            else:
                yield prefix + name, Span(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link in a circle
        return entry.is_dir()
    return False


def list_tar(
    path: str, complain: Complain, offset: int = 0, size: int = -1, prefix: str = "", depth: int = 0
) -> Iterator[Entry]:
    """List the files of a tar, from its headers alone. complain: told when it can't be read, is damaged or ends early."""
    shown = printable(f"{path}: {prefix.removesuffix('/')}" if prefix and depth else path)
    try:
        file = open_file(path)
    except OSError as error:
        complain(f"{shown}: can't be read: {error.strerror}; make it readable")
        return
    with file:
        handle = file.fileno()
        whole = os.fstat(handle).st_size - offset if size < 0 else size
        tar = TarHeaders(lambda at, count: os.pread(handle, count, offset + at), whole)
        try:
            yield from _members(tar, path, offset, complain, prefix, depth)
            if trouble := tar.trouble():
                complain(f"{shown}: the archive {trouble}; get it again")
        except BROKEN as error:
            complain(f"{shown}: the archive is damaged or ends early ({error}); get it again")


def _members(tar: TarHeaders, path: str, offset: int, complain: Complain, prefix: str, depth: int) -> Iterator[Entry]:
    links: list[tuple[str, str]] = []

    def span(info: TarInfo) -> Span:
        return Span(path, offset + info.offset_data, info.size)

    for info in tar.members():
        name = clean(info.name)
        if not name or hidden(name):
            continue
        if info.isdir():
            yield f"{prefix}{name}/", FOLDER
        elif info.islnk():
            links.append((name, clean(info.linkname)))
        elif not info.isreg() or info.issparse():
            what = "a link" if info.issym() else "a sparse file" if info.issparse() else "not a regular file"
            yield prefix + name, Nowhere(f"{what}, in an archive")
        elif name.endswith(".tar") and depth < DEEPEST:
            inside, below = span(info), f"{prefix}{name.removesuffix('.tar')}/"
            yield below, FOLDER
            yield from list_tar(path, complain, inside.offset, inside.size, below, depth + 1)
        else:
            yield prefix + name, span(info)
    if links:
        # Second names of files that came before: rare, so all names are looked through again rather than kept.
        wanted = {target for _, target in links}
        files = ((clean(info.name), info) for info in tar.members() if info.isreg())
        found = {name: span(info) for name, info in files if name in wanted}
        for name, target in links:
            nowhere = Nowhere(f"a link to {printable(target)}, which is not in the archive")
            yield prefix + name, found.get(target, nowhere)


def list_zip(path: Path) -> Iterator[Entry]:
    """List the files of a zip. Raises DataError when it is damaged."""
    try:
        check_file(path)
        archive = zipfile.ZipFile(path)
    except Exception as error:  # zipfile raises of everything for damaged files
        raise DataError(f"{path}: a zip archive, but damaged or cut short ({one_line(error)}); get it again") from error
    for info in archive.infolist():
        name = clean(info.filename)
        if not name or hidden(name):
            continue
        if info.is_dir():
            yield f"{name}/", FOLDER
        elif stat.S_ISLNK(info.external_attr >> 16):
            yield name, Nowhere("a link, in an archive")
        else:
            yield name, ZipEntry(archive, info)


def is_tar(path: Path) -> bool:
    """Whether a file begins like an uncompressed tar."""
    with contextlib.suppress(OSError), open_file(path) as file:
        return begins_like_tar(file.read(BLOCK))
    return False
