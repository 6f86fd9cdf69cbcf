"""Ways to keep images in a dataset: as plain pixels, or losslessly encoded, each image by itself."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.grid import picture
from elbocli.files.reading import reading


@dataclass(frozen=True)
class Encoding:
    """A lossless image format. claim: its usual share of the plain size, to claim on the disk beforehand."""

    name: str
    claim: float
    options: dict[str, Any]

    def encode(self, pixels: np.ndarray) -> bytes:
        """Pixels uint8 [H, W, 1 or 3] as one file of the format."""
        buffer = io.BytesIO()
        picture(pixels).save(buffer, self.name, **self.options)
        return buffer.getvalue()

    def decode(self, content: Any, out: np.ndarray) -> None:
        """Decode into `out`, uint8 [H, W, C]. Raises DataError when the content is another image, or none."""
        height, width, channels = out.shape
        refused = reading("an image does not decode", kind=DataError)
        with refused, Image.open(io.BytesIO(content), formats=[self.name]) as image:
            if image.size != (width, height):
                raise DataError("an image of {} x {} pixels, expected {} x {}".format(*image.size, width, height))
            pixels = np.asarray(image)
        # WebP has no grey: three equal channels stand for one.
        out[:] = pixels[..., None] if pixels.ndim == 2 else pixels[..., :channels]


RAW = "raw"
# Measured on photographs (tests/bench/bench_stores.py): PNG's higher levels and WebP's higher methods cost several
# times as much to write and save under a tenth.
ENCODINGS = {
    "png": Encoding("png", 0.7, {"compress_level": 1}),
    "webp": Encoding("webp", 0.55, {"lossless": True, "method": 0, "quality": 0, "exact": True}),
}
STORES = (RAW, *ENCODINGS)
