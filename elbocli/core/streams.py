"""Every random number is a function of (seed, purpose, index): nothing to save, nothing that drifts.

A counter-based generator (Philox 4×64) keyed by seed and purpose, with the index in its counter, gives
image i of step s the same noise on any device, in any batch, on any number of processes. torch is imported only
where tensors come out: packing shuffles without it.

`choose_labels` gives a class to each image to be drawn, as `--classes` says it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from elbocli.core.registry import nearest
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


class Stream:
    """The draws for one (seed, purpose). `at(index)` starts an independent sequence for each index."""

    def __init__(self, seed: int, purpose: str):
        digest = hashlib.sha256(f"{seed}:{purpose}".encode()).digest()
        self._bits = np.random.Philox(key=np.frombuffer(digest[:16], dtype=np.uint64))
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)

    def at(self, index: int) -> np.random.Generator:
        """The generator of that index, from its beginning. Valid until the next call."""
        self._state["state"]["counter"][:] = (0, 0, index, 0)
        self._state["buffer_pos"] = 4
        self._state["has_uint32"] = 0
        self._bits.state = self._state
        return self._generator

    def normal(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Standard normals [len(indices), *shape], float32: row k depends on indices[k] alone."""
        from torch import from_numpy

        out = np.empty((len(indices), *shape), np.float32)
        for row, index in zip(out, indices, strict=True):
            self.at(index).standard_normal(dtype=np.float32, out=row)
        return from_numpy(out)

    def signs(self, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
        """Fair signs −1 and 1 (Rademacher's) [len(indices), *shape], float32: row k depends on indices[k] alone."""
        from torch import from_numpy

        rows = [self.at(index).integers(0, 2, shape, np.int8) for index in indices]
        return from_numpy(np.stack(rows).astype(np.float32) * 2 - 1)

    def uniform(self, index: int, count: int) -> np.ndarray:
        """`count` float64 uniforms in [0, 1)."""
        return self.at(index).random(count)

    def permutation(self, index: int, count: int) -> np.ndarray:
        """A permutation of range(count)."""
        return self.at(index).permutation(count)

    def seed(self, index: int) -> int:
        """A 63-bit seed for a library's own generator."""
        return int(self.at(index).integers(1 << 63))


def walk_noise(seed: int, indices: Sequence[int], shape: Sequence[int]) -> Callable[[], Tensor]:
    """The noise of a sampler's walk: called for the k-th time, ε [len(indices), *shape] of (seed, k, each index) alone."""
    calls = count(1)
    return lambda: Stream(seed, f"sample-{next(calls)}").normal(indices, shape)


T_SAMPLINGS = ("low-discrepancy", "independent")


def times(stream: Stream, step: int, count: int, sampling: str = "low-discrepancy") -> Tensor:
    """t of a batch, float64 in [0, 1). Low-discrepancy: one uniform offset and a regular comb.

    Source: Kingma et al. 2021 (VDM), appendix I.1.
    """
    import torch

    if sampling == "independent":
        return torch.from_numpy(stream.uniform(step, count))
    offset = stream.uniform(step, 1)
    return torch.from_numpy((offset + np.arange(count) / count) % 1.0)


def choose_labels(classes: str, n: int, num_classes: int, seed: int, names: Sequence[str] = ()) -> np.ndarray | None:
    """A class per image: `balanced` (i mod K), `random`, or a list of numbers or names, repeated to length.

    None when there are no classes. Raises UsageError for a class that isn't there, or a word that means two.
    """
    if num_classes < 1:
        if classes not in ("balanced", "random"):
            raise UsageError(f"--classes {classes}: the run is unconditional; leave it out")
        return None
    if classes == "balanced":
        return np.arange(n) % num_classes
    if classes == "random":
        return random_classes(n, num_classes, seed)
    numbers: list[int] = []
    for word in map(str.strip, classes.split(",")):
        number = (word.lstrip("0") or "0") if word.isdecimal() else ""
        found = [k for k in range(num_classes) if word in names[k : k + 1] or str(k) == number]
        if len(found) != 1:
            hint = f"write 0{word} for the number" if found else nearest(word, names)
            raise UsageError(f"--classes: {word!r} is {len(found)} of {num_classes} classes; {hint}")
        numbers += found
    return np.resize(numbers, n)


def random_classes(n: int, num_classes: int, seed: int) -> np.ndarray:
    """A class per image, of (seed, i) alone."""
    stream = Stream(seed, "sample-class")
    return np.array([stream.at(i).integers(num_classes) for i in range(n)])
