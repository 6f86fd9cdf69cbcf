"""The shapes of a source's images, from some of their headers, to decide how they are packed."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

from elbocli.errors import ElboError
from elbocli.images.decode import header_shape
from elbocli.images.image_refs import ImageRef, Shape
from elbocli.images.sources import Source

FILES = 1000
"""Image files that are looked at."""


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
    """Read the shapes of a source's images: of all rows of arrays, and of at most FILES files.

    The files are spread evenly over the list; of a source that can only be read in its order, they are the first. Files
    that can't be read don't count. The same source gives the same looks.
    """
    shapes, files = Counter[Shape](), list[ImageRef]()
    for ref in source.refs:
        if ref.shape is None:
            files.append(ref)
        else:
            shapes[ref.shape] += 1
    for ref in files[:FILES] if source.in_order else files[:: -(-len(files) // FILES) or 1]:
        with contextlib.suppress(ElboError):
            shapes[header_shape(ref)] += 1
    return Looks(shapes, len(source))
