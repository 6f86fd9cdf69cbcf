"""Images decoded and cut by threads, some ahead of where they are needed, and handed over in their order."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from elbocli.errors import ElboError
from elbocli.files.encodings import ENCODINGS, RAW
from elbocli.images.decode import DecodeOptions, square
from elbocli.images.image_refs import will_need
from elbocli.images.memory_budget import Room
from elbocli.images.sources import Source

Read = Callable[[], bytes | np.ndarray]
AHEAD, AHEAD_BYTES = 8, 128 << 20
"""Images in flight: so many for each worker, and no more than so many bytes for all."""
ADVISED = 1024
"""Images that the kernel is told of beforehand: about a class of ImageNet, 0.1 GB."""
_files = Room(128 << 20)
"""Memory for the files' bytes; claimed before memory for their pixels, never the other way round."""


@dataclass(frozen=True)
class Packed:
    """One image as it will be stored, or why it isn't one. size: bytes read."""

    digest: str
    size: int
    row: np.ndarray | bytes | None
    change: str
    trouble: str


def _pack(read: Read, weight: int, how: DecodeOptions, store: str) -> Packed:
    digest, size = "", 0
    with _files.claim(weight):
        try:
            content = read()
            raw = content if isinstance(content, bytes) else content.reshape(-1).data
            digest, size = hashlib.sha256(raw).hexdigest(), len(raw)
            pixels, change = square(content, how)
            row = pixels if store == RAW else ENCODINGS[store].encode(pixels)
            return Packed(digest, size, row, change, "")
        except ElboError as error:
            return Packed(digest, size, None, "", str(error))


def _already(read: Read) -> Read:
    """Read now, and return a function that gives what was read, or raises its error, in another thread."""
    done: Future[bytes | np.ndarray] = Future()
    try:
        done.set_result(read())
    except ElboError as error:
        done.set_exception(error)
    return done.result


def packed_in_order(source: Source, start: int, how: DecodeOptions, store: str, workers: int = 0) -> Iterator[Packed]:
    """Yield the images from number `start` on, in the order of the source, as they will be stored.

    store: raw, or the name of an encoding. workers: threads; 0 for as many as cores.
    """
    workers = workers or os.cpu_count() or 1
    heaviest = max(how.size**2 * how.channels, source.refs[0].weight if source.in_order else 0)
    ahead = max(1, min(AHEAD * workers, AHEAD_BYTES // heaviest))
    waiting: deque[Future[Packed]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="elbo-prep") as pool:
        try:
            for index in range(start, len(source)):
                if (index - start) % ADVISED == 0:
                    will_need(source.refs[index : index + ADVISED])
                ref = source.refs[index]
                read, weight = (_already(ref.read), 0) if source.in_order else (ref.read, ref.weight)
                waiting.append(pool.submit(_pack, read, weight, how, store))
                if len(waiting) >= ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
