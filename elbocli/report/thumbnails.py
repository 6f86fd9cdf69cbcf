"""Rows of pictures for a page: what a run drew as it was trained, and its samples by class. PNG, of bounded size."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.grid import CELL, PLACES, Group, by_class, cut_up, lay_out, layout_of, whole_factor
from elbocli.files.grid import picture as picture_of
from elbocli.files.reading import naming
from elbocli.images.decode import decode, open_image
from elbocli.images.image_refs import read_bytes
from elbocli.images.samples import read_samples
from elbocli.run.folder import PREVIEW_COUNT

ROW = 8
"""Pictures in a row."""
TIMES = 7
CLASSES = 16
"""At most so many rows of previews, and of classes."""


@dataclass(frozen=True)
class Thumbnails:
    """A row of pictures, PNG, and what stands beside it."""

    name: str
    png: bytes
    count: int


def thumbnails_of(name: str, images: Sequence[np.ndarray]) -> Thumbnails:
    """images: [H, W, C] uint8 each, of one size: larger ones are made smaller, small ones are enlarged by a whole factor."""
    shown, buffer = [], io.BytesIO()
    for image in images:
        factor = whole_factor(max(image.shape[:2]))
        picture = picture_of(image.repeat(factor, 0).repeat(factor, 1))
        picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        shown.append(np.asarray(picture))
    Image.fromarray(np.concatenate(shown, 1)).save(buffer, "png", optimize=True)
    return Thumbnails(name, buffer.getvalue(), len(images))


@dataclass(frozen=True)
class Sheet:
    """A preview of training cut up again: images [64, H, W, C] in the order in which they were drawn, and the class of each."""

    images: np.ndarray
    groups: list[Group]


def read_sheet(path: Path) -> Sheet:
    """Read a preview; one that doesn't say where its images are has them in rows of 8. Raises DataError."""
    with naming(path):
        content = read_bytes(path)
        picture, _ = decode(content, 3)
        with open_image(content) as image:
            text = image.info.get(PLACES)
    side = round(PREVIEW_COUNT**0.5)
    width, height = picture.size
    if text is not None:
        layout = layout_of(text, picture.size, path)
    elif height % side or width % side:
        raise DataError(f"{path}: {width} x {height} pixels are no sheet of {side} x {side} pictures")
    else:
        layout = lay_out(height // side, width // side, by_class(PREVIEW_COUNT, None), 1)
    return Sheet(cut_up(np.asarray(picture), layout), layout.groups)


def chosen_times(count: int) -> list[int]:
    """Indices of the previews, of `count`, that are shown: the first and the last, and between them ever fewer, as less changes."""
    if count <= TIMES:
        return list(range(count))
    return sorted({round(count ** (place / (TIMES - 1))) - 1 for place in range(TIMES)})


def strips(images: Callable[[int], np.ndarray], groups: list[Group]) -> list[Thumbnails]:
    """A strip of the first ROW images of each class, or of each ROW images when there is but one. images: [H, W, C] of an index."""
    if len(groups) == 1:
        found = groups[0].images[: ROW * ROW]
        groups = [Group("", found[start : start + ROW]) for start in range(0, len(found), ROW)]
    else:
        groups = [Group(group.name, group.images[:ROW]) for group in groups]
    read = {index: images(index) for index in sorted({index for group in groups for index in group.images})}
    return [thumbnails_of(group.name, [read[index] for index in group.images]) for group in groups]


def read_by_class(path: Path, names: list[str]) -> list[Thumbnails]:
    """Strips of a file of samples, of which no more is read than it takes. Raises FormatError and DataError."""
    with read_samples(path) as reader:
        groups = by_class(reader.shape[0], reader.labels, names, CLASSES)
        return strips(lambda index: reader.at(index, 1)[0], groups)
