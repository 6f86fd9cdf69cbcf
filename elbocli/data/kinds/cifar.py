"""Read CIFAR-10 and CIFAR-100 in the binary version: batches of 32 x 32 colour images.

Image: label byte (CIFAR-100: coarse label, fine label), then red, green and blue plane.
Source: www.cs.toronto.edu/~kriz/cifar.html
"""

from pathlib import Path

import numpy as np

from elbocli.data.registry import Images, SourceFile, images_of_array, source
from elbocli.errors import FormatError
from elbocli.files.reading import reading

PIXELS = 3 * 32 * 32


@source("a CIFAR batch")
def open_cifar(*files: SourceFile) -> Images:
    """Open CIFAR batches as one set of images. Raises FormatError."""
    with reading(files[0].name, "; get the files again, and name batches of one kind"):
        contents = [file.read_bytes() for file in files]
        count = 10
        names_file = "batches.meta.txt"
        labels = 1
        if len(contents[0]) % (PIXELS + labels):
            count = 100
            names_file = "fine_label_names.txt"
            labels = 2
        batches = [np.frombuffer(content, np.uint8).reshape(-1, labels + PIXELS) for content in contents]
        records = np.concatenate(batches)
        largest = records[:, labels - 1].max()
        if largest >= count:
            raise FormatError(f"a label is {largest}, but CIFAR-{count} has {count} classes; get the files again")
    classes = [str(number) for number in range(count)]
    named = files[0].with_name(names_file)
    if named.is_file():
        with reading(names_file, "; get it again, or remove it"):
            classes = named.read_bytes().decode().split()
            if len(set(classes)) != count:
                raise FormatError(f"{len(set(classes))} different class names, expected {count}; get the file again")
    images = records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    names = [f"{Path(file.name).stem}/{row}" for file, batch in zip(files, batches) for row in range(len(batch))]
    return images_of_array(images, records[:, labels - 1].tolist(), classes, names)
