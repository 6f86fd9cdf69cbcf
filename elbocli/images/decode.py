"""From the bytes of an image file to a square of uint8 pixels. Needs Pillow and numpy, not torch."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import AvifImagePlugin, ExifTags, Image, ImageColor, ImageOps, UnidentifiedImageError

from elbocli.errors import DataError, ElboError, UsageError
from elbocli.images.crops import CROPS
from elbocli.images.image_refs import ImageRef, Shape

MAX_ASPECT = 100
FORMATS = (
    *("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000"),
    *("BMP", "DIB", "GIF", "PCX", "PPM", "QOI", "SGI", "SUN", "TGA", "TIFF"),
)
"""Formats that are decoded. Others hold images of others, such as icons, or run programs on the file (PostScript)."""
# Pillow's warnings about odd files are left out: what matters is raised, file by file.
warnings.filterwarnings("ignore", module=r"PIL\.")
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # prep decodes in threads of its own
MODES = {1: "L", 3: "RGB"}
PLAIN_GREY = ("1", "L", "I", "I;16", "I;16B")
GREY = (*PLAIN_GREY, "LA")
HEAD = 1 << 18
"""Bytes of an image file that hold its header, nearly always."""


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
            colour = ImageColor.getcolor(self.background or "white", MODES[self.channels])
        except ValueError as error:
            raise UsageError(f"background {self.background!r}: not a colour; try white, black or #8090a0") from error
        return colour if isinstance(colour, tuple) else (colour,)


def open_image(content: bytes) -> Image.Image:
    """Open without decoding. Never runs another program. Raises Pillow's errors."""
    return Image.open(io.BytesIO(content), formats=FORMATS)


def decode(content: bytes, channels: int, how: DecodeOptions | None = None) -> tuple[Image.Image, str]:
    """Decode an image file. Returns (image in 1 or 3 channels, what had to be changed: '' or e.g. 'alpha dropped').

    channels: 1, 3, or 0 for as many as the file has. Raises DataError.
    16-bit grey is scaled by 1/257. An animation gives its first frame. Transparency is dropped, and EXIF's orientation
    ignored, as in ADM, unless `how` says otherwise.
    """
    how = how or DecodeOptions(0, channels)
    if not content:
        raise DataError("empty file")
    try:
        with open_image(content) as image:
            _check_aspect(image)
            change = ["first frame of several"] if getattr(image, "is_animated", False) else []
            if how.fast and image.format == "JPEG":
                image.draft(None, (2 * how.size, 2 * how.size))
            image.load()
            upright: Image.Image = image
            if how.auto_orient and image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
                upright, change = ImageOps.exif_transpose(image), [*change, "turned"]
            plain, converted = _plain(upright, how)
            if how.grey_expected and image.mode not in GREY:
                converted = [*converted, "colour made grey"]
            return plain, ", ".join([*change, *converted])
    except Exception as error:
        raise _trouble(error, content) from error


def header_shape(ref: ImageRef) -> Shape:
    """Read (H, W, C) from an image file's header, without decoding; C is 1 for grey, otherwise 3. Raises DataError."""
    content = ref.read(HEAD)
    if isinstance(content, np.ndarray):
        height, width, channels = content.shape
        return height, width, channels
    try:
        return _shape(content)
    except DataError:
        return _shape(bytes(ref.read()))


def _shape(content: bytes) -> Shape:
    try:
        with open_image(content) as image:
            _check_aspect(image)
            return image.size[1], image.size[0], 1 if image.mode in GREY else 3
    except Exception as error:
        raise _trouble(error, content) from error


def _check_aspect(image: Image.Image) -> None:
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise DataError(f"too long and thin: {image.size[0]} x {image.size[1]}")


def _trouble(error: Exception, content: bytes) -> ElboError:
    """Say what is wrong with an image file. error: Pillow's, whose decoders raise anything on damaged files."""
    if isinstance(error, ElboError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return DataError(_unknown(content))
    if isinstance(error, Image.DecompressionBombError):
        return DataError("too many pixels")
    return DataError(f"does not decode: {str(error)[:120] or type(error).__name__}")


def _unknown(content: bytes) -> str:
    head = content[:256].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "not an image: a web page, perhaps an error that was saved in its place"
    if head.startswith(b"pk\x03\x04"):
        return "not an image: a zip archive; unpack it, or give it as a source of its own"
    if content[:1] == b"\x80" and content[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return "not an image: a pickle, which could run code and is never opened; of CIFAR take the binary version"
    if head.isascii() and b"\0" not in head:
        return "not an image: text"
    return "not an image, or of a format that elbo does not read"


def _plain(image: Image.Image, how: DecodeOptions) -> tuple[Image.Image, list[str]]:
    """Convert to grey or RGB. Returns (image, what that changed)."""
    mode = image.mode
    target = MODES[how.channels or (1 if mode in PLAIN_GREY else 3)]
    if mode == "F":
        raise DataError("floating-point pixels: their range is not known; convert them first")
    if mode == "I" and not 0 <= image.getextrema()[0] <= image.getextrema()[1] < 1 << 16:  # type: ignore[operator]
        raise DataError("32-bit pixels: their range is not known; convert them first")
    if mode.startswith("I"):
        scaled = (np.asarray(image).astype(np.int64) + 128) // 257
        return Image.fromarray(scaled.clip(0, 255).astype(np.uint8)).convert(target), ["16-bit scaled"]
    if mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if not how.background:
            return image.convert(target), ["alpha dropped"]
        sheet = Image.new("RGBA", image.size, ImageColor.getrgb(how.background)[:3])
        sheet.alpha_composite(image)
        return sheet.convert(target), ["alpha blended"]
    if mode in ("LAB", "HSV"):
        image = image.convert("RGB")
    return image.convert(target), [] if mode in ("RGB", "L") else [f"{mode} converted"]


def square(content: bytes | np.ndarray, how: DecodeOptions) -> tuple[np.ndarray, str]:
    """Make a square of a file or of pixels [H, W, C]. Returns (uint8 [size, size, channels], what had to be changed).

    Raises DataError.
    """
    if isinstance(content, bytes):
        image, change = decode(content, how.channels, how)
    else:
        image, change = Image.fromarray(content[..., 0] if content.shape[2] == 1 else content), ""
        image = image.convert(MODES[how.channels])
    pixels = np.asarray(CROPS[how.crop].cut(image, how.size, how.colour))
    return pixels[..., None] if pixels.ndim == 2 else pixels, change
