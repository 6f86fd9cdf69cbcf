"""The size and the channels of a dataset, where the user leaves them to elbo."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from PIL import ImageColor

from elbocli.images.looks import Looks
from elbocli.runtime.progress import Progress

if TYPE_CHECKING:
    from elbocli.prep.pack import Settings

USUAL_SIZE = 64
"""The size where the images have several, or are larger: smaller ones are kept."""


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
