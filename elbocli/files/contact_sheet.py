"""Contact sheets: pictures of many images, in rows by class."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import cache
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from msgspec import Struct
from PIL import Image, ImageDraw, ImageFont

from elbocli.errors import UsageError
from elbocli.files.atomic import new_file

CELL = 96  # largest side of an enlarged image, in pixels
WIDE = 4096  # largest width of a row of enlarged images, in pixels, without gutters and names
NEAR = 4  # to leave few places empty, a sheet may have up to 1/NEAR more or fewer columns than a square sheet
LARGEST_PICTURE = 89_478_485  # largest number of pixels of a picture; Pillow warns of a decompression bomb above this number
MOST_CLASSES = 16  # up to this many classes get separate rows; more classes only if there are as many columns as classes
LETTER = 14  # usual font size of class names, in pixels; smaller in low rows, larger in high rows
MOST_LETTERS = 20  # largest number of letters of a class name; longer names are shortened
# grey levels of the background and of the letters
PAPER = 255
INK = 0
GUTTER = 32  # side of an enlarged image / gutter between images


def picture(image: np.ndarray) -> Image.Image:
    """Convert uint8 pixels [H, W, 1 or 3] to a Pillow image."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def whole_factor(side: int) -> int:
    """Return the largest whole factor, at least 1, that enlarges `side` to at most CELL pixels."""
    return max(1, CELL // side)


class Group(NamedTuple):
    """Images of one class on a contact sheet. name: '' without classes. images: indices."""

    name: str
    images: Sequence[int]


def by_class(count: int, labels: np.ndarray | None, names: Sequence[str] = (), most: int | None = None) -> list[Group]:
    """Group images by class.

    labels: class of each image, [count]; None: one group without a name.
    most: largest number of groups, from evenly spaced classes; None: no limit.
    """
    if labels is None:
        return [Group("", range(count))]
    classes = np.unique(labels)
    if most is not None and len(classes) > most:
        classes = classes[np.linspace(0, len(classes) - 1, most).round().astype(int)]
    groups = []
    for number in classes:
        # Control characters and marks of text direction are left out.
        name = "".join(filter(str.isprintable, names[number] if 0 <= number < len(names) else "")).strip()
        groups.append(Group(name or str(number), np.flatnonzero(labels == number).tolist()))
    return groups


def rows_of_classes(count: int, labels: np.ndarray | None, names: Sequence[str] = ()) -> list[Group]:
    """Group images by class, or in one group if classes outnumber both MOST_CLASSES and the sheet's columns."""
    groups = by_class(count, labels, names)
    return by_class(count, None) if len(groups) > max(MOST_CLASSES, _columns(groups)) else groups


def _columns(groups: list[Group]) -> int:
    sizes = [len(group.images) for group in groups]
    square = math.ceil(math.sqrt(sum(sizes)))
    if len(sizes) == 1:
        return min(sizes[0], square)
    near = range(square - square // NEAR, square + square // NEAR + 1)
    columns = [min(max(sizes), count) for count in sorted(near, key=lambda count: abs(count - square))]
    return min(columns, key=lambda count: sum(-(-size // count) for size in sizes) * count)


class Layout(Struct, frozen=True):
    """Layout of a contact sheet. Each group begins a new row.

    height, width: size of an image in pixels, before enlargement.
    scale: whole factor of the enlargement. columns: images per row.
    left: width of the margin for class names, in pixels; 0: no names.
    gutter: pixels between neighbouring images.
    """

    height: int
    width: int
    scale: int
    columns: int
    left: int
    groups: list[Group]
    gutter: int

    def rows(self) -> list[tuple[int, int, Group]]:
        """Return (first row of images, number of rows, group) for each group."""
        counts = [-(-len(group.images) // self.columns) for group in self.groups]
        return list(zip([0, *accumulate(counts)], counts, self.groups))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        rows = sum(count for _, count, _ in self.rows())
        (down, across) = self.pitch
        return self.left + self.columns * across - self.gutter, rows * down - self.gutter

    @property
    def pitch(self) -> tuple[int, int]:
        """Pixels between the corners of neighbouring images, down and across."""
        return self.height * self.scale + self.gutter, self.width * self.scale + self.gutter

    def places(self) -> list[tuple[slice, slice]]:
        """Return (pixel rows, pixel columns) of each image, as slices."""
        places = {}
        down, across = self.pitch
        for row, _, group in self.rows():
            for k, image in enumerate(group.images):
                y = (row + k // self.columns) * down
                x = self.left + k % self.columns * across
                places[image] = slice(y, y + down - self.gutter), slice(x, x + across - self.gutter)
        return [places[image] for image in sorted(places)]

    def check(self, where: object) -> None:
        """Raise UsageError above LARGEST_PICTURE pixels. where: start of the message."""
        width, height = self.size
        if width * height > LARGEST_PICTURE:
            remedy = "use a smaller --zoom, fewer images, or write a folder, .npy, .npz or .h5"
            raise UsageError(f"{where}: a contact sheet of {width} x {height} pixels exceeds {LARGEST_PICTURE} pixels; {remedy}")


def lay_out(height: int, width: int, groups: list[Group], scale: int = 0) -> Layout:
    """Arrange images on a contact sheet. scale: factor of enlargement; 0: automatic."""
    columns = _columns(groups)
    left = 0
    scale = scale or max(1, min(whole_factor(max(height, width)), WIDE // (columns * width)))
    if any(group.name for group in groups):
        font, margin = _lettering(height * scale)
        left = math.ceil(max(font.getlength(_cut(group.name)) for group in groups)) + 2 * margin
    gutter = -(-max(height, width) * scale // GUTTER)
    return Layout(height, width, scale, columns, left, groups, gutter)


def draw_contact_sheet(images: np.ndarray, layout: Layout) -> Image.Image:
    """Draw a contact sheet. images: uint8 [N, H, W, C], not enlarged."""
    width, height = layout.size
    sheet = np.full((height, width, images.shape[3]), PAPER, np.uint8)
    for image, place in zip(images, layout.places()):
        sheet[place] = image.repeat(layout.scale, 0).repeat(layout.scale, 1)
    drawn = picture(sheet)
    down = layout.pitch[0]
    for row, count, group in layout.rows() if layout.left else ():
        font, margin = _lettering(layout.height * layout.scale)
        high = count * down - layout.gutter
        strip = Image.new("L", (layout.left, high), PAPER)  # so that no letter reaches into another group's rows
        ImageDraw.Draw(strip).text((margin, high // 2), _cut(group.name), INK, font, anchor="lm")
        drawn.paste(strip, (0, row * down))
    return drawn


def matplotlib_data() -> Path:
    """Return matplotlib's folder of fonts and default settings, without importing matplotlib."""
    (package,) = find_spec("matplotlib").submodule_search_locations  # type: ignore[union-attr, misc]
    return Path(package) / "mpl-data"


@cache
def _lettering(row: int) -> tuple[ImageFont.FreeTypeFont, int]:
    """Return font and margin of class names. row: height of an image row in pixels."""
    # Matplotlib's font, with Pillow's basic layout, gives the same pixels on every machine.
    size = max(1, min(row, max(LETTER, row // 8)))
    path = matplotlib_data() / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC), -(-size // 2)


def _cut(name: str) -> str:
    return name if len(name) <= MOST_LETTERS else name[: MOST_LETTERS - 1].rstrip() + "…"


def write_contact_sheet(target: Path | IO[bytes], images: np.ndarray, layout: Layout) -> None:
    """Write a contact sheet as PNG. Raises DataError if the disk is full."""
    with new_file(target) if isinstance(target, Path) else nullcontext(target) as file:
        draw_contact_sheet(images, layout).save(file, "png")
