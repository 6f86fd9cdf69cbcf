"""Images decoded and cut by threads, some ahead of where they are needed, and handed over in their order."""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from elbocli.errors import ElboError
from elbocli.files.encodings import ENCODINGS, RAW
from elbocli.images.decode import DecodeOptions, square
from elbocli.images.image_refs import ImageRef, read_rows, will_need
from elbocli.images.sources import Source

Read = Callable[[], bytes | np.ndarray]
AHEAD = 8
"""Images, or stretches of them, in flight for each worker."""
STRETCH = 1 << 20
"""Bytes of rows of an array that are read at once, where they have the right size already."""
ADVISED = 1024
"""Images that the kernel is told of beforehand: about a class of ImageNet, 0.1 GB."""


@dataclass(frozen=True)
class Packed:
    """One image as it will be stored, or why it isn't one; or several rows of an array, with which there is nothing to do.

    digests: of what was read, one for each image. size: bytes read. rows: pixels [images, H, W, C], or an encoded image.
    """

    digests: list[str]
    size: int
    rows: np.ndarray | bytes = b""
    change: str = ""
    trouble: str = ""


def _pack(read: Read, how: DecodeOptions, store: str) -> Packed:
    digest, size = "", 0
    try:
        content = read()
        raw = content if isinstance(content, bytes) else content.reshape(-1).data
        digest, size = hashlib.sha256(raw).hexdigest(), len(raw)
        pixels, change = square(content, how)
        return Packed([digest], size, pixels[None] if store == RAW else ENCODINGS[store].encode(pixels), change)
    except ElboError as error:
        return Packed([digest], size, trouble=str(error))


def _pack_rows(refs: Sequence[ImageRef], how: DecodeOptions) -> Iterable[Packed]:
    """Pack images that are most likely rows of one array, of the right size: nothing is to be done with them."""
    alone = (_pack(ref.read, how, RAW) for ref in refs)
    try:
        rows = read_rows(refs)
    except ElboError:
        return alone  # each says what is wrong with it, once it is asked: a bomb costs as much each time
    if rows is None or rows.shape[1:] != (how.size, how.size, how.channels):
        return list(alone)
    return [Packed([hashlib.sha256(row.data).hexdigest() for row in rows], rows.nbytes, rows)]


def _already(read: Read) -> Read:
    """Read now, and return a function that gives what was read, or raises its error, in another thread."""
    done: Future[bytes | np.ndarray] = Future()
    try:
        done.set_result(read())
    except ElboError as error:
        done.set_exception(error)
    return done.result


def packed_in_order(
    source: Source, start: int, how: DecodeOptions, store: str, workers: int = 0, together: bool = True
) -> Iterator[Packed]:
    """Yield the images from number `start` on, in the order of the source, as they will be stored.

    store: raw, or the name of an encoding. workers: threads; 0 for as many as cores. together: rows of an array that has
    their size already may come together.
    """
    workers = workers or os.cpu_count() or 1
    shape = how.size, how.size, how.channels
    right = together and store == RAW and not source.in_order and source.refs[0].shape == shape
    step = max(1, STRETCH // math.prod(shape)) if right else 1
    waiting: deque[Future[Iterable[Packed]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="elbo-prep") as pool:
        try:
            for index in range(start, len(source), step):
                if step > 1:
                    waiting.append(pool.submit(_pack_rows, source.refs[index : index + step], how))
                else:
                    if (index - start) % ADVISED == 0:
                        will_need(source.refs[index : index + ADVISED])
                    ref = source.refs[index]
                    read = _already(ref.read) if source.in_order else ref.read
                    waiting.append(pool.submit(lambda *job: [_pack(*job)], read, how, store))
                if len(waiting) >= AHEAD * workers:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
