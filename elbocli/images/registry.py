"""References to images, and kinds of image sources. The decorator @source declares a kind:

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
"""Class of an image: the name of a folder, or a number."""
HEAD = 512


class ImageRef(Protocol):
    """Reference to one image, which is read without extracting it to disk."""

    def read(self, most: int = -1) -> bytes | np.ndarray:
        """Return the bytes of an image file; or pixels, uint8 [H, W, C], if the image comes from an array.

        most: number of bytes needed from the start of the file; −1 for all. Thread-safe. Raises DataError.
        """


Entries = dict[str, ImageRef]
"""Path within a source → reference to the file there."""


class Span(NamedTuple):
    """Reference to `size` bytes of a file from `offset` on; a size of −1 means all bytes up to the end of the file."""

    path: str
    offset: int = 0
    size: int = -1

    def read(self, most: int = -1) -> bytes:
        wanted = self.size if most < 0 or 0 <= self.size < most else most
        with reading("no usable file", kind=DataError), open_file(self.path) as file:
            file.seek(self.offset)
            content = file.read(wanted)
            if len(content) < wanted and self.size >= 0:
                raise DataError(f"cut short: {len(content)} of {wanted} bytes are there; get the file again")
        return content


class ZipEntry(NamedTuple):
    """Reference to a file in an open zip archive."""

    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    def read(self, most: int = -1) -> bytes:
        with reading("does not unpack", kind=DataError), self.archive.open(self.info) as member:
            return member.read(most)


class Damage(NamedTuple):
    """Entry that ends the listing of a damaged archive, after its readable files. why: message, which names the archive."""

    why: str


class DatasetRows:
    """Stand-in for an array of the images of an elbo-dataset. shape: (N, H, W, C)."""

    def __init__(self, dataset: Dataset):
        self.dataset, self.shape = dataset, dataset.shape

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Read consecutive rows. Raises DataError, and FormatError for a damaged dataset."""
        return self.dataset.batch(range(rows.start, rows.stop))


class ArrayRow(NamedTuple):
    """Reference to a row of an array of uint8 images."""

    array: np.ndarray | DatasetRows
    row: int

    def read(self, most: int = -1) -> np.ndarray:
        return np.ascontiguousarray(self.array[self.row : self.row + 1])[0]


@dataclass
class Images:
    """Images in a fixed order.

    files: paths within the source, or other names.
    labels: class of each image (a word or a number; None for no class), or None if no image has a class. refs: ImageRefs.
    class_names: names of the classes 0, 1, … if classes are numbers; otherwise all words in order.
    prefix: text that messages put before file names.
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
        """Tell whether the labels are numbers of classes that have names."""
        return bool(self.class_names and self.labels and isinstance(self.labels[0], int))

    def shown(self, index: int) -> str:
        """Return the name of an image for messages."""
        return self.prefix + self.files[index]

    def take(self, chosen: Sequence[int]) -> Images:
        """Return the chosen images only, in the order of `chosen`."""
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
    """Return all rows of an array as images. labels: class of each row. names: names of the rows, by default their numbers."""
    rows = range(array.shape[0])
    return Images(list(names or map(str, rows)), labels, [ArrayRow(array, row) for row in rows], list(classes))


def check_labels(labels: np.ndarray, count: int) -> np.ndarray:
    """Return labels as int64 [count]. Raises DataError unless the array holds `count` integers."""
    if labels.shape not in ((count,), (count, 1)) or labels.dtype.kind not in "iu":
        raise DataError(f"{labels.dtype} {labels.shape} labels for {count} images; expected a whole number for each image")
    return labels.astype(np.int64).reshape(count)


@dataclass(frozen=True)
class SourceKind:
    """A kind of image source. Files of this kind begin with `magic`, have the suffix `suffix`, and pass `test` (see `source`).

    form: 'images' for open(path), which yields images; 'tree' for open(path), which lists files by path, where folders may be
    classes; 'parts' for open(names, folder), which takes file names of a published data set, and all files of their folder.
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
    """Declare a kind of source: a function of a path that yields (name, class or None, reference) for each image.

    how: fields of SourceKind. A file is of this kind if it begins with `magic`, its name ends in `suffix`, and
    test(path, first 512 bytes) is true; conditions that are not given hold.
    """

    def declare(function: Callable[..., Any]) -> Callable[..., Any]:
        KINDS.append(SourceKind(name, function, **how))
        return function

    return declare


def kinds() -> list[SourceKind]:
    """Return all kinds of sources in the order in which a file is tried: first those of plug-ins, then elbo's, by name."""
    return sorted(KINDS, key=lambda kind: (kind.open.__module__.startswith("elbocli."), kind.name))


def kind_of(path: Path) -> SourceKind | None:
    """Return the kind of source of a file or folder, or None if it is of no kind. Raises DataError if it can't be read."""
    head = b""
    if not path.is_dir():
        head = Span(str(path)).read(HEAD)
    return next((kind for kind in kinds() if kind.matches(path, head)), None)
