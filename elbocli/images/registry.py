"""References to images, and kinds of image sources, which are declared by @source.

@source("frames", suffix=".frames")
def frames(path):
    for number, pixels in enumerate(read_frames(path)):
        yield f"{number}", "a class or None", ArrayRow(...)
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.files.reading import open_file, reading

Shape = tuple[int, ...]
Word = str | int
"""An image's class: the name of a folder, or a number."""
HEAD = 512


class ImageRef(Protocol):
    """A reference to one image. Nothing is ever extracted to disk."""

    def read(self, most: int = -1) -> bytes | np.ndarray:
        """Read an image file, or its first bytes; or pixels, uint8 [H, W, C]. Safe from any thread. Raises DataError."""


Entries = dict[str, ImageRef]
"""Paths below a source, and what lies there."""


class Span(NamedTuple):
    """A file, or `size` bytes of it from `offset`."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self, most: int = -1) -> bytes:
        wanted = self.size if most < 0 or 0 <= self.size < most else most
        with reading("no usable file", kind=DataError), open_file(self.path) as file:
            file.seek(self.offset)
            content = file.read(wanted)
            if len(content) < wanted and self.size >= 0:
                raise DataError(f"cut short: {len(content)} of {wanted} bytes are there")
        return content


class ZipEntry(NamedTuple):
    """An entry of an open zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self, most: int = -1) -> bytes:
        with reading("does not unpack", kind=DataError), self.archive.open(self.info) as member:
            return member.read(most)


class Damage(NamedTuple):
    """The place of an archive from which on it can't be read. why: begins with the archive's name."""

    why: str


class DatasetRows:
    """The images of an elbo-dataset, as an array. shape: (N, H, W, C)."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.shape = dataset, dataset.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read rows that follow each other. Raises DataError, and FormatError for a damaged dataset."""
        return self.dataset.batch(range(rows.start, rows.stop))


class ArrayRow(NamedTuple):
    """A row of an array of uint8 images."""

    array: np.ndarray | DatasetRows
    row: int

    def read(self, most: int = -1) -> np.ndarray:
        return np.ascontiguousarray(self.array[self.row : self.row + 1])[0]


@dataclass
class Images:
    """Images in a fixed order.

    files: their paths below their source, or other names. labels: the word or number of each image's class, None for an
    image without; None where nothing has one. class_names: those of classes that are numbers, or all words in their order.
    prefix: begins the name of an image in a message.
    """

    files: list[str]
    labels: Any
    refs: list[Any]
    class_names: list[str] = field(default_factory=list)
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def numbered(self) -> bool:
        """Tell whether the labels are numbers of classes with names."""
        return bool(self.class_names and self.labels and isinstance(self.labels[0], int))

    def shown(self, index: int) -> str:
        """An image's name for people."""
        return self.prefix + self.files[index]

    def take(self, chosen: Sequence[int]) -> Images:
        """Keep only those images, in that order."""
        return replace(
            self,
            files=[self.files[i] for i in chosen],
            labels=[self.labels[i] for i in chosen],
            refs=[self.refs[i] for i in chosen],
        )


def images_of_array(
    array: np.ndarray | DatasetRows,
    labels: Sequence[int] | None = None,
    classes: Sequence[str] = (),
    names: Sequence[str] = (),
) -> Images:
    """All rows of an array; their names are their numbers where they have none."""
    rows = range(array.shape[0])
    return Images(list(names or map(str, rows)), labels, [ArrayRow(array, row) for row in rows], list(classes))


def check_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Labels of so many images, int64 [count]. Raises DataError for another array."""
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(f"{labels.dtype} {labels.shape} for {count} images; expected a whole number for each")
    return labels.astype(np.int64).reshape(count)


@dataclass(frozen=True)
class SourceKind:
    """A kind of source.

    form: 'images', open(path); 'tree', open(path) lists files by their paths, whose folders may be classes; 'parts',
    open(names, folder) takes the names of files of a published set, and all files of their folder.
    """

    name: str
    open: Callable[..., Any]
    magic: bytes = b""
    suffix: str = ""
    test: Callable[[Path, bytes], bool] = lambda path, head: True
    form: str = "images"

    def matches(self, path: Path, head: bytes) -> bool:
        """Tell whether a file is of this kind. head: its first bytes."""
        return head.startswith(self.magic) and path.name.lower().endswith(self.suffix) and self.test(path, head)


KINDS: list[SourceKind] = []


def source(name: str, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare a function of a path that yields (name, class or None, reference) of each image.

    A file is of this kind if it begins with `magic`, its name ends in `suffix`, and test(path, first 512 bytes) is true:
    whichever of them `how` says.
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        KINDS.append(SourceKind(name, function, **how))
        return function

    return declare


def kinds() -> list[SourceKind]:
    """All kinds in the order in which they are tried: those of plug-ins first, then elbo's own by their names."""
    return sorted(KINDS, key=lambda kind: (kind.open.__module__.startswith("elbocli."), kind.name))


def kind_of(path: Path) -> SourceKind | None:
    """Find the kind of a file or folder, None where it is of none. Raises DataError."""
    head = b""
    if not path.is_dir():
        head = Span(str(path)).read(HEAD)
    return next((kind for kind in kinds() if kind.matches(path, head)), None)
