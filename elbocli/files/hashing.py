"""Digests of files and of rows, and digests that add up."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.files.reading import open_file
from elbocli.runtime.background import Background

PIECE = 1 << 24
BEHIND = 16 << 20
"""Bytes that may wait to be digested."""


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, 64 hex digits. Raises OSError when it can't be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def span_sha256(handle: int, offset: int, size: int) -> Any:
    """The sha256, as hashlib has it, of `size` bytes of an open file, or of those before its end. Raises OSError."""
    digest = hashlib.sha256()
    while size and (content := os.pread(handle, min(size, PIECE), offset)):
        digest.update(content)
        offset, size = offset + len(content), size - len(content)
    return digest


class DigestBehind:
    """A sha256 that a thread computes while its caller goes on, a block or some megabytes behind it at most.

    Blocks must stay as they are until `hexdigest`.
    """

    def __init__(self, begun: Any):
        self._digest, self._waiting, self._held = begun, deque[tuple[int, Future[None]]](), 0
        self._background = Background("digest")

    def update(self, block: bytes | memoryview) -> None:
        """Add bytes. Waits where too many are to be added still."""
        while self._waiting and self._held + len(block) > BEHIND:
            self._wait()
        self._waiting.append((len(block), self._background.start(partial(self._digest.update, block))))
        self._held += len(block)

    def _wait(self) -> None:
        size, job = self._waiting.popleft()
        job.result()
        self._held -= size

    def hexdigest(self) -> str:
        """The digest of all that was added, 64 hex digits."""
        while self._waiting:
            self._wait()
        return str(self._digest.hexdigest())

    def close(self) -> None:
        """End the thread."""
        self._background.close()


def add_rows(digest: Any, rows: np.ndarray | list[np.ndarray]) -> None:
    """Feed rows, or runs of encoded bytes, to a digest of hashlib's in their order."""
    for run in rows if isinstance(rows, list) else [rows]:
        digest.update(np.ascontiguousarray(run).data)


def rows_sha256(pieces: Iterable[np.ndarray | list[np.ndarray]]) -> str:
    """The sha256 of rows that come in pieces, 64 hex digits."""
    digest = hashlib.sha256()
    for rows in pieces:
        add_rows(digest, rows)
    return digest.hexdigest()


def add_digests(hexes: Iterable[str]) -> str:
    """The sum modulo 2²⁵⁶ of sha256 digests, 64 hex digits: the same in any order and grouping.

    So parts that are made apart have the digest of the whole. Raises ValueError when one is not hexadecimal.
    """
    return f"{sum(int(digest, 16) for digest in hexes) % 2**256:064x}"
