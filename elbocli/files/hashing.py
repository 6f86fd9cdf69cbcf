"""Digests of files and of rows, and digests that add up."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.files.opening import open_file

PIECE = 1 << 24


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
