"""Packing 2000 JPEGs of 500x375 at 64 pixels, against decoding and cropping alone and against a plain loop.

The peers: (a) Pillow decode and ADM's crop of the same files in as many threads, nothing written; (b) a loop of one
process that decodes, crops and writes PNGs into a zip. A ratio of 1/0.9 in time is one of 0.9 in images per second.
"""

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import sklearn
from compare import Row, compare
from PIL import Image

from elbocli.data.pack import pack_images
from elbocli.data.settings import PrepSettings

COUNT = 2000
WIDTH = 500
HEIGHT = 375
SIZE = 64
ROUNDS = 5
BOUND_ALONE = 1 / 0.9
BOUND_LOOP = 1 / 2.5


def write(folder: Path, count: int) -> list[Path]:
    """Crops of two photographs at random places and scales, each as a JPEG like ImageNet's (quality 92)."""
    rng = np.random.default_rng(0)
    photographs = [
        Image.open(Path(sklearn.__file__).parent / "datasets" / "images" / name) for name in ("china.jpg", "flower.jpg")
    ]
    paths = []
    for index in range(count):
        photograph = photographs[index % 2]
        width = int(rng.integers(WIDTH, photograph.width))
        height = width * HEIGHT // WIDTH
        if height > photograph.height:
            width = WIDTH
            height = HEIGHT
        left = int(rng.integers(photograph.width - width + 1))
        top = int(rng.integers(photograph.height - height + 1))
        image = photograph.crop((left, top, left + width, top + height)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
        path = folder / f"class{index % 10}" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, quality=92)
        paths.append(path)
    return paths


def crop(path: Path) -> Image.Image:
    """Pillow, and ADM's crop as its definition says."""
    image = Image.open(path).convert("RGB")
    while min(image.size) >= 2 * SIZE:
        image = image.resize((image.size[0] // 2, image.size[1] // 2), Image.Resampling.BOX)
    scale = SIZE / min(image.size)
    image = image.resize((round(image.size[0] * scale), round(image.size[1] * scale)), Image.Resampling.BICUBIC)
    left = (image.size[0] - SIZE) // 2
    top = (image.size[1] - SIZE) // 2
    return image.crop((left, top, left + SIZE, top + SIZE))


def rows(small: bool) -> Iterator[Row]:
    """Yield times per image."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        paths = write(folder / "src", 4 if small else COUNT)
        workers = os.cpu_count() or 1

        def ours() -> None:
            pack_images([folder / "src"], folder / "out.h5", PrepSettings(size=SIZE, overwrite=True))

        def alone() -> None:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(lambda path: np.asarray(crop(path)), paths):
                    pass

        def loop() -> None:
            with zipfile.ZipFile(folder / "out.zip", "w", zipfile.ZIP_STORED) as archive:
                for index, path in enumerate(paths):
                    buffer = io.BytesIO()
                    crop(path).save(buffer, "png")
                    archive.writestr(f"img{index:08d}.png", buffer.getvalue())

        many = {"rounds": 1 if small else ROUNDS, "warm_up": 1, "per": len(paths)}
        yield compare("prep / decode and crop in threads, not written", ours, alone, BOUND_ALONE, **many)
        yield compare("prep / one process, Pillow to PNGs in a zip", ours, loop, BOUND_LOOP, **many)
