"""Random batches from an elbo-dataset, against numpy.memmap of the same bytes in a plain .npy file, both warm.

Times per batch of 256 from 50,000 images of 64x64x3. A ratio of 1.25 in time is one of 0.8 in images per second.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path

import numpy as np
import torch
from compare import Row, compare

from elbocli.core.streams import Stream
from elbocli.files import dataset_block
from elbocli.files.dataset import Dataset
from elbocli.files.dataset_writer import open_writer
from elbocli.run.settings import resolve
from elbocli.train.batches import Batches, normalised

IMAGES, SHAPE, BATCH = 50_000, (64, 64, 3), 256
BOUND, NOISE_BOUND = 1 / 0.8, 1.3


def write_rows(path: Path, rows: np.ndarray) -> Path:
    """An elbo-dataset of those images."""
    with open_writer(path, dataset_block.plain(SHAPE), len(rows), "noise") as writer:
        for start in range(0, len(rows), 2500):
            writer.append(rows[start : start + 2500], start + 2500, {})
        names = {"class_names": ["noise"], "files": [""] * len(rows)}
        writer.finish({"labels": np.zeros(len(rows), np.int64)}, names, {"num_classes": 1, "image_size": SHAPE[0]})
    return path


def write(folder: Path) -> tuple[Dataset, np.ndarray]:
    """The same noise as an elbo-dataset and as a memory-mapped .npy."""
    rng = np.random.default_rng(0)
    plain = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.uint8, (IMAGES, *SHAPE))
    for start in range(0, IMAGES, 5000):
        plain[start : start + 5000] = rng.integers(0, 256, (5000, *SHAPE), np.uint8)
    whole = Dataset(write_rows(folder / "data.h5", plain))
    return whole, np.load(folder / "plain.npy", mmap_mode="r")


def rows() -> Iterator[Row]:
    """Reading against reading; a step's noise against as much at one go; both against both; the noise ahead of a step."""
    cpu = torch.device("cpu")
    with tempfile.TemporaryDirectory() as temporary:
        dataset, plain = write(Path(temporary))
        batches = Batches(dataset, resolve({"batch": BATCH, "device": "cpu"}, dataset), cpu)
        rng, steps, noise = np.random.default_rng(1), count(), Stream(1, "noise")

        def some() -> np.ndarray:
            return rng.integers(0, IMAGES, BATCH)

        def read() -> np.ndarray:
            x = np.multiply(plain[some()], np.float32(1 / 127.5))
            x -= 1
            return x

        def draw() -> np.ndarray:
            return rng.standard_normal((BATCH, *SHAPE), np.float32)

        for memory in (dataset.batch(np.arange(IMAGES)), plain):  # every page once
            memory.sum()
        yield compare(
            "read, gathered / numpy.memmap, gathered",
            lambda: dataset.batch(some()),
            lambda: plain[some()],
            BOUND,
            rounds=300,
        )
        yield compare(
            "read, normalised / numpy.memmap, normalised",
            lambda: normalised(dataset.batch(some()), cpu),
            read,
            BOUND,
            rounds=300,
        )
        yield compare(
            "noise of a step, image by image / at one go",
            lambda: noise.normal(range(BATCH), SHAPE),
            draw,
            NOISE_BOUND,
            rounds=50,
        )
        yield compare(
            "a step's images, labels and noise / numpy's images and noise",
            lambda: batches.at(next(steps)),
            lambda: (read(), draw()),
            NOISE_BOUND,
            rounds=50,
        )
        yield from ahead(lambda: batches.at(next(steps)))


def ahead(fetch: Callable[[], object]) -> Iterator[Row]:
    """Whether a thread should fetch beside a step of this CPU: one that takes about as long, and one ten times as long."""
    square = torch.randn(512, 512)
    with ThreadPoolExecutor(1) as pool:
        for products in (10, 100):
            waiting = pool.submit(fetch)

            def step(products: int = products) -> None:
                for _ in range(products):
                    square @ square

            def beside() -> None:
                nonlocal waiting
                waiting.result()
                waiting = pool.submit(fetch)
                step()

            def before() -> None:
                fetch()
                step()

            name = f"fetched by a thread beside {products} products / before them"
            yield compare(name, beside, before, None, rounds=30)
            waiting.result()
