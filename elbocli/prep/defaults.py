"""The size and the channels of a dataset, where the user leaves them to elbo."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import ImageColor

from elbocli.errors import ElboError
from elbocli.images.decode import header_shape
from elbocli.images.image_refs import ImageRef, Shape
from elbocli.images.sources import Source
from elbocli.runtime.progress import Progress

if TYPE_CHECKING:
    from elbocli.prep.pack import Settings

USUAL_SIZE = 64
"""The size where the images have several, or are larger: smaller ones are kept."""
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


def chosen_size(looks: Looks, crop: str) -> tuple[int, str]:
    """Choose the side in pixels. Returns (side, why).

    Images that are alike and small keep their size; where they are no squares, it is the side that a crop fills. With
    the crop 'none' squares of any size keep it, since others would be refused.
    """
    sizes = sorted({(width, height) for height, width, _ in looks.shapes})
    if not sizes:
        return USUAL_SIZE, "none of the images that were looked at can be read"
    if len(sizes) > 1:
        smallest, largest = min(sizes, key=min), max(sizes, key=max)
        return USUAL_SIZE, f"{looks.all} have several sizes, from {_said(smallest)} to {_said(largest)}"
    (size,) = sizes
    side = _side(size, crop)
    if side <= USUAL_SIZE or (crop == "none" and min(size) == max(size)):
        square = min(size) == max(size)
        fits = "this size" if square else f"{_said(size)} pixels, of which --crop {crop} makes a square"
        return side, f"{looks.all} have {fits}"
    return USUAL_SIZE, f"{looks.all} have {_said(size)} pixels, which are made smaller"


def chosen_channels(looks: Looks, settings: Settings) -> int:
    """Choose 1 for grey images, otherwise 3; also 3 for a coloured background, and for latents."""
    coloured = settings.background and len(set(ImageColor.getrgb(settings.background)[:3])) > 1
    return 1 if looks.grey and not coloured and settings.latents is None else 3


def explained(looks: Looks, settings: Settings, size: int, channels: int) -> Iterator[Progress]:
    """Say what was chosen and why, and warn where images are enlarged. settings: as the user gave them."""
    if not settings.size:
        why = chosen_size(looks, settings.crop)[1]
        yield Progress(message=f"{size} x {size} pixels, because {why}; --size takes another size")
    if not settings.channels and channels == 1:
        yield Progress(message=f"1 channel, because {looks.all} are grey; --channels 3 makes them colour")
    small = {shape: count for shape, count in looks.shapes.items() if _side(shape[:2], settings.crop) < size}
    if small and settings.crop != "none":
        height, width, _ = min(small, key=lambda shape: _side(shape[:2], settings.crop))
        which = looks.all if len(small) == len(looks.shapes) else f"{sum(small.values())} of {looks.all}"
        least = f"the smallest {width} x {height}; --size {_side((width, height), settings.crop)} enlarges none"
        yield Progress(message=f"enlarged to {size} x {size} pixels: {which}, {least}", level="warning")


def _side(size: tuple[int, int], crop: str) -> int:
    """Return the side that becomes the square's: of what `pad` makes, the long one."""
    return max(size) if crop == "pad" else min(size)


def _said(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
