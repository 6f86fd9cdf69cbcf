"""Digests of files and of rows, and digests that add up."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from elbocli.files.reading import open_file


def file_sha256(path: Path) -> str:
    """The sha256 of a file's content, 64 hex digits. Raises OSError when it can't be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def add_rows(digest: Any, rows: np.ndarray | list[np.ndarray]) -> None:
    """Feed rows, or a list of encoded images, to a digest of hashlib's in their order."""
    for run in rows if isinstance(rows, list) else [rows]:
        digest.update(np.ascontiguousarray(run).data)


def add_digests(hexes: Iterable[str]) -> str:
    """The sum modulo 2²⁵⁶ of sha256 digests, 64 hex digits: the same in any order and grouping.

    So parts that are made apart have the digest of the whole. Raises ValueError when one is not hexadecimal.
    """
    return f"{sum(int(digest, 16) for digest in hexes) % 2**256:064x}"
