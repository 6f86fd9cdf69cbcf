"""CIFAR-10 and CIFAR-100 in their binary version: batches of 32 x 32 images in colour.

For each image a byte (CIFAR-10) or two (CIFAR-100: coarse, fine) of labels, then its red, green and blue plane.
The classes' names lie beside, in batches.meta.txt or fine_label_names.txt. Source: the description on CIFAR's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.reading import naming
from elbocli.images.array_rows import Row
from elbocli.images.arrays import ArrayImages
from elbocli.images.image_refs import LARGEST_FILE, ImageRef, ZipEntry

PIXELS = 3 * 32 * 32
RECORDS = {10: (1, (10,)), 100: (2, (20, 100))}
"""By the number of classes: the bytes of labels in a record, and how many classes each of them counts."""
NAMES = {10: "batches.meta.txt", 100: "fine_label_names.txt"}
"""By the number of classes: the file that may say their names."""
PICKLED = (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5")
AGAIN = "get it again, or name the images themselves"


@dataclass(frozen=True)
class Batch:
    """Images of a file. pixels: uint8 [N, 32, 32, 3]; classes: 10 or 100."""

    pixels: np.ndarray
    labels: Sequence[int]
    classes: int


def open_batches(batches: Sequence[tuple[str, ImageRef]], beside: Mapping[str, ImageRef], where: str) -> ArrayImages:
    """Open batches, one after another. beside: the files of their folder, by name. where: the folder, for messages.

    Raises FormatError when one isn't such a batch, or they are not of one kind; DataError when one can't be read.
    """
    found = []
    for name, ref in batches:
        with naming(where + name, FormatError):
            found.append(_read(ref))
    classes = found[0].classes
    if any(batch.classes != classes for batch in found):
        raise FormatError(f"{where}: holds batches of CIFAR-10 and of CIFAR-100; name those of one kind")
    refs = [Row(batch.pixels, index) for batch in found for index in range(len(batch.pixels))]
    labels = list(chain.from_iterable(batch.labels for batch in found))
    stems = [name.rpartition("/")[2].removesuffix(".bin") for name, _ in batches]
    files = [f"{stem}/{index}" for stem, batch in zip(stems, found) for index in range(len(batch.pixels))]
    return ArrayImages(refs, labels, _class_names(classes, beside, where), files)


def is_binary(ref: ImageRef) -> bool:
    """Whether a file is a binary batch. Raises DataError when it can't be read."""
    lengths = [bytes_of_labels + PIXELS for bytes_of_labels, _ in RECORDS.values()]
    size = ref.info.file_size if isinstance(ref, ZipEntry) else ref.weight
    likely = size <= LARGEST_FILE and any(size % length == 0 for length in lengths)
    return likely and binary_classes(bytes(ref.read())) > 0


def binary_classes(content: bytes) -> int:
    """The number of classes of a binary batch, 0 when the bytes are none: its length and its labels tell."""
    for classes, (bytes_of_labels, most) in RECORDS.items():
        size = bytes_of_labels + PIXELS
        if content and len(content) % size == 0:
            labels = np.frombuffer(content, np.uint8).reshape(-1, size)[:, :bytes_of_labels]
            if (labels < np.array(most)).all():
                return classes
    return 0


def _read(ref: ImageRef) -> Batch:
    content = bytes(ref.read())
    if content.startswith(PICKLED):
        raise FormatError(
            "a pickle, which is never opened, because that can run code; of CIFAR, get the binary version"
        )
    if classes := binary_classes(content):
        records = np.frombuffer(content, np.uint8).reshape(-1, RECORDS[classes][0] + PIXELS)
        labels = records[:, RECORDS[classes][0] - 1].tolist()
        return Batch(_planes(records[:, -PIXELS:]), labels, classes)
    raise FormatError(f"no batch of CIFAR: {len(content)} bytes; {AGAIN}")


def _planes(pixels: np.ndarray) -> np.ndarray:
    """See rows of three planes as images, [N, 32, 32, 3], without copying."""
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _class_names(classes: int, beside: Mapping[str, ImageRef], where: str) -> list[str]:
    """Read the names of the classes, their numbers where no file says names. Raises FormatError."""
    file = NAMES[classes]
    if file not in beside:
        return [str(number) for number in range(classes)]
    with naming(where + file, FormatError):
        names = bytes(beside[file].read()).decode("utf-8", "replace").split()
        if len(names) != classes or len(set(names)) != classes:
            raise FormatError(f"{len(names)} names of classes, expected {classes}; get it again, or remove it")
    return names
