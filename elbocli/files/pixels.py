"""From the bytes of an image file to a square of uint8 pixels. Needs Pillow and numpy, not torch."""

from __future__ import annotations

import io
import struct
import threading
import warnings
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageColor, ImageOps, UnidentifiedImageError

from elbocli.errors import DataError, UsageError
from elbocli.files.crops import CROPS

Image.MAX_IMAGE_PIXELS = 89_478_485
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
MAX_ASPECT = 100
# What Pillow has to say about odd files is said per file, by what it raises.
warnings.filterwarnings("ignore", module=r"PIL\.")
MODES = {1: "L", 3: "RGB"}
USUAL = ("JPEG", "PNG", "WEBP")
DEEP_ROWS = 1 << 20
HEAVY_PIXELS, HEAVY_BYTES = 16 << 20, 16 << 20
_heavy = threading.RLock()
"""Held while a large image is decoded: one at a time, so that memory is bounded whatever the number of threads."""
UNDECODABLE = (OSError, ValueError, SyntaxError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)


@dataclass(frozen=True)
class Decoding:
    """How images become squares. background: a colour that transparency is laid on and that pads; '' drops alpha.

    auto_orient: turn as EXIF says. fast: decode JPEG at reduced scale, which changes pixels.
    """

    size: int
    channels: int = 3
    crop: str = "center"
    background: str = ""
    auto_orient: bool = False
    fast: bool = False

    @property
    def colour(self) -> tuple[int, ...]:
        """The background in the image's channels; white unless given. Raises UsageError."""
        try:
            found = ImageColor.getcolor(self.background or "white", MODES[self.channels])
        except ValueError as error:
            raise UsageError(f"background {self.background!r}: not a colour; try white, black or #8090a0") from error
        return found if isinstance(found, tuple) else (found,)


@cache
def _formats() -> tuple[str, ...]:
    """Everything Pillow reads by itself, the usual first. For PostScript it would run Ghostscript on the file."""
    Image.init()
    return (*USUAL, *sorted(set(Image.OPEN) - {"EPS", *USUAL}))


def open_image(content: bytes) -> Image.Image:
    """Open without decoding. Never runs another program. Raises Pillow's errors."""
    return Image.open(io.BytesIO(content), formats=_formats())


def decode(content: bytes, channels: int, how: Decoding | None = None) -> tuple[Image.Image, str]:
    """(image in 1 or 3 channels, what had to be changed: '' or e.g. 'alpha dropped'). Raises DataError.

    16-bit grey is scaled by 1/257. Of an animation it is the first frame. Transparency is dropped, and EXIF's
    orientation ignored, as in ADM, unless `how` says otherwise.
    """
    how = how or Decoding(0, channels)
    if not content:
        raise DataError("empty file")
    with ExitStack() as stack:
        try:
            if len(content) > HEAVY_BYTES:
                stack.enter_context(_heavy)
            image = stack.enter_context(open_image(content))
            width, height = image.size
            if width * height > MAX_PIXELS or max(width, height) > MAX_ASPECT * min(width, height):
                raise DataError(f"too many pixels, or too long and thin: {width} x {height}")
            if width * height > HEAVY_PIXELS:
                stack.enter_context(_heavy)
            change = ["first frame of several"] if getattr(image, "is_animated", False) else []
            if how.fast and image.format == "JPEG":
                image.draft(None, (2 * how.size, 2 * how.size))
            image.load()
            if how.auto_orient and image.getexif().get(0x0112, 1) != 1:
                image, change = ImageOps.exif_transpose(image), [*change, "turned"]
            plain, converted = _plain(image, how)
            return plain, ", ".join([*change, *converted])
        except UnidentifiedImageError:
            raise DataError(_unknown(content)) from None
        except Image.DecompressionBombError as error:
            raise DataError("too many pixels, or too long and thin: more than one image may have") from error
        except MemoryError as error:
            raise DataError("does not decode: it needs more memory than there is") from error
        except (*UNDECODABLE, zlib.error) as error:
            raise DataError(f"does not decode: {str(error)[:120] or type(error).__name__}") from error


def _unknown(content: bytes) -> str:
    head = content[:256].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "not an image: a web page, perhaps an error that was saved in its place"
    return "not an image that Pillow knows"


def _plain(image: Image.Image, how: Decoding) -> tuple[Image.Image, list[str]]:
    mode, target = image.mode, MODES[how.channels]
    if mode == "F":
        raise DataError("floating-point pixels: their range is not known; convert them first")
    if mode.startswith("I"):
        return _eight_bits(image).convert(target), ["16-bit scaled"]
    if mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layered = image if mode == "RGBA" else image.convert("RGBA")
        if not how.background:
            return layered.convert(target), ["alpha dropped"]
        sheet = Image.new("RGBA", image.size, ImageColor.getrgb(how.background)[:3])
        sheet.alpha_composite(layered)
        return sheet.convert(target), ["alpha blended"]
    if mode == target:
        return image, []
    return image.convert(target), [] if mode in ("RGB", "L") else [f"{mode} converted"]


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey by 1/257, rounded; some rows at a time, because numbers in between are larger than pixels."""
    deep = np.asarray(image)
    out = np.empty(deep.shape, np.uint8)
    rows = max(1, DEEP_ROWS // max(1, deep.shape[1]))
    for start in range(0, len(deep), rows):
        part = deep[start : start + rows].astype(np.int64)
        out[start : start + rows] = ((part + 128) // 257).clip(0, 255)
    return Image.fromarray(out)


def square(content: bytes | np.ndarray, how: Decoding) -> tuple[np.ndarray, str]:
    """(pixels [size, size, channels] uint8, what had to be changed), from a file or from pixels [H, W, C].

    Raises DataError.
    """
    if isinstance(content, np.ndarray):
        image = Image.fromarray(content[..., 0] if content.shape[-1] == 1 else content).convert(MODES[how.channels])
        change = ""
    else:
        image, change = decode(content, how.channels, how)
    pixels = np.asarray(CROPS[how.crop].cut(image, how.size, how.colour))
    return (pixels[..., None] if pixels.ndim == 2 else pixels), change
