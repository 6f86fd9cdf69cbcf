"""Rows of pictures for a page: what a run drew as it was trained, and its samples by class. PNG, of bounded size."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from elbocli.errors import DataError
from elbocli.images.decode import decode
from elbocli.images.image_refs import read_bytes
from elbocli.images.samples import read_samples
from elbocli.run.folder import PREVIEW_COUNT

ROW = 8
"""Pictures in a row."""
TIMES = 7
CLASSES = 16
"""At most so many rows of previews, and of classes."""
LARGEST_TILE = 96
"""Pixels: larger pictures are made smaller."""


@dataclass(frozen=True)
class Thumbnails:
    """A row of pictures, PNG, and what stands beside it. tile: the side of one in pixels, as stored."""

    name: str
    png: bytes
    count: int
    tile: int


def thumbnails_of(name: str, images: Sequence[np.ndarray]) -> Thumbnails:
    """images: [H, W, C] uint8 each, of one size."""
    small, buffer = [], io.BytesIO()
    for image in images:
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        picture.thumbnail((LARGEST_TILE, LARGEST_TILE), Image.Resampling.LANCZOS)
        small.append(np.asarray(picture))
    Image.fromarray(np.concatenate(small, 1)).save(buffer, "png", optimize=True)
    return Thumbnails(name, buffer.getvalue(), len(images), small[0].shape[0])


def read_sheet(path: Path) -> np.ndarray:
    """A preview of training cut up again: [64, H, W, C]. Raises DataError."""
    side = round(PREVIEW_COUNT**0.5)
    try:
        picture, _ = decode(read_bytes(path), 3)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    sheet = np.asarray(picture)
    height, width = sheet.shape[:2]
    if height % side or width % side:
        raise DataError(f"{path}: {width} x {height} pixels are no sheet of {side} x {side} pictures")
    tiles = sheet.reshape(side, height // side, side, width // side, 3).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(-1, height // side, width // side, 3)


def chosen_times(count: int) -> list[int]:
    """Indices of the previews, of `count`, that are shown: the first and the last, and between them ever fewer, as less changes."""
    if count <= TIMES:
        return list(range(count))
    return sorted({round(count ** (place / (TIMES - 1))) - 1 for place in range(TIMES)})


def by_class(images: np.ndarray, labels: np.ndarray | None, names: list[str]) -> list[Thumbnails]:
    """A strip for each class, or for each ROW images when there are no labels."""
    return [thumbnails_of(name, [images[i] for i in rows]) for name, rows in _wanted(labels, len(images), names)]


def read_by_class(path: Path, names: list[str]) -> list[Thumbnails]:
    """The same of a file of samples, of which no more is read than it takes. Raises FormatError and DataError."""
    with read_samples(path) as reader:
        wanted = _wanted(reader.labels, reader.shape[0], names)
        images = {i: reader.at(i, 1)[0] for i in sorted({i for _, rows in wanted for i in rows})}
    return [thumbnails_of(name, [images[i] for i in rows]) for name, rows in wanted]


def _wanted(labels: np.ndarray | None, count: int, names: list[str]) -> list[tuple[str, list[int]]]:
    """The name and the images of each row: the first ROW of each class, of at most CLASSES spread over all there are."""
    if labels is None or (labels == labels[0]).all():
        starts = range(0, min(count, ROW * ROW), ROW)
        return [("", list(range(start, min(start + ROW, count)))) for start in starts]
    classes = np.unique(labels)
    if len(classes) > CLASSES:
        classes = classes[np.linspace(0, len(classes) - 1, CLASSES).round().astype(int)]
    called = [names[each] if 0 <= each < len(names) else str(each) for each in classes]
    return [(name, np.flatnonzero(labels == each)[:ROW].tolist()) for name, each in zip(called, classes)]
