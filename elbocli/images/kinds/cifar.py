"""CIFAR-10 and CIFAR-100 in their binary version: batches of 32 x 32 images in colour.

For each image a byte (CIFAR-10) or two (CIFAR-100: coarse, fine) of labels, then its red, green and blue plane. The classes'
names lie beside, in batches.meta.txt or fine_label_names.txt. Source: the description on CIFAR's page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.reading import reading
from elbocli.images.image_refs import ImageRef, Span, array_rows
from elbocli.images.registry import Images, source

PIXELS = 3 * 32 * 32
RECORDS = {10: (1, (10,)), 100: (2, (20, 100))}
"""By the number of classes: the bytes of labels in a record, and how many classes each of them counts."""
NAMES = {10: "batches.meta.txt", 100: "fine_label_names.txt"}
"""By the number of classes: the file that says their names."""
LOOKED_AT = 64
"""Records by which a batch is recognised."""


def is_batch(ref: ImageRef, size: int) -> bool:
    """Whether a file of that size is a batch, by its length and its first labels. Raises DataError when it can't be read."""
    classes = next((n for n, (labels, _) in RECORDS.items() if size and size % (labels + PIXELS) == 0), 0)
    return bool(classes) and _records(bytes(ref.read(LOOKED_AT * (RECORDS[classes][0] + PIXELS))), classes) is not None


def _records(content: bytes, classes: int) -> np.ndarray | None:
    """The records of a batch, uint8 [N, bytes]; None where the bytes are none."""
    labels, most = RECORDS[classes]
    if not content or len(content) % (labels + PIXELS):
        return None
    records = np.frombuffer(content, np.uint8).reshape(-1, labels + PIXELS)
    return records if (records[:, :labels] < np.array(most)).all() else None


@source("CIFAR", test=lambda path, head: path.is_file() and is_batch(Span(str(path)), path.stat().st_size))
def open_batch(path: Path) -> Images:
    """Open one batch, with the names that lie beside it."""
    beside = {name: Span(str(path.with_name(name))) for name in NAMES.values() if path.with_name(name).is_file()}
    return open_batches([(path.name, Span(str(path)))], beside, str(path).removesuffix(path.name))


def open_batches(batches: Sequence[tuple[str, ImageRef]], beside: Mapping[str, ImageRef], where: str) -> Images:
    """Open batches, one after another. beside: the files of their folder, by name. where: the folder, for messages.

    Raises FormatError when one isn't such a batch, or they are not of one kind; DataError when one can't be read.
    """
    arrays, labels, names, kinds = [], [], [], set()
    for name, ref in batches:
        with reading(where + name):
            content = bytes(ref.read())
            classes, records = next(
                ((n, found) for n in RECORDS if (found := _records(content, n)) is not None), (0, np.empty(0))
            )
            if not classes:
                raise FormatError(
                    f"no batch of CIFAR: {len(content)} bytes; get it again, or name the images themselves"
                )
        kinds.add(classes)
        arrays.append(records[:, -PIXELS:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(records[:, RECORDS[classes][0] - 1].tolist())
        stem = name.rpartition("/")[2].removesuffix(".bin")
        names += [f"{stem}/{index}" for index in range(len(records))]
    if len(kinds) > 1:
        raise FormatError(f"{where}: holds batches of CIFAR-10 and of CIFAR-100; name those of one kind")
    rows = list(chain.from_iterable(map(array_rows, arrays)))
    return Images(names, list(chain.from_iterable(labels)), rows, _class_names(kinds.pop(), beside, where))


def _class_names(classes: int, beside: Mapping[str, ImageRef], where: str) -> list[str]:
    """Read the names of the classes, their numbers where no file says names. Raises FormatError."""
    file = NAMES[classes]
    if file not in beside:
        return [str(number) for number in range(classes)]
    with reading(where + file):
        names = bytes(beside[file].read()).decode("utf-8", "replace").split()
        if len(names) != classes or len(set(names)) != classes:
            raise FormatError(f"{len(names)} names of classes, expected {classes}; get it again, or remove it")
    return names
