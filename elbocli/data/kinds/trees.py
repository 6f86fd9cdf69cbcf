"""List the files of folders, zips and tars without extracting them."""

import os
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from elbocli.data.registry import ImageRef, Span, ZipEntry
from elbocli.errors import DataError
from elbocli.files.reading import open_file, reading

FOLDER = Span("")  # stands for a folder in a listing, where the folder's path ends in '/'; never read


def hidden(name: str) -> bool:
    """Tell whether any part of a path is hidden or a system file."""
    return any(part.startswith(".") or part in ("__MACOSX", "Thumbs.db", "desktop.ini") for part in name.split("/"))


def clean(name: str) -> str:
    """Return a path without '.', '..' and repeated slashes; '' for a hidden path."""
    path = "/".join(part for part in name.replace("\\", "/").split("/") if part not in ("", ".", ".."))
    return "" if hidden(path) else path


def list_folder(root: Path) -> Iterator[tuple[str, ImageRef]]:
    """List files as (path below `root`, reference); NAME.tar is listed like a folder NAME.

    Raises DataError if a folder can't be listed.
    """

    def stop(error: OSError) -> None:
        raise DataError(f"{error.filename}: could not list the folder: {error.strerror}; check its permissions") from error

    for folder, folders, files in os.walk(root, onerror=stop, followlinks=True):
        prefix = f"{folder}/"[len(str(root)) + 1 :]
        folders[:] = [name for name in folders if not hidden(name) and not _leads_up(Path(folder, name))]
        yield from ((f"{prefix}{name}/", FOLDER) for name in folders)
        for name in files:
            if hidden(name):
                continue
            path = f"{folder}/{name}"
            if name.endswith(".tar"):
                yield from list_tar(Path(path), f"{prefix}{name.removesuffix('.tar')}/")
            else:
                yield prefix + name, Span(path)


def _leads_up(path: Path) -> bool:
    return path.is_symlink() and path.parent.resolve().is_relative_to(path.resolve())


def list_zip(path: Path) -> Iterator[tuple[str, ImageRef]]:
    """List files as (path, reference). Raises zipfile's errors for a damaged zip."""
    archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        name = clean(info.filename)
        if name:
            yield (f"{name}/", FOLDER) if info.is_dir() else (name, ZipEntry(archive, info))


def list_tar(path: Path, prefix: str = "") -> Iterator[tuple[str, ImageRef]]:
    """List files as (`prefix` + path, reference); inner tars are listed like folders. Raises DataError for a damaged tar."""
    with reading(f"{path}: damaged or cut short", "; get it again", DataError), open_file(path) as file:
        yield from _members(file, str(path), 0, prefix)


def _members(file: IO[bytes], path: str, offset: int, prefix: str) -> Iterator[tuple[str, ImageRef]]:
    """List the tar `file`, which is at byte `offset` of the file `path`. Raises tarfile's errors."""
    if prefix:
        yield prefix, FOLDER
    spans: dict[str, Span] = {}
    with tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
        while (info := tar.next()) is not None:
            if info.size < 0:  # otherwise tarfile would read this header again, for ever
                raise tarfile.ReadError(f"negative file size: {info.size} bytes")
            tar.members.clear()  # type: ignore[attr-defined]
            name = clean(info.name)
            span = Span(path, offset + info.offset_data, info.size)
            if not name:
                continue
            if info.isdir():
                yield f"{prefix}{name}/", FOLDER
            elif info.islnk():
                yield prefix + name, spans.get(clean(info.linkname), span)
            elif name.endswith(".tar") and (inside := tar.extractfile(info)):
                yield from _members(inside, path, span.offset, f"{prefix}{name.removesuffix('.tar')}/")
            else:
                spans[name] = span
                yield prefix + name, span
        file.seek(tar.offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError(f"no end-of-archive mark at byte {tar.offset}")


LISTERS: dict[str, Callable[[Path], Iterator[tuple[str, ImageRef]]]] = {
    "a folder of images": list_folder,
    "images in class folders": list_folder,
    "a folder that is none of elbo's": list_folder,
    "a zip archive": list_zip,
    "a tar archive": list_tar,
}
"""Kind of folder or archive → function that lists its files."""
