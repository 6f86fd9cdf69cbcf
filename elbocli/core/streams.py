"""Stateless random numbers: each number is a function of (seed, purpose, index) alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


MOST_THREADS = 8
PER_THREAD = 1 << 17  # least number of normal numbers of each thread; NumPy draws a row without Python's lock


def count_threads() -> int:
    """Return the number of threads that draw noise in this process: its share of the cores that it may use, at most 8."""
    return max(1, min(MOST_THREADS, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


class Stream:
    """Random numbers of a seed and a purpose (any text), with a sequence for each index."""

    def __init__(self, seed: int, purpose: str):
        self._of = seed, purpose
        digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
        # The index is in Philox's counter, so the noise is equal on any device, in any batch, on any number of processes.
        self._bits = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, index: int) -> np.random.Generator:
        """Return a generator at the start of sequence `index`. Later calls reset this generator."""
        self._state["state"]["counter"][:] = (0, 0, index, 0)
        self._state["buffer_pos"] = 4
        self._state["has_uint32"] = 0
        self._bits.state = self._state
        return self._generator

    def normal(self, indices: Sequence[int], shape: Sequence[int], pin: bool = False) -> Tensor:
        """Return standard normal numbers, [len(indices), *shape], float32. Row k depends only on indices[k].

        pin: whether to draw them into pinned host memory.
        """
        import torch

        out = torch.empty((len(indices), *shape), dtype=torch.float32, pin_memory=pin)
        rows = out.numpy()
        threads = max(1, min(count_threads(), len(indices), out.numel() // PER_THREAD))
        (first, *others) = pairwise(len(rows) * k // threads for k in range(threads + 1))
        with ThreadPoolExecutor(MOST_THREADS) as helpers:
            filling = [helpers.submit(Stream(*self._of)._fill, rows[a:b], indices[a:b]) for a, b in others]
            self._fill(rows[slice(*first)], indices[slice(*first)])
            for done in filling:
                done.result()
        return out

    def noise(self, indices: Sequence[int], shape: Sequence[int], pin: bool = False) -> Tensor:
        """Return normal numbers as images, [len(indices), C, H, W]. shape: (H, W, C), the order in which they are drawn."""
        return self.normal(indices, shape, pin).movedim(-1, 1)

    def _fill(self, out: np.ndarray, indices: Sequence[int]) -> None:
        for row, index in zip(out, indices, strict=True):
            self.at(index).standard_normal(dtype=np.float32, out=row)

    def signs(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Return random signs ±1, with shape and rows as in `normal`."""
        from torch import from_numpy

        rows = [self.at(index).integers(0, 2, shape, np.int8) for index in indices]
        return from_numpy(np.stack(rows).astype(np.float32) * 2 - 1)

    def uniform(self, index: int, count: int) -> np.ndarray:
        """Return `count` numbers of sequence `index`, uniform in [0, 1), float64."""
        return self.at(index).random(count)

    def permutation(self, index: int, count: int) -> np.ndarray:
        return self.at(index).permutation(count)

    def seed(self, index: int) -> int:
        return int(self.at(index).integers(1 << 63))


T_SAMPLINGS = ("low-discrepancy", "independent")


def times(stream: Stream, step: int, count: int, sampling: str = "low-discrepancy") -> Tensor:
    """Return the times t of batch `step`, [count], float64 in [0, 1).

    sampling: `low-discrepancy` (equally spaced times with one random offset) or `independent`.
    Source: Kingma et al. 2021 (VDM), appendix I.1, for low-discrepancy times.
    """
    import torch

    if sampling == "independent":
        return torch.from_numpy(stream.uniform(step, count))
    offset = stream.uniform(step, 1)
    return torch.from_numpy((offset + np.arange(count) / count) % 1.0)


def random_classes(n: int, num_classes: int, seed: int) -> np.ndarray:
    """Return random classes of n images; class i depends only on (seed, i)."""
    stream = Stream(seed, "sample-class")
    return np.array([stream.at(i).integers(num_classes) for i in range(n)])


def random_classes_of(counts: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Return random classes of n images, each the class of a random training image; class i depends only on (seed, i).

    counts: number of training images of each class, integers [K].
    """
    stream = Stream(seed, "sample-class")
    ends = np.cumsum(counts)
    return np.searchsorted(ends, [stream.at(i).integers(ends[-1]) for i in range(n)], side="right")
