"""Ways from an image of any shape to a square, each declared once: its name, its filter and what it does."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from elbocli.errors import DataError

BOX, BICUBIC, LANCZOS = Image.Resampling.BOX, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS
Colour = tuple[int, ...]


def center(image: Image.Image, size: int, background: Colour = ()) -> Image.Image:
    """Crop as ADM does: halve by BOX while at least twice too large, bicubic to the short side, cut the middle.

    Source: Dhariwal & Nichol 2021, the preparation of their training images.
    """
    while min(image.size) >= 2 * size:
        image = halve(image)
    scale = size / min(image.size)
    width, height = round(image.size[0] * scale), round(image.size[1] * scale)
    if width * height > (Image.MAX_IMAGE_PIXELS or 0):
        raise DataError(f"too long and thin for {size} pixels: {width} x {height} before it is cut")
    return _middle(image.resize((width, height), BICUBIC), size)


def edm(image: Image.Image, size: int, background: Colour = ()) -> Image.Image:
    """Cut the middle square at full size, then Lanczos: EDM's center-crop."""
    return _middle(image, min(image.size)).resize((size, size), LANCZOS)


def resize(image: Image.Image, size: int, background: Colour = ()) -> Image.Image:
    """Resize to the square by Lanczos, whatever the shape: nothing is cut, proportions are lost."""
    return image.resize((size, size), LANCZOS)


def pad(image: Image.Image, size: int, background: Colour = ()) -> Image.Image:
    """Resize the long side by Lanczos, and add bars of the background's colour."""
    scale = size / max(image.size)
    inner = image.resize((max(1, round(image.size[0] * scale)), max(1, round(image.size[1] * scale))), LANCZOS)
    square = Image.new(image.mode, (size, size), background if len(background) > 1 else background[0])
    square.paste(inner, ((size - inner.size[0]) // 2, (size - inner.size[1]) // 2))
    return square


def none(image: Image.Image, size: int, background: Colour = ()) -> Image.Image:
    """Take images as they are. Raises DataError for one of another size."""
    if image.size != (size, size):
        raise DataError(f"{image.size[0]} x {image.size[1]} pixels, but --crop none takes only those of --size {size}")
    return image


class Crop(NamedTuple):
    """cut(image, size, background) → square image. filter: the resampling, for the dataset's attributes."""

    filter: str
    cut: Callable[[Image.Image, int, Colour], Image.Image]


CROPS = {
    "center": Crop("box, bicubic", center),
    "edm": Crop("lanczos", edm),
    "resize": Crop("lanczos", resize),
    "pad": Crop("lanczos", pad),
    "none": Crop("none", none),
}


def _middle(image: Image.Image, size: int) -> Image.Image:
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return image.crop((left, top, left + size, top + size))


def halve(image: Image.Image) -> Image.Image:
    """`image.resize` to half of each side (rounded down) by BOX: the same pixels, in two thirds of the time.

    Pillow resizes one axis after the other, rounding in between. Along an axis of even length BOX is the rounded
    mean of two, which `reduce` does faster.
    """
    width, height = image.size
    # Since Pillow 13 what is more than twice as high as wide is resized vertically first.
    if 10 * height > 19 * width or not _reduce_is_box():
        return image.resize((width // 2, height // 2), BOX)
    return _two_steps(image)


@cache
def _reduce_is_box() -> bool:
    """Whether this Pillow's `reduce` gives the pixels of its `resize`: another release may round otherwise."""
    noise = Image.fromarray(np.random.Generator(np.random.Philox(0)).integers(0, 256, (62, 64, 3), np.uint8))
    shapes = [noise.crop((0, 0, width, height)) for width in (63, 64) for height in (61, 62)]
    halves = [step.resize((step.size[0] // 2, step.size[1] // 2), BOX) for step in shapes]
    return all(half.tobytes() == _two_steps(step).tobytes() for half, step in zip(halves, shapes))


def _two_steps(image: Image.Image) -> Image.Image:
    width, height = image.size
    image = image.resize((width // 2, height), BOX) if width % 2 else image.reduce((2, 1))
    return image.resize((width // 2, height // 2), BOX) if height % 2 else image.reduce((1, 2))
