"""Where images come from: a folder of class folders, or a flat folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from elbocli.errors import DataError


@dataclass(frozen=True)
class Source:
    """Images in a fixed order. files: paths below root; labels: an index into class_names for each."""

    root: Path
    files: list[str]
    labels: list[int]
    class_names: list[str]


def _visible(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the files and folders in a folder, in byte order, hidden ones left out."""
    with os.scandir(folder) as entries:
        found = [(entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith(".")]
    found.sort(key=lambda item: os.fsencode(item[0]))
    return [name for name, is_dir in found if not is_dir], [name for name, is_dir in found if is_dir]


def _below(folder: Path, prefix: str, visited: frozenset[tuple[int, int]]) -> list[str]:
    """Every file at any depth; a folder that contains itself through a link is entered once."""
    status = folder.stat()
    if (status.st_dev, status.st_ino) in visited:
        return []
    visited |= {(status.st_dev, status.st_ino)}
    files, folders = _visible(folder)
    paths = [prefix + name for name in files]
    for name in folders:
        paths += _below(folder / name, f"{prefix}{name}/", visited)
    return paths


def open_source(root: Path, limit: int | None = None) -> Source:
    """Class folders (sorted names are the classes), or one flat folder (one class). limit: first N images.

    Raises DataError when nothing is there.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "no such folder"
        raise DataError(f"{root}: {what}; expected a folder of images or of class folders")
    try:
        loose, folders = _visible(root)
        if folders and loose:
            raise DataError(
                f"{root}: holds both class folders ({folders[0]}, …) and loose files ({loose[0]}, …); move one kind away"
            )
        if not folders:
            files, labels, names = loose, [0] * len(loose), [root.resolve().name]
        else:
            files, labels, names = [], [], folders
            for label, name in enumerate(folders):
                inside = _below(root / name, f"{name}/", frozenset())
                files += inside
                labels += [label] * len(inside)
    except OSError as error:
        raise DataError(f"{error.filename or root}: could not list: {error.strerror}") from error
    except RecursionError:
        raise DataError(f"{root}: folders nested deeper than can be followed; move the images up") from None
    if not files:
        raise DataError(f"{root}: no files inside; expected images, or folders of images named by class")
    return Source(root, files[:limit], labels[:limit], names)
