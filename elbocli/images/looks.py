"""The shapes of a source's images, from some of their headers, to decide how they are packed."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from elbocli.errors import ElboError
from elbocli.images.decode import header_shape
from elbocli.images.image_refs import ImageRef, Shape
from elbocli.images.sources import Source

MOST_FILES, MOST_BYTES = 1000, 1 << 30
"""Image files that are looked at, and the most bytes that are read for it."""


@dataclass(frozen=True)
class Looks:
    """The shapes (H, W, C) of the images that were looked at, with how many have each. total: images of the source."""

    shapes: Counter[Shape]
    total: int

    @property
    def all(self) -> str:
        """The images looked at, in words."""
        seen = self.shapes.total()
        return f"all {seen} images" if seen == self.total else f"the {seen} images looked at (of {self.total})"

    @property
    def grey(self) -> bool:
        """Whether all of them are grey."""
        return bool(self.shapes) and all(channels == 1 for _, _, channels in self.shapes)


def look(source: Source) -> Looks:
    """Read the shapes of a source's images: of all rows of arrays, and of at most MOST_FILES files.

    The files are spread evenly over the list; of a source that can only be read in its order, they are the first. Files
    that can't be read don't count. The same source gives the same looks.
    """
    shapes, files = Counter[Shape](), list[ImageRef]()
    for ref in source.refs:
        if ref.shape is None:
            files.append(ref)
        else:
            shapes[ref.shape] += 1
    for ref in _sample(files, source.in_order):
        with contextlib.suppress(ElboError):
            content = ref.read()
            shapes[_shape(content) if isinstance(content, np.ndarray) else header_shape(content)] += 1
    return Looks(shapes, len(source))


def _shape(pixels: np.ndarray) -> Shape:
    height, width, channels = pixels.shape
    return height, width, channels


def _sample(refs: Sequence[ImageRef], in_order: bool) -> Sequence[ImageRef]:
    sample = refs[:MOST_FILES] if in_order else refs[:: -(-len(refs) // MOST_FILES) or 1]
    while len(sample) > 1 and sum(ref.weight for ref in sample) > MOST_BYTES:
        sample = sample[: len(sample) // 2] if in_order else sample[::2]
    return sample
