"""Digests that add up, so that parts made apart have the digest of the whole."""

from __future__ import annotations

from collections.abc import Iterable


def add_digests(hexes: Iterable[str]) -> str:
    """The sum modulo 2²⁵⁶ of sha256 digests, 64 hex digits: the same in any order and grouping.

    Raises ValueError when one is not hexadecimal.
    """
    return f"{sum(int(digest, 16) for digest in hexes) % 2**256:064x}"
