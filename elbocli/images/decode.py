"""From the bytes of an image file to a square of uint8 pixels. Needs Pillow and numpy, not torch."""

from __future__ import annotations

import contextlib
import io
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from elbocli.errors import DataError, ElboError, UsageError
from elbocli.images.crops import CROPS, MOST_PIXELS
from elbocli.images.decode_apart import APART, decode_apart
from elbocli.images.image_refs import Shape
from elbocli.images.memory_budget import Room

# Pillow warns above it and raises above twice as many; images inside of icons are checked by it alone.
Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2
MAX_ASPECT = 100
# Pillow's warnings about odd files are left out: what matters is raised, file by file.
warnings.filterwarnings("ignore", module=r"PIL\.")
MODES = {1: "L", 3: "RGB"}
PLAIN_GREY = ("1", "L", "I", "I;16", "I;16B")
GREY = (*PLAIN_GREY, "LA")
USUAL = ("JPEG", "PNG", "WEBP")
STRIP_PIXELS = 1 << 20
DECODER_BYTES = {"WEBP": 16, "JPEG2000": 19, "AVIF": 10}
"""Bytes of memory a pixel takes at most in decoders that hold an image several times; measured with Pillow 13."""
TILE = (322, 323)
"""TIFF's tags of the width and height of its tiles. Source: TIFF 6.0."""
LARGEST_TILE = 16 << 20
"""Pixels."""
SCAN = b"\xff\xda"
"""A JPEG's mark of a scan. Source: ITU T.81."""
MOST_SCANNED = 50 * MOST_PIXELS
"""Pixels of all scans of a progressive JPEG: some seconds."""
LARGEST_DECODED = 8 * MOST_PIXELS
"""Bytes for one image and for all threads' images together: Pillow has 4 a pixel, and again 4 after a conversion."""
_room = Room(LARGEST_DECODED)


@dataclass(frozen=True)
class DecodeOptions:
    """Settings that decide how an image becomes a square. background: a colour that transparency is laid on and that pads; '' drops alpha.

    auto_orient: turn as EXIF says. fast: decode JPEG at reduced scale, which changes pixels. grey_expected: count an image
    in colour as changed when it becomes grey.
    """

    size: int
    channels: int = 3
    crop: str = "center"
    background: str = ""
    auto_orient: bool = False
    fast: bool = False
    grey_expected: bool = False

    @property
    def colour(self) -> tuple[int, ...]:
        """The background in the image's channels; white unless given. Raises UsageError."""
        try:
            found = ImageColor.getcolor(self.background or "white", MODES[self.channels])
        except ValueError as error:
            raise UsageError(f"background {self.background!r}: not a colour; try white, black or #8090a0") from error
        return found if isinstance(found, tuple) else (found,)


FORMATS = (*USUAL, *APART, "BMP", "DIB", "GIF", "PCX", "PPM", "QOI", "SGI", "SUN", "TGA", "TIFF")
"""Formats that are decoded: those that images to learn from come in, and whose decoders take memory by the size that they
say. Others, such as icons, hold images of others, or run programs on the file (PostScript)."""


def open_image(content: bytes) -> Image.Image:
    """Open without decoding. Never runs another program. Raises Pillow's errors."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def decode(content: bytes, channels: int, how: DecodeOptions | None = None) -> tuple[Image.Image, str]:
    """Decode an image file. Returns (image in 1 or 3 channels, what had to be changed: '' or e.g. 'alpha dropped').

    channels: 1, 3, or 0 for as many as the file has. Raises DataError.
    16-bit grey is scaled by 1/257. An animation gives its first frame. Transparency is dropped, and EXIF's orientation
    ignored, as in ADM, unless `how` says otherwise.
    """
    with _decoded(content, how or DecodeOptions(0, channels)) as found:
        return found


def header_shape(content: bytes) -> Shape:
    """Read (H, W, C) from an image file's header, without decoding; C is 1 for grey, otherwise 3. Raises DataError."""
    with _opened(content, DecodeOptions(0)) as image:
        return image.size[1], image.size[0], 1 if image.mode in GREY else 3


@contextlib.contextmanager
def _decoded(content: bytes, how: DecodeOptions) -> Iterator[tuple[Image.Image, str]]:
    """Decode as `decode` does, for a block during which the memory counts as taken."""
    with _opened(content, how) as image:
        change = ["first frame of several"] if getattr(image, "is_animated", False) else []
        if image.format in APART:
            image = decode_apart(content, image.format)
        image.load()
        upright = image
        if how.auto_orient and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            upright, change = ImageOps.exif_transpose(image), [*change, "turned"]
        plain, converted = _plain(upright, how)
        if how.grey_expected and image.mode not in GREY:
            converted = [*converted, "colour made grey"]
        for used in (image, upright):
            if used is not plain:
                used.close()
        yield plain, ", ".join([*change, *converted])


@contextlib.contextmanager
def _opened(content: bytes, how: DecodeOptions) -> Iterator[Image.Image]:
    """Open an image file for a block, during which the memory for decoding it counts as taken. Raises DataError."""
    if not content:
        raise DataError("empty file")
    try:
        # Pillow makes room for a WebP's pixels when it opens one.
        early = _memory("WEBP", _webp_size(content)) if content[8:12] == b"WEBP" else 0
        with (
            _room.claim(early),
            open_image(content) as image,
            _room.claim(0 if early else _needed(image, content, how)),
        ):
            yield image
    except ElboError:
        raise
    except UnidentifiedImageError:
        raise DataError(_unknown(content)) from None
    except Image.DecompressionBombError as error:
        raise DataError("too many pixels, or too long and thin: more than one image may have") from error
    except MemoryError as error:
        raise DataError("does not decode: it needs more memory than there is") from error
    except Exception as error:  # Pillow's forty decoders raise anything on damaged files
        raise DataError(f"does not decode: {str(error)[:120] or type(error).__name__}") from error


