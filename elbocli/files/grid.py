"""Many images as one picture: in rows, those of a class together, behind its name; small ones enlarged by a whole factor."""

import json
import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import IO, Annotated, NamedTuple

import numpy as np
from msgspec import Meta
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from elbocli.errors import FormatError, UsageError
from elbocli.files.atomic import new_file
from elbocli.files.records import Record, parse_json, stored

CELL = 96
"""Pixels: an image is enlarged as often as it fits into so many."""
WIDE = 4096
"""Pixels: nor is a grid made wider than this by it."""
NEAR = 4
"""The part of a square's columns by which a grid may have more or fewer, to leave fewer cells empty."""
LARGEST_PICTURE = 89_478_485
"""Pixels: Pillow, among others, takes more for an attack."""
MOST_CLASSES = 16
"""Classes that have rows of their own, unless each has as many images."""
PLACES = "elbo-grid"
"""The PNG's text that says where each image is."""
LETTER = 14
"""Height of the letters of names in pixels, unless rows are lower, or much higher."""
MOST_LETTERS = 20
"""Letters of a name that are shown."""
PAPER, INK = 255, 0
"""Greys of what no image covers, and of letters."""
Side = Annotated[int, Meta(ge=1, le=LARGEST_PICTURE)]


def picture(image: np.ndarray) -> Image.Image:
    """Turn uint8 pixels [H, W, 1 or 3] into an image of Pillow's."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def whole_factor(side: int) -> int:
    """The factor by which an image of that side is enlarged to be seen: as large as fits into CELL."""
    return max(1, CELL // side)


class Group(NamedTuple):
    """Images that share rows, by their places in an array, and the name of their class ('' where there are none)."""

    name: str
    images: Sequence[int]


def by_class(count: int, labels: np.ndarray | None, names: Sequence[str] = (), most: int | None = None) -> list[Group]:
    """A group for each class, in the order of their numbers; one without a name when there are no labels.

    names: of the classes, where known; a number stands for any other. most: groups, of classes from the first to the last.
    """
    if labels is None:
        return [Group("", range(count))]
    classes = np.unique(labels)
    if most is not None and len(classes) > most:
        classes = classes[np.linspace(0, len(classes) - 1, most).round().astype(int)]
    groups = []
    for each in classes:
        # Without control characters, and those that turn the direction of text.
        name = "".join(filter(str.isprintable, names[each] if 0 <= each < len(names) else "")).strip()
        groups.append(Group(name or str(each), np.flatnonzero(labels == each).tolist()))
    return groups


def rows_of_classes(count: int, labels: np.ndarray | None, names: Sequence[str] = ()) -> list[Group]:
    """Groups of all images: by class, or in their order where most classes have few images or there are none."""
    groups = by_class(count, labels, names)
    return by_class(count, None) if len(groups) > max(MOST_CLASSES, _columns(groups)) else groups


def _columns(groups: list[Group]) -> int:
    """Images in a row: about as many as there are rows, but no more than a group has; of classes, so that few cells are empty."""
    sizes = [len(group.images) for group in groups]
    square = math.ceil(math.sqrt(sum(sizes)))
    if len(sizes) == 1:
        return min(sizes[0], square)
    near = range(square - square // NEAR, square + square // NEAR + 1)
    columns = [min(max(sizes), each) for each in sorted(near, key=lambda each: abs(each - square))]
    return min(columns, key=lambda each: sum(-(-size // each) for size in sizes) * each)


@stored("text `elbo-grid` of a PNG")
class Layout(Record, frozen=True):
    """Places of images on a picture. height, width: of an image, before it is enlarged `scale` times.

    left: pixels beside the images, for names. Each group begins a row.
    """

    height: Side
    width: Side
    scale: Side
    columns: Side
    left: Annotated[int, Meta(ge=0, le=LARGEST_PICTURE)]
    groups: list[Group]

    def rows(self) -> list[tuple[int, int, Group]]:
        """The first row of each group, and the number of its rows."""
        counts = [-(-len(group.images) // self.columns) for group in self.groups]
        return list(zip([0, *accumulate(counts)], counts, self.groups))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        rows = sum(count for _, count, _ in self.rows())
        return self.left + self.columns * self.width * self.scale, rows * self.height * self.scale

    def places(self) -> list[tuple[slice, slice]]:
        """The pixels of each image: its rows and columns."""
        places = {}
        height, width = self.height * self.scale, self.width * self.scale
        for row, _, group in self.rows():
            for k, image in enumerate(group.images):
                y, x = (row + k // self.columns) * height, self.left + k % self.columns * width
                places[image] = slice(y, y + height), slice(x, x + width)
        return [places[image] for image in sorted(places)]

    def check(self, where: object) -> None:
        """Raise UsageError when the picture would be too large to be opened anywhere."""
        width, height = self.size
        if width * height > LARGEST_PICTURE:
            remedy = "use a smaller --scale, fewer images, or a folder, .npy, .npz or .h5"
            raise UsageError(f"{where}: a grid of {width} x {height} pixels is too large for a picture; {remedy}")


def lay_out(height: int, width: int, groups: list[Group], scale: int = 0) -> Layout:
    """Find places for images of height x width pixels. scale: 0 is so that a cell is easily seen."""
    columns, left = _columns(groups), 0
    scale = scale or max(1, min(whole_factor(max(height, width)), WIDE // (columns * width)))
    if any(group.name for group in groups):
        font, margin = _lettering(height * scale)
        left = math.ceil(max(font.getlength(_cut(group.name)) for group in groups)) + 2 * margin
    return Layout(height, width, scale, columns, left, [Group(each.name, list(each.images)) for each in groups])


def layout_of(text: str, size: tuple[int, int], where: object) -> Layout:
    """Read what `write_grid` wrote into a picture of that width and height. Raises FormatError when it can't be of it."""
    what = f"{where}: what it says of its images is damaged"
    layout = Layout.of(parse_json(text, what), what)
    held = sorted(each for group in layout.groups for each in group.images)
    whole = held and all(group.images for group in layout.groups) and held == list(range(len(held)))
    if not whole or layout.size != size:
        raise FormatError(f"{what}: {len(held)} places for {layout.size}, in a picture of {size}")
    return layout


