"""Folders, at any depth; a tar in one is opened like a folder with its name without '.tar'."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

from elbocli.errors import DataError
from elbocli.files.recognise import recognise
from elbocli.images.image_refs import Span
from elbocli.images.kinds.tar import FOLDER, list_tar
from elbocli.images.registry import Complain, Row, hidden, source


@source("folder", test=lambda path, head: path.is_dir(), tree=True)
def list_folder(root: Path, complain: Complain) -> Iterator[Row]:
    """List every file. A folder that contains itself through a link is entered once.

    Raises DataError when a folder can't be listed, and for the folder of a run.
    """
    if recognise(root / "config.yaml") == "a config of a run":
        draw = f"elbo sample {shlex.quote(str(root))} -n 1000 -o samples.h5"
        raise DataError(
            f"{root}: is a run, and the pictures in it are its previews; draw images from it with '{draw}', which is a "
            "dataset already"
        )
    waiting: list[tuple[Path, str, frozenset[tuple[int, int]]]] = [(root, "", frozenset())]
    while waiting:
        folder, prefix, above = waiting.pop()
        try:
            status = folder.stat()
            here = (status.st_dev, status.st_ino)
            if here in above:
                continue
            with os.scandir(folder) as entries:
                visible = [(entry.name, entry.path, _is_folder(entry)) for entry in entries if not hidden(entry.name)]
        except OSError as error:
            raise DataError(f"{error.filename or folder}: could not list: {error.strerror}") from error
        for name, path, is_folder in visible:
            if is_folder:
                yield f"{prefix}{name}/", None, FOLDER
                waiting.append((Path(path), f"{prefix}{name}/", above | {here}))
            elif name.endswith(".tar") and Path(path).is_file():
                inside = f"{prefix}{name.removesuffix('.tar')}/"
                yield inside, None, FOLDER
                yield from list_tar(Path(path), complain, inside)
            else:
                yield prefix + name, None, Span(path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    with contextlib.suppress(OSError):  # a link in a circle
        return entry.is_dir()
    return False
