"""Zip archives."""

from __future__ import annotations

import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from elbocli.errors import DataError
from elbocli.files.reading import reading
from elbocli.images.image_refs import Nowhere, ZipEntry
from elbocli.images.kinds.tar import FOLDER
from elbocli.images.registry import Complain, Row, clean, hidden, source


@source("zip", magic=b"PK", tree=True)
def list_zip(path: Path, complain: Complain) -> Iterator[Row]:
    """List the files of a zip. Raises DataError when it is damaged."""
    with reading(f"{path}: a zip archive, but damaged or cut short", "; get it again", DataError):
        archive = zipfile.ZipFile(path)
    for info in archive.infolist():
        name = clean(info.filename)
        if not name or hidden(name):
            continue
        if info.is_dir():
            yield f"{name}/", None, FOLDER
        elif stat.S_ISLNK(info.external_attr >> 16):
            yield name, None, Nowhere("a link, in an archive")
        else:
            yield name, None, ZipEntry(archive, info)
