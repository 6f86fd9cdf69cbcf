"""Random batches from a dataset against numpy.memmap, and every store against pure decode: times of 256 or 32 images, both warm."""

import io
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count, cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import Row, compare
from made_data import packed
from PIL import Image
from sklearn.datasets import load_sample_images

from elbocli.core.streams import Stream
from elbocli.files.dataset import ENCODINGS, RAW, Dataset, DatasetWriter, encode
from elbocli.files.resumable import ENCODED, IMAGES, BlockLayout
from elbocli.run.examples import normalised
from elbocli.run.settings import resolve
from elbocli.train.batches import Batches

COUNT, SHAPE, READ_BATCH = 50_000, (64, 64, 3), 256
READ_BOUND, NOISE_BOUND = 1 / 0.8, 1.3


def raw_rows(small: bool) -> Iterator[Row]:
    """Yield reading against reading; a step's noise against as much at one go; both against both."""
    cpu, images, batch = torch.device("cpu"), 20 if small else COUNT, 4 if small else READ_BATCH
    often, seldom = (1, 1) if small else (300, 50)
    with tempfile.TemporaryDirectory() as temporary:
        dataset = packed(Path(temporary), SHAPE[0], SHAPE[2], images)
        np.save(Path(temporary) / "plain.npy", dataset.read(np.arange(images)))
        plain = np.load(Path(temporary) / "plain.npy", mmap_mode="r")
        batches = Batches(dataset, resolve({"batch_size": batch, "device": "cpu"}, dataset), cpu)
        rng, steps, noise = np.random.default_rng(1), count(), Stream(1, "noise")

        def some() -> np.ndarray:
            return rng.integers(0, images, batch)

        def read() -> np.ndarray:
            x = np.multiply(plain[some()], np.float32(1 / 127.5))
            x -= 1
            return x

        def draw() -> np.ndarray:
            return rng.standard_normal((batch, *SHAPE), np.float32)

        for memory in (dataset.read(np.arange(images)), plain):  # every page once
            memory.sum()
        name = "read, gathered / numpy.memmap, gathered"
        yield compare(name, lambda: dataset.read(some()), lambda: plain[some()], READ_BOUND, rounds=often)
        name = "read, normalised / numpy.memmap, normalised"
        yield compare(name, lambda: normalised(dataset.read(some()), cpu), read, READ_BOUND, rounds=often)
        name = "noise of a step, image by image / at one go"
        yield compare(name, lambda: noise.normal(range(batch), SHAPE), draw, NOISE_BOUND, rounds=seldom)
        name = "a step's images, labels and noise / numpy's images and noise"
        yield compare(name, lambda: batches.at(next(steps)), lambda: (read(), draw()), NOISE_BOUND, rounds=seldom)


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
        writer.finish({"labels": np.zeros(len(images), np.int64), "class_names": ["photographs"]}, about)
    return Dataset(path)


def of_raw(images: np.ndarray, dataset: Dataset, rounds: int) -> Row:
    """Against a gather from the same array in memory."""
    size, some = images.shape[1], chooser(len(images))
    return compare(
        f"read {BATCH}, raw at {size} / in memory",
        lambda: dataset.read(some()),
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
        f"read {BATCH}, {dataset.store} at {size} / pure decode", lambda: dataset.read(some()), pure, BOUND, rounds=rounds
    )


def chooser(count: int) -> Callable[[], np.ndarray]:
    """A batch of random store_rows at every call."""
    rng = np.random.default_rng(0)
    return lambda: rng.integers(0, count, BATCH)


def store_rows(small: bool) -> Iterator[Row]:
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


def rows(small: bool) -> Iterator[Row]:
    """Yield both parts."""
    yield from raw_rows(small)
    yield from store_rows(small)
