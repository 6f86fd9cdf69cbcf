"""Pictures for the page of `elbo report`: contact sheets that `elbo train` drew as previews, and rows of images."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.contact_sheet import CELL, Group, by_class, whole_factor
from elbocli.files.contact_sheet import picture as picture_of
from elbocli.files.dataset import Dataset
from elbocli.files.losslog import NATS, read_table
from elbocli.files.reading import reading
from elbocli.files.resumable import LATENTS
from elbocli.images.samples import read_samples

ROW = 8  # pictures in a row
TIMES = 7  # largest number of previews
CLASSES = 16  # largest number of rows of classes
SHEET = 4 * CELL  # largest side of a preview in pixels


@dataclass(frozen=True)
class Thumbnails:
    """A row of `count` pictures, titled `name`. png: one PNG image, in base64."""

    name: str
    png: str
    count: int


def thumbnails_of(name: str, images: np.ndarray) -> Thumbnails:
    """Make a row of pictures. images: uint8 [N, H, W, C]."""
    shown = []
    for image in images:
        factor = whole_factor(max(image.shape[:2]))
        picture = picture_of(image.repeat(factor, 0).repeat(factor, 1))
        picture.thumbnail((CELL, CELL), Image.Resampling.LANCZOS)
        shown.append(np.asarray(picture))
    return Thumbnails(name, _png(Image.fromarray(np.concatenate(shown, 1))), len(images))


def _png(picture: Image.Image) -> str:
    # Returned: PNG in base64.
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def read_preview(path: Path) -> Thumbnails:
    """Return a contact sheet of `elbo train` as one picture, titled by its step. Raises DataError."""
    with reading(path, kind=DataError), Image.open(path, formats=["PNG"]) as sheet:
        sheet.thumbnail((SHEET, SHEET), Image.Resampling.LANCZOS)
        return Thumbnails(path.stem.removeprefix("step-").lstrip("0") or "0", _png(sheet), 1)


def chosen_times(count: int) -> list[int]:
    """Return indices of previews at geometric intervals. count: number of previews."""
    return sorted({round(count ** (place / (TIMES - 1))) - 1 for place in range(TIMES)}) if count else []


def strips(pick: Callable[[Sequence[int]], np.ndarray], groups: list[Group]) -> list[Thumbnails]:
    """Return a row of up to ROW pictures per class; for a single class, up to ROW rows.

    pick: function: indices → images, [N, H, W, C]. groups: indices of images by class.
    """
    if len(groups) == 1:
        images = groups[0].images[: ROW * ROW]
        rows = [("", images[start : start + ROW]) for start in range(0, len(images), ROW)]
    else:
        rows = [(group.name, group.images[:ROW]) for group in groups]
    return [thumbnails_of(name, pick(row)) for name, row in rows]


def read_by_class(path: Path, names: list[str]) -> list[Thumbnails]:
    """Return a row of pictures per class of a file of samples. names: class names. Raises FormatError and DataError."""
    with read_samples(path) as reader:
        groups = by_class(reader.shape[0], reader.labels, names, CLASSES)
        return strips(reader.pick, groups)


ROWS = 2  # of the likeliest images, and of the least likely


@dataclass(frozen=True)
class Extremes:
    """Pictures of the likeliest and the least likely images.

    path: file of `elbo bound --per-image`.
    by: column of the file that ranks the images.
    count: number of images in the file.
    likeliest, least: rows of pictures, the most extreme images first.
    """

    path: Path
    by: str
    count: int
    likeliest: list[Thumbnails]
    least: list[Thumbnails]


def read_extremes(path: Path, dataset: Path, digest: str | None) -> Extremes:
    """Return pictures of a dataset's likeliest and least likely images.

    path: file of 'elbo bound --per-image'.
    dataset: file of the measured images.
    digest: sha256 of the measured images; None: unknown.
    Raises FormatError, DataError: for a damaged file or other images.
    """
    table, data = read_table(path), Dataset(dataset, latents=True)
    by = [*table][2]
    if not by.startswith(NATS) or data.kind == LATENTS:
        raise DataError(f"{path}: holds {by!r} of {data.kind}; a page shows only nats of pixels; leave this file out")
    with reading(path, kind=DataError):
        index = table["index"]
        same = int(index.min()) >= 0 and bool((data.labels[index] == table["label"]).all())
    if not same or digest not in (None, data.payload_sha256):
        raise DataError(f"{data.path}: holds other images than {path}; run 'elbo bound --per-image' again")
    order = np.argsort(table[by], kind="stable")
    count = min(ROWS * ROW, len(order) // 2) or 1
    likeliest, least = (_rows_of(places[:count], table[by], data, index) for places in (order, order[::-1]))
    return Extremes(path, by, len(order), likeliest, least)


def _rows_of(places: np.ndarray, nats: np.ndarray, data: Dataset, index: np.ndarray) -> list[Thumbnails]:
    # places: of images in the table, whose columns are nats and index.
    return [
        thumbnails_of(f"{nats[part[0]]:.4g} to {nats[part[-1]]:.4g} nats", data.read(index[part]))
        for part in np.split(places, range(ROW, len(places), ROW))
    ]
