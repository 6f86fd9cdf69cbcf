"""Arrays of pixels as pictures: one image, or many in a grid."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from elbocli.files.atomic import writing


def picture(image: np.ndarray) -> Image.Image:
    """Turn uint8 pixels [H, W, 1 or 3] into an image of Pillow's."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def grid(images: np.ndarray) -> Image.Image:
    """Lay uint8 images [N, H, W, C] out as one picture, row by row, about as wide as high."""
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows, columns, height, width, channels), np.uint8)
    sheet.reshape(-1, height, width, channels)[:n] = images
    return picture(sheet.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels))


def write_grid(path: Path, images: np.ndarray) -> None:
    """Save `grid(images)` as PNG. Raises DataError when the disk is full."""
    with writing(path) as file:
        grid(images).save(file, "png")
