"""From the bytes of an image file to a square of uint8 pixels. Needs Pillow and numpy, not torch."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from elbocli.errors import DataError

Image.MAX_IMAGE_PIXELS = 178_956_970
MAX_PIXELS = 2 * Image.MAX_IMAGE_PIXELS
MAX_ASPECT = 100
MODES = {1: "L", 3: "RGB"}
CROPS = ("center", "none")


def read_bytes(path: Path) -> bytes:
    """A regular file's content. Raises DataError for pipes, sockets, loops and files that can't be read."""
    try:
        if not path.is_file():
            raise DataError("not a regular file")
        return path.read_bytes()
    except OSError as error:
        raise DataError(error.strerror or str(error)) from error


@cache
def _formats() -> tuple[str, ...]:
    """Everything Pillow reads by itself: for PostScript it would run Ghostscript on the file."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - {"EPS"}))


def open_image(content: bytes) -> Image.Image:
    """Open without decoding. Never runs another program. Raises Pillow's errors."""
    return Image.open(io.BytesIO(content), formats=_formats())


def decode(content: bytes, channels: int) -> tuple[Image.Image, str]:
    """(image in 1 or 3 channels, what had to be changed: '' or e.g. 'alpha dropped'). Raises DataError.

    16-bit grey is scaled by 1/257. Transparency is dropped, not blended. EXIF orientation is ignored, as in ADM.
    """
    if not content:
        raise DataError("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = open_image(content)
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise DataError(f"{width} x {height} pixels: too many or too long and thin")
            image.load()
    except UnidentifiedImageError:
        raise DataError("not an image that Pillow knows") from None
    except Image.DecompressionBombError as error:
        raise DataError("too many pixels for one image") from error
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, MemoryError) as error:
        raise DataError(f"does not decode: {error}") from error
    return _plain(image, channels)


def _plain(image: Image.Image, channels: int) -> tuple[Image.Image, str]:
    mode, change = image.mode, ""
    if mode == "F":
        raise DataError("floating-point pixels: their range is not known; convert them first")
    if mode.startswith("I"):
        deep = np.asarray(image.convert("I"))
        image, change = Image.fromarray(np.clip(np.rint(deep / 257), 0, 255).astype(np.uint8)), "16-bit scaled"
    elif mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image, change = image.convert("RGBA"), "alpha dropped"
    elif mode not in ("RGB", "L"):
        change = f"{mode} converted"
    return image.convert(MODES[channels]), change


def center_crop(image: Image.Image, size: int) -> np.ndarray:
    """ADM's centre crop: halve by BOX while at least twice too large, bicubic to the short side, cut the middle.

    [size, size, C] uint8. Source: Dhariwal & Nichol 2021, the preparation of their training images.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (image.size[0] - size) // 2, (image.size[1] - size) // 2
    return _array(image.crop((left, top, left + size, top + size)))


def _array(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def square(content: bytes, size: int, channels: int, crop: str) -> tuple[np.ndarray, str]:
    """(pixels [size, size, channels] uint8, what had to be changed). Raises DataError."""
    image, change = decode(content, channels)
    if crop == "center":
        return center_crop(image, size), change
    if image.size != (size, size):
        raise DataError(f"{image.size[0]} x {image.size[1]} pixels; --crop none takes only {size} x {size}")
    return _array(image), change
