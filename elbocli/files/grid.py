"""Many images as one picture: in rows, those of a class together, behind its name; small ones enlarged by a whole factor."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import numpy as np
from msgspec import Meta
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from elbocli.errors import UsageError
from elbocli.files.atomic import new_file
from elbocli.files.lettering import Lettering, shown_name
from elbocli.files.reading import reading
from elbocli.files.records import Count, Record, parse_json, stored

CELL = 96
"""Pixels: an image is enlarged as often as it fits into so many."""
WIDE = 4096
"""Pixels: nor is a grid made wider than this by it."""
NEAR = 4
"""The part of a square's columns by which a grid may have more or fewer, to leave fewer cells empty."""
LARGEST_GRID = 10_000
"""Images."""
LARGEST_PICTURE = 89_478_485
"""Pixels: Pillow, among others, takes more for an attack."""
MOST_CLASSES = 16
"""Classes that have rows of their own, unless each has as many images."""
PLACES = "elbo-grid"
"""The PNG's text that says where each image is."""
Side = Annotated[int, Meta(ge=1, le=LARGEST_PICTURE)]
PAPER = 255
"""Grey of what no image covers."""


def picture(image: np.ndarray) -> Image.Image:
    """Turn uint8 pixels [H, W, 1 or 3] into an image of Pillow's."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def whole_factor(side: int) -> int:
    """The factor by which an image of that side is enlarged to be seen: as large as fits into CELL."""
    return max(1, CELL // side)


@dataclass(frozen=True)
class Group:
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
    called = [shown_name(names[each] if 0 <= each < len(names) else "") or str(each) for each in classes]
    return [Group(name, np.flatnonzero(labels == each).tolist()) for name, each in zip(called, classes)]


def rows_of_classes(count: int, labels: np.ndarray | None, names: Sequence[str] = ()) -> list[Group]:
    """Groups of all images: by class, or in their order where most classes have few images or there are none."""
    groups = by_class(count, labels, names)
    if len(groups) > max(MOST_CLASSES, _columns(groups)):
        return by_class(count, None)
    return groups


def _columns(groups: list[Group]) -> int:
    """Images in a row: about as many as there are rows, but no more than a group has; of classes, so that few cells are empty."""
    sizes = [len(group.images) for group in groups]
    square = math.ceil(math.sqrt(sum(sizes)))
    if len(sizes) == 1:
        return min(sizes[0], square)
    near = range(square - square // NEAR, square + square // NEAR + 1)
    cells = {min(max(sizes), each): 0 for each in sorted(near, key=lambda each: abs(each - square))}
    for each in cells:
        cells[each] = sum(-(-size // each) for size in sizes) * each
    return min(cells, key=lambda each: cells[each])


@stored("text `elbo-grid` of a PNG")
class GridText(Record, frozen=True):
    """A Layout. groups: [name, places] of each."""

    height: Side
    width: Side
    scale: Side
    columns: Side
    left: Annotated[int, Meta(ge=0, le=LARGEST_PICTURE)]
    groups: list[Annotated[list[str | list[Count]], Meta(min_length=2, max_length=2)]]


@dataclass(frozen=True)
class Layout:
    """Places of images on a picture. height, width: of an image, before it is enlarged `scale` times.

    left: pixels beside the images, for names. Each group begins a row.
    """

    height: int
    width: int
    scale: int
    columns: int
    left: int
    groups: list[Group]

    @property
    def rows(self) -> int:
        """Rows of images."""
        return sum(self._rows_of(group) for group in self.groups)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels."""
        return self.left + self.columns * self.width * self.scale, self.rows * self.height * self.scale

    def _rows_of(self, group: Group) -> int:
        return -(-len(group.images) // self.columns)

    def begins(self) -> Iterator[tuple[Group, int, int]]:
        """Yield each group, the row that it begins in, and how many rows it has."""
        row = 0
        for group in self.groups:
            yield group, row, self._rows_of(group)
            row += self._rows_of(group)

    def cells(self) -> np.ndarray:
        """The cell of each image, counted row by row: int [N]."""
        cell = np.empty(sum(len(group.images) for group in self.groups), np.int64)
        for group, row, _ in self.begins():
            cell[group.images] = row * self.columns + np.arange(len(group.images))
        return cell

    def check(self, where: object) -> None:
        """Raise UsageError when the picture would be too large to be opened anywhere."""
        width, height = self.size
        if width * height > LARGEST_PICTURE:
            remedy = "use a smaller --scale, fewer images, or a folder, .npy, .npz or .h5"
            raise UsageError(f"{where}: a grid of {width} x {height} pixels is too large for a picture; {remedy}")

    def text(self) -> str:
        """It as text, for `layout_of`."""
        groups: list[Any] = [[group.name, list(group.images)] for group in self.groups]
        said = GridText(self.height, self.width, self.scale, self.columns, self.left, groups)
        return json.dumps(said.json())


def lay_out(height: int, width: int, groups: list[Group], scale: int = 0) -> Layout:
    """Find places for images of height x width pixels. scale: 0 is so that a cell is easily seen."""
    columns = _columns(groups)
    scale = scale or max(1, min(whole_factor(max(height, width)), WIDE // (columns * width)))
    names = [group.name for group in groups]
    left = Lettering(height * scale).width(names) if any(names) else 0
    return Layout(height, width, scale, columns, left, [Group(each.name, list(each.images)) for each in groups])


def layout_of(text: str, size: tuple[int, int], where: object) -> Layout:
    """Read what `Layout.text` wrote into a picture of that width and height. Raises FormatError when it can't be of it."""
    what = f"{where}: what it says of its images is damaged"
    with reading(what):
        said = GridText.of(parse_json(text, what), what)
        groups = [Group(shown_name(str(name)), [*images]) for name, images in said.groups]
        held = sorted(each for group in groups for each in group.images)
        if not held or held != list(range(len(held))):
            raise ValueError("no such places")
        layout = Layout(said.height, said.width, said.scale, said.columns, said.left, groups)
        if layout.size != size or not all(group.images for group in groups):
            raise ValueError(f"places for {layout.size}, in a picture of {size}")
        return layout


def draw_grid(images: np.ndarray, layout: Layout) -> Image.Image:
    """Draw uint8 images [N, H, W, C] at their places, each pixel as a square of `scale` pixels, and the names."""
    height, width, channels = images.shape[1:]
    sheet = np.full((layout.rows * layout.columns, height, width, channels), PAPER, np.uint8)
    sheet[layout.cells()] = images
    plain = sheet.reshape(layout.rows, layout.columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    plain = plain.reshape(layout.rows * height, layout.columns * width, channels)
    whole = picture(plain.repeat(layout.scale, 0).repeat(layout.scale, 1))
    if not layout.left:
        return whole
    row = height * layout.scale
    letters, found = Lettering(row), Image.new(whole.mode, layout.size, (PAPER,) * channels)
    found.paste(whole, (layout.left, 0))
    for group, begin, rows in layout.begins():  # on a strip of its own: no letter reaches into another's
        found.paste(letters.strip(group.name, layout.left, rows * row), (0, begin * row))
    return found


def cut_up(sheet: np.ndarray, layout: Layout) -> np.ndarray:
    """The images [N, H, W, C] of a grid [height, width, C], pixel for pixel."""
    plain = sheet[:: layout.scale, layout.left :: layout.scale]
    cells = plain.reshape(layout.rows, layout.height, layout.columns, layout.width, -1).transpose(0, 2, 1, 3, 4)
    return cells.reshape(-1, layout.height, layout.width, sheet.shape[2])[layout.cells()]


def save_grid(file: IO[bytes], images: np.ndarray, layout: Layout) -> None:
    """Write a grid as PNG, with the places of its images."""
    told = PngInfo()
    told.add_text(PLACES, layout.text(), zip=True)
    draw_grid(images, layout).save(file, "png", pnginfo=told)


def write_grid(path: Path, images: np.ndarray, layout: Layout) -> None:
    """Write a grid as a PNG of that name. Raises DataError when the disk is full."""
    with new_file(path) as file:
        save_grid(file, images, layout)
