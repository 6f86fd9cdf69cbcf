"""References to images, and the decorator @source, which declares image sources:

@source("frames", suffix=".frames")
def frames(path):
    for number, pixels in enumerate(read_frames(path)):
        yield f"{number}", "a class or None", ArrayRow(...)
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.files.reading import open_file, reading
from elbocli.files.recognise import KINDS, Kind

Shape = tuple[int, ...]
Word = str | int  # class of an image: the name of a folder, or a number


class ImageRef(Protocol):
    """Reference to one image."""

    def read(self, most: int = -1) -> bytes | np.ndarray:
        """Return an image file's bytes, or uint8 pixels [H, W, C]. Thread-safe. Raises DataError.

        most: number of bytes needed from the start of the file; −1: all.
        """


Entries = dict[str, ImageRef]  # path of a file within an image source → reference to the file


class Span(NamedTuple):
    """Reference to bytes of a file. offset: first byte. size: number of bytes; −1: up to the end."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self, most: int = -1) -> bytes:
        with reading("no usable file", kind=DataError), open_file(self.path) as file:
            file.seek(self.offset)
            return file.read(self.size if most < 0 or 0 <= self.size < most else most)


class ZipEntry(NamedTuple):
    """Reference to a file in an open zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self, most: int = -1) -> bytes:
        with reading("does not unpack", kind=DataError), self.archive.open(self.info) as member:
            return member.read(most)


class DatasetRows:
    """Images of an elbo dataset, read like an array. shape: (N, H, W, C)."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        self.shape = dataset.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        return self.dataset.read(range(rows.start, rows.stop))


class ArrayRow(NamedTuple):
    """Reference to a row of an array of uint8 images."""

    array: np.ndarray | DatasetRows
    row: int

    def read(self, most: int = -1) -> np.ndarray:
        return np.ascontiguousarray(self.array[self.row : self.row + 1])[0]


@dataclass
class Images:
    """Images in a fixed order.

    files: name of each image, such as its path within the source.
    labels: class of each image (word, number or None); None: no image has a class.
    refs: ImageRef of each image.
    class_names: names of the classes 0, 1, …; if labels are words: all class names, in any order.
    prefix: text before file names in messages.
    """

    files: list[str]
    labels: Any
    refs: list[ImageRef]
    class_names: list[str] = field(default_factory=list)
    prefix: str = ""

    def __len__(self) -> int:
        return len(self.files)

    @property
    def numbered(self) -> bool:
        """Tell whether the labels are numbers of named classes."""
        return bool(self.class_names and self.labels and isinstance(self.labels[0], int))

    def take(self, chosen: Sequence[int]) -> Images:
        """Return the images with these indices, in this order."""
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
    """Return an array's rows as images. classes: class names. names: names of the rows; (): row numbers."""
    rows = range(array.shape[0])
    return Images(list(names or map(str, rows)), labels, [ArrayRow(array, row) for row in rows], list(classes))


def check_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Return labels as int64 [count]. Raises DataError unless the array holds `count` integers."""
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(f"labels are {labels.dtype} of shape {labels.shape}; expected a whole number for each of {count} images")
    return labels.astype(np.int64).reshape(count)


@dataclass(frozen=True)
class Member:
    """A file of an archive, with those methods of a Path that sources use. path: key of `entries`, the archive's files."""

    entries: Entries
    path: str

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    def with_name(self, name: str) -> Member:
        return Member(self.entries, self.path.removesuffix(self.name) + name)

    def is_file(self) -> bool:
        return self.path in self.entries

    def read_bytes(self) -> bytes:
        return bytes(self.entries[self.path].read())


SourceFile = Path | Member
OpenSource = Callable[..., Images | Iterable[tuple[str, Word | None, ImageRef]]]
SOURCES: dict[str, OpenSource] = {}  # by the name of a Kind


def source(name: str, suffix: str = "") -> Callable[[OpenSource], OpenSource]:
    """Declare an image source: a function of a path that returns Images, or yields (name, class or None, ImageRef) for each image.

    name: a kind of file in recognise.KINDS, or a new kind, whose files have the suffix `suffix`.
    Sources of published data sets (MNIST, CIFAR, parquet) take Members too, and the last two several files of one data set.
    """
    if suffix:
        KINDS.insert(0, Kind(name, names=f"*{suffix.lower()}", test=lambda path, head: not path.is_dir()))

    def declare(function: OpenSource) -> OpenSource:
        SOURCES[name] = function
        return function

    return declare
