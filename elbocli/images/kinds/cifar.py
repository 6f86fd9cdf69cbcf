"""CIFAR-10 and CIFAR-100 in their binary version: batches of 32 x 32 images in colour.

For each image a byte (CIFAR-10) or two (CIFAR-100: coarse, fine) of labels, then its red, green and blue plane. The classes'
names lie beside, in batches.meta.txt or fine_label_names.txt. Source: the description on CIFAR's page.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from elbocli.errors import FormatError
from elbocli.files.reading import reading
from elbocli.images.registry import Entries, Images, images_of_array, source

BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)\.bin")
PIXELS = 3 * 32 * 32
KINDS = {PIXELS + 1: (10, "batches.meta.txt"), PIXELS + 2: (100, "fine_label_names.txt")}
"""By the bytes of a record: the number of classes, and the file that says their names."""


@source("CIFAR", test=lambda path, head: bool(BATCH.fullmatch(path.name)), form="parts")
def open_cifar(files: Sequence[str], folder: Entries, where: str) -> Images:
    """Open batches, one after another. Raises FormatError for other files and kinds that are mixed, DataError."""
    batches, names = [], []
    for name in files:
        with reading(where + name):
            content = bytes(folder[name].read())
            size = next((size for size in KINDS if content and len(content) % size == 0), PIXELS + 1)
            batches.append(np.frombuffer(content, np.uint8).reshape(-1, size))
        stem = name.rpartition("/")[2].removesuffix(".bin")
        names += [f"{stem}/{index}" for index in range(len(batches[-1]))]
    with reading(where, "; name batches of one kind"):
        records = np.concatenate(batches)
    count, file = KINDS[records.shape[1]]
    labels, images = records[:, -PIXELS - 1], records[:, -PIXELS:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    if labels.max() >= count:
        raise FormatError(f"{where}: a label is {labels.max()}, of CIFAR-{count}; get the files again")
    classes = [str(number) for number in range(count)]
    if file in folder:
        with reading(where + file):
            classes = bytes(folder[file].read()).decode().split()
            if len(classes) != count or len(set(classes)) != count:
                raise FormatError(f"{len(classes)} names of classes, expected {count}; get it again, or remove it")
    return images_of_array(images, labels.tolist(), classes, names)