def _needed(image: Image.Image, content: bytes, how: DecodeOptions) -> int:
    """Bytes that decoding an opened image takes. Raises DataError when that, or the shape, is beyond reason."""
    needed = _memory(image.format or "", image.size)
    if how.fast and image.format == "JPEG":
        image.draft(None, (2 * how.size, 2 * how.size))
    if image.info.get("progressive"):
        needed = _memory("progressive JPEG", image.size, 4 + 2 * len(image.getbands()))
        scans = content.count(SCAN)  # nowhere else in a JPEG
        if scans * math.prod(image.size) > MOST_SCANNED:
            raise DataError(f"takes too long to decode: {scans} scans of {image.size[0]} x {image.size[1]} pixels")
    if isinstance(image, TiffImageFile):
        tile = math.prod(max(1, _number(image.tag_v2.get(tag))) for tag in TILE)
        if tile > max(LARGEST_TILE, math.prod(image.size)):
            raise DataError(f"its tiles have {tile} pixels, and it has {image.size[0]} x {image.size[1]}")
    return needed


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 1


def _memory(kind: str, size: tuple[int, int], each: int = 8) -> int:
    width, height = size
    if width * height > MOST_PIXELS or max(size) > MAX_ASPECT * min(size):
        raise DataError(f"too many pixels, or too long and thin: {width} x {height}")
    needed = width * height * DECODER_BYTES.get(kind, each)
    if needed > LARGEST_DECODED:
        raise DataError(f"too many pixels for {kind}, which takes much memory to decode: {width} x {height}")
    return needed


def _webp_size(content: bytes) -> tuple[int, int]:
    """Read (width, height) from the first chunk of a WebP file. Source: RFC 9649."""
    if content[12:16] == b"VP8X":
        return 1 + int.from_bytes(content[24:27], "little"), 1 + int.from_bytes(content[27:30], "little")
    if content[12:16] == b"VP8L":
        bits = int.from_bytes(content[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(content[26:28], "little") & 0x3FFF, int.from_bytes(content[28:30], "little") & 0x3FFF


def _unknown(content: bytes) -> str:
    head = content[:256].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "not an image: a web page, perhaps an error that was saved in its place"
    if head.startswith(b"pk\x03\x04"):
        return "not an image: a zip archive; unpack it, or give it as a source of its own"
    if head.isascii() and b"\0" not in head:
        return "not an image: text"
    return "not an image, or of a format that elbo does not read"


def _plain(image: Image.Image, how: DecodeOptions) -> tuple[Image.Image, list[str]]:
    """Convert to grey or RGB, some rows at a time, to save memory. Returns (image, what that changed)."""
    mode = image.mode
    target = MODES[how.channels or (1 if mode in PLAIN_GREY else 3)]
    if mode == "F":
        raise DataError("floating-point pixels: their range is not known; convert them first")
    if mode == "I" and not 0 <= image.getextrema()[0] <= image.getextrema()[1] < 1 << 16:  # type: ignore[operator]
        raise DataError("32-bit pixels: their range is not known; convert them first")
    if mode.startswith("I"):
        return _in_strips(image, lambda strip: _eight_bits(strip).convert(target), target), ["16-bit scaled"]
    if mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        if not how.background:
            return _in_strips(image, lambda strip: strip.convert("RGBA").convert(target), target), ["alpha dropped"]
        colour = ImageColor.getrgb(how.background)[:3]
        return _in_strips(image, lambda strip: _blended(strip, colour).convert(target), target), ["alpha blended"]
    if mode == target:
        return image, []
    through = "RGB" if mode in ("LAB", "HSV") else target
    changed = [] if mode in ("RGB", "L") else [f"{mode} converted"]
    return _in_strips(image, lambda strip: strip.convert(through).convert(target), target), changed


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Image.Image], target: str) -> Image.Image:
    width, height = image.size
    rows = max(1, STRIP_PIXELS // max(1, width))
    if rows >= height:
        return convert(image)
    out = Image.new(target, image.size)
    for top in range(0, height, rows):
        out.paste(convert(image.crop((0, top, width, min(height, top + rows)))), (0, top))
    return out


def _blended(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    sheet = Image.new("RGBA", image.size, colour)
    sheet.alpha_composite(image if image.mode == "RGBA" else image.convert("RGBA"))
    return sheet


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey by 1/257, rounded."""
    return Image.fromarray(((np.asarray(image).astype(np.int64) + 128) // 257).clip(0, 255).astype(np.uint8))


def square(content: bytes | np.ndarray, how: DecodeOptions) -> tuple[np.ndarray, str]:
    """Make a square of a file or of pixels [H, W, C]. Returns (uint8 [size, size, channels], what had to be changed).

    Raises DataError.
    """
    if isinstance(content, bytes):
        with _decoded(content, how) as (image, change):
            return _cut(image, how), change
    height, width, channels = content.shape
    with _room.claim(8 * height * width):
        image = Image.fromarray(content[..., 0] if channels == 1 else content)
        return _cut(image if channels == how.channels else image.convert(MODES[how.channels]), how), ""


def _cut(image: Image.Image, how: DecodeOptions) -> np.ndarray:
    pixels = np.asarray(CROPS[how.crop].cut(image, how.size, how.colour))
    return pixels[..., None] if pixels.ndim == 2 else pixels
