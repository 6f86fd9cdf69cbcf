"""Decode image files to squares of uint8 pixels, without torch."""

import io
import warnings
from collections.abc import Callable

import numpy as np
from PIL import AvifImagePlugin, Image, UnidentifiedImageError

from elbocli.data.registry import Shape
from elbocli.data.settings import DecodeOptions
from elbocli.errors import DataError
from elbocli.files.contact_sheet import picture
from elbocli.files.reading import reading

FORMATS = (  # without icons, and without PostScript, which runs programs
    *("JPEG", "PNG", "WEBP", "AVIF", "JPEG2000"),
    *("BMP", "DIB", "GIF", "PCX", "PPM", "QOI", "SGI", "SUN", "TGA", "TIFF"),
)
SUFFIXES = tuple(end for end, name in Image.registered_extensions().items() if name in FORMATS)
# Pillow's warnings about odd files are ignored, because errors are raised for each file.
warnings.filterwarnings("ignore", module=r"PIL\.")
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # prep decodes in threads of its own
MODES = {0: "RGB", 1: "L", 3: "RGB"}
PLAIN_GREY = ("1", "L", "I", "I;16", "I;16B")
GREY = (*PLAIN_GREY, "LA")
BOX = Image.Resampling.BOX
BICUBIC = Image.Resampling.BICUBIC
LANCZOS = Image.Resampling.LANCZOS


# Crops of an image of any shape to a square


def center(image: Image.Image, size: int) -> Image.Image:
    """Crop to the centre as ADM does.

    Source: Dhariwal & Nichol 2021, preparation of the training images.
    Raises DataError: when the image is too long and thin.
    """
    while min(image.size) >= 2 * size:
        image = halve(image)
    scale = size / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    if width * height > (Image.MAX_IMAGE_PIXELS or 0):
        raise DataError(f"too long and thin: {width} x {height} after resizing the short side to {size}; use another --crop")
    return _middle(image.resize((width, height), BICUBIC), size)


def edm(image: Image.Image, size: int) -> Image.Image:
    """Cut out the middle square and resize it by Lanczos, as EDM does."""
    return _middle(image, min(image.size)).resize((size, size), LANCZOS)


def resize(image: Image.Image, size: int) -> Image.Image:
    """Resize to a square by Lanczos, without cropping."""
    return image.resize((size, size), LANCZOS)


def none(image: Image.Image, size: int) -> Image.Image:
    """Return the image. Raises DataError unless it has size × size pixels."""
    if image.size != (size, size):
        raise DataError(f"{image.width} x {image.height} pixels; --crop none takes only {size} x {size}; use another --crop")
    return image


CROPS: dict[str, tuple[Callable[..., Image.Image], str]] = {  # name → (function, filters as recorded in the dataset)
    "center": (center, "box, bicubic"),
    "edm": (edm, "lanczos"),
    "resize": (resize, "lanczos"),
    "none": (none, "none"),
}


def _middle(image: Image.Image, size: int) -> Image.Image:
    left = (image.width - size) // 2
    top = (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def halve(image: Image.Image) -> Image.Image:
    """Halve each side, rounded down, with the BOX filter."""
    # Pillow resizes one axis after the other, and rounds in between. For an axis of even length, BOX is the rounded
    # mean of two pixels, which `reduce` computes faster.
    width, height = image.size
    if 10 * height > 19 * width:  # since Pillow 13, tall images are resized vertically first
        return image.resize((width // 2, height // 2), BOX)
    image = image.resize((width // 2, height), BOX) if width % 2 else image.reduce((2, 1))
    return image.resize((width // 2, height // 2), BOX) if height % 2 else image.reduce((1, 2))


# Image files


def is_picture(name: str) -> bool:
    """Tell whether a file name has the suffix of an image."""
    return name.lower().endswith(SUFFIXES)


def open_image(content: bytes) -> Image.Image:
    """Open an image without decoding it. Raises DataError if the file is no image."""
    try:
        return Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise DataError("not an image, or of a format that elbo does not read") from error


def decode(content: bytes, how: DecodeOptions) -> tuple[Image.Image, str]:
    """Decode an image file.

    Returns: image of 1 or 3 channels; changes, such as 'alpha dropped', or ''.
    Raises DataError: for a damaged file.
    """
    # Pillow's decoders raise exceptions of any type for damaged files.
    with reading("does not decode", kind=DataError), open_image(content) as image:
        changes = ["first frame of several"] if getattr(image, "is_animated", False) else []
        image.load()
        plain, change = _plain(image, how)
        changes.append(change)
        if how.grey_expected and image.mode not in GREY:
            changes.append("colour made grey")
    return plain, ", ".join(filter(None, changes))


def header_shape(content: bytes) -> Shape:
    """Return (H, W, C) from an image file's header; C is 1 or 3. Raises DataError or Pillow's errors."""
    image = open_image(content)
    return image.height, image.width, 1 if image.mode in GREY else 3


def _plain(image: Image.Image, how: DecodeOptions) -> tuple[Image.Image, str]:
    """Convert to grey or RGB. Returns: image; change, such as 'alpha dropped', or ''."""
    mode = image.mode
    target = MODES[how.channels or (1 if mode in PLAIN_GREY else 3)]
    if mode[0] in "IF":
        levels = np.asarray(image)
        if mode == "F" or levels.min() < 0 or levels.max() >= 1 << 16:
            raise DataError("32-bit pixels have no known range; convert to 8 or 16 bits")
        scaled = (levels.astype(np.int64) + 128) // 257
        return Image.fromarray(scaled.astype(np.uint8)).convert(target), "16-bit scaled"
    if image.has_transparency_data:
        return image.convert("RGBA").convert(target), "alpha dropped"
    if mode in ("LAB", "HSV"):
        image = image.convert("RGB")
    return image.convert(target), "" if mode in ("RGB", "L") else f"{mode} converted"


def square(content: bytes | np.ndarray, how: DecodeOptions) -> tuple[np.ndarray, str]:
    """Decode and crop an image to a square.

    content: image file, or pixels [H, W, C].
    Returns: pixels, uint8 [size, size, channels]; changes, such as 'alpha dropped', or ''.
    Raises DataError: if the image can't be decoded or cropped.
    """
    if isinstance(content, bytes):
        image, change = decode(content, how)
    elif content.shape == (how.size, how.size, how.channels):
        return content, ""
    else:
        image = picture(content).convert(MODES[how.channels])
        change = ""
    pixels = np.asarray(CROPS[how.crop][0](image, how.size))
    return pixels.reshape(how.size, how.size, -1), change