def draw_grid(images: np.ndarray, layout: Layout) -> Image.Image:
    """Draw uint8 images [N, H, W, C] at their places, each pixel as a square of `scale` pixels, and the names."""
    width, height = layout.size
    sheet = np.full((height, width, images.shape[3]), PAPER, np.uint8)
    for image, place in zip(images, layout.places()):
        sheet[place] = image.repeat(layout.scale, 0).repeat(layout.scale, 1)
    drawn, high = picture(sheet), layout.height * layout.scale
    for row, count, group in layout.rows() if layout.left else ():
        font, margin = _lettering(high)
        strip = Image.new("L", (layout.left, count * high), PAPER)  # of its own: no letter reaches into another's
        ImageDraw.Draw(strip).text((margin, count * high // 2), _cut(group.name), INK, font, anchor="lm")
        drawn.paste(strip, (0, row * high))
    return drawn


@cache
def _lettering(row: int) -> tuple[ImageFont.FreeTypeFont, int]:
    """The font of names beside rows of that height, and the margin at both sides, in pixels.

    DejaVu Sans, which matplotlib brings; letters are set one by one, alike on every machine.
    """
    import matplotlib

    size = max(1, min(row, max(LETTER, row // 8)))
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC), -(-size // 2)


def _cut(name: str) -> str:
    """The name, or as much of it as there is room for."""
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1].rstrip() + "…"


def cut_up(sheet: np.ndarray, layout: Layout) -> np.ndarray:
    """The images [N, H, W, C] of a grid [height, width, C], pixel for pixel."""
    return np.stack([sheet[place][:: layout.scale, :: layout.scale] for place in layout.places()])


def write_grid(target: Path | IO[bytes], images: np.ndarray, layout: Layout) -> None:
    """Write a grid as PNG, with the places of its images. Raises DataError when the disk is full."""
    about = PngInfo()
    about.add_text(PLACES, json.dumps(layout.json()), zip=True)
    with new_file(target) if isinstance(target, Path) else nullcontext(target) as file:
        draw_grid(images, layout).save(file, "png", pnginfo=about)
