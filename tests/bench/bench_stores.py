"""The stores on real photographs at 256 and 512 pixels: bytes per image, time to pack one, random batches.

Crops of the two photographs shipped with scikit-learn, each at another place and scale. Pure decode is Pillow on
the same bytes in memory, in a thread pool of the same size, into arrays. A ratio of 1/0.9 in time is one of 0.9 in
images per second. The packing peers are raw's: pixels that only need to be written.
"""

from __future__ import annotations

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from compare import Row, compare
from PIL import Image
from sklearn.datasets import load_sample_images

from elbocli.files.dataset import ENCODED, ENCODINGS, IMAGES, RAW, BlockLayout, Dataset, DatasetWriter, encode

COUNTS, BATCH, ROUNDS = {256: 128, 512: 48}, 32, 25
BOUND, RAW_BOUND = 1 / 0.9, 1 / 0.8


def crops(size: int, count: int) -> np.ndarray:
    """uint8 [count, size, size, 3]: squares of half to all of a photograph's height, resized, some mirrored.

    Such a photograph has 640 x 427 pixels; at 512 pixels a crop is enlarged, and compresses better than most would.
    """
    rng = np.random.default_rng(size)
    photographs = [Image.fromarray(photograph) for photograph in load_sample_images().images]
    found = np.empty((count, size, size, 3), np.uint8)
    for k in range(count):
        photograph = photographs[k % len(photographs)]
        side = int(rng.integers(min(photograph.size) // 2, min(photograph.size) + 1))
        left, top = (int(rng.integers(0, length - side + 1)) for length in photograph.size)
        square = photograph.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side))
        found[k] = np.asarray(square)[:, :: -1 if rng.random() < 0.5 else 1]
    return found


def write(path: Path, images: np.ndarray, store: str) -> Dataset:
    """A dataset of those images, kept in that way."""
    size = images.shape[1]
    layout = BlockLayout(IMAGES, (size, size, 3)) if store == RAW else BlockLayout(ENCODED, (), images[0].nbytes)
    about: dict[str, Any] = {"num_classes": 1, "image_size": size}
    with DatasetWriter(path, layout, len(images), store).held() as writer:
        if store == RAW:
            writer.append(images, len(images), {})
        else:
            writer.append([encode(image, store) for image in images], len(images), {})
            about |= {"store": store, "channels": 3}
        writer.finish({"labels": np.zeros(len(images), np.int64)}, {"class_names": ["photographs"]}, about)
    return Dataset(path)


def of_raw(images: np.ndarray, dataset: Dataset, rounds: int) -> Row:
    """Against a gather from the same array in memory."""
    size, some = images.shape[1], chooser(len(images))
    return compare(
        f"read {BATCH}, raw at {size} / in memory",
        lambda: dataset.batch(some()),
        lambda: images[some()],
        RAW_BOUND,
        rounds=rounds,
    )


def of_encoded(images: np.ndarray, dataset: Dataset, pool: ThreadPoolExecutor, rounds: int) -> Iterator[Row]:
    """Packing against copying the pixels, and reading against pure decode."""
    (count, size), some = images.shape[:2], chooser(len(images))
    taken = cycle(range(count))
    contents = [encode(image, dataset.store) for image in images]

    def pure() -> np.ndarray:
        chosen, out = some(), np.empty((BATCH, size, size, 3), np.uint8)

        def decode(k: int) -> None:
            with Image.open(io.BytesIO(contents[chosen[k]])) as image:
                out[k] = np.asarray(image)

        for _ in pool.map(decode, range(BATCH)):
            pass
        return out

    yield compare(
        f"pack one, {dataset.store} at {size} / raw",
        lambda: encode(images[next(taken)], dataset.store),
        lambda: images[next(taken)].tobytes(),
        None,
        rounds=rounds,
    )
    yield compare(
        f"read {BATCH}, {dataset.store} at {size} / pure decode",
        lambda: dataset.batch(some()),
        pure,
        BOUND,
        rounds=rounds,
    )


def chooser(count: int) -> Callable[[], np.ndarray]:
    """A batch of random rows at every call."""
    rng = np.random.default_rng(0)
    return lambda: rng.integers(0, count, BATCH)


def rows(small: bool) -> Iterator[Row]:
    """Yield every store at both sizes; bytes per image go to stderr."""
    rounds = 1 if small else ROUNDS
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
        for size, count in ({16: 4} if small else COUNTS).items():
            images = crops(size, count)
            for store in (RAW, *ENCODINGS):
                dataset = write(Path(temporary) / f"{store}{size}.h5", images, store)
                each = dataset.block.nbytes / count
                share = each / images[0].nbytes
                print(f"{store} at {size}: {each:.0f} bytes per image, {share:.3f} of raw", file=sys.stderr)
                if store == RAW:
                    yield of_raw(images, dataset, rounds)
                else:
                    yield from of_encoded(images, dataset, pool, rounds)
