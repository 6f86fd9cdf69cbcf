"""Random batches of 256 images from a dataset against numpy.memmap, both warm."""

import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import numpy as np
import torch
from compare import Row, compare
from made_data import packed

from elbocli.core.streams import Stream
from elbocli.runs.examples import normalised
from elbocli.runs.settings import resolve
from elbocli.training.batches import Batches

COUNT = 50_000
SHAPE = (64, 64, 3)
READ_BATCH = 256
READ_BOUND = 1 / 0.8
NOISE_BOUND = 1.3


def rows(small: bool) -> Iterator[Row]:
    """Yield reading against reading; a step's noise against as much at one go; both against both."""
    cpu = torch.device("cpu")
    images = 20 if small else COUNT
    batch = 4 if small else READ_BATCH
    often, seldom = (1, 1) if small else (300, 50)
    with tempfile.TemporaryDirectory() as temporary:
        dataset = packed(Path(temporary), SHAPE[0], SHAPE[2], images)
        np.save(Path(temporary) / "plain.npy", dataset.read(np.arange(images)))
        plain = np.load(Path(temporary) / "plain.npy", mmap_mode="r")
        batches = Batches(dataset, resolve({"batch_size": batch, "device": "cpu"}, dataset), cpu)
        rng = np.random.default_rng(1)
        steps = count()
        noise = Stream(1, "noise")

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
