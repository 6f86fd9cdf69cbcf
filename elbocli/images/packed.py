"""Compressed files: how they begin inside, and a gzipped one unpacked in memory, within a bound."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable

from elbocli.errors import DataError
from elbocli.files.reading import refusing
from elbocli.images.image_refs import ImageRef, Span, ZipEntry

GZIP, BZIP2, XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
PROGRAMS = {
    GZIP: "gzip -dk",
    BZIP2: "bzip2 -dk",
    XZ: "xz -dk",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"7z\xbc\xaf": "7z x",
    b"Rar!": "unrar x",
}
"""Programs that unpack what elbo can't read into, by how it begins."""
LARGEST_UNPACKED = 512 << 20
LARGEST_RATIO = 1032
"""The most bytes that one byte of a gzip file can become."""
LOOKED_AT = 1 << 20
"""Packed bytes that are read to see what is inside: more than a block of bzip2."""
LZMA_MEMORY = 128 << 20
BEGINNINGS: dict[bytes, Callable[[bytes, int], bytes]] = {
    GZIP: lambda packed, most: zlib.decompressobj(31).decompress(packed, most),
    BZIP2: lambda packed, most: bz2.BZ2Decompressor().decompress(packed, most),
    XZ: lambda packed, most: lzma.LZMADecompressor(memlimit=LZMA_MEMORY).decompress(packed, most),
}


def first_bytes(ref: ImageRef, most: int = 512) -> bytes:
    """Read a file's first bytes. Raises DataError."""
    if isinstance(ref, Span):
        return Span(ref.path, ref.offset, min(ref.weight, most)).read()
    if isinstance(ref, ZipEntry):
        with refusing("does not unpack", kind=DataError), ref.archive.open(ref.info) as member:
            return member.read(most)
    return bytes(ref.read())[:most]


def program_for(head: bytes) -> str | None:
    """The program that unpacks a file that begins so, None where it isn't compressed."""
    return next((program for magic, program in PROGRAMS.items() if head.startswith(magic)), None)


def first_bytes_inside(ref: ImageRef, most: int = 512) -> bytes:
    """Read the first bytes of what is in a gzip, bzip2 or xz file; '' where that can't be told. Raises DataError."""
    packed = first_bytes(ref, LOOKED_AT)
    for magic, unpack in BEGINNINGS.items():
        if packed.startswith(magic):
            with contextlib.suppress(zlib.error, OSError, lzma.LZMAError, EOFError):
                return unpack(packed, most)
    return b""


def gunzipped(ref: ImageRef, most: int) -> bytes:
    """Unpack a gzip file in memory, `most` bytes of it, and one more where there are more. Raises DataError."""
    packed = bytes(ref.read())
    with refusing("does not unpack", kind=DataError), gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
        return file.read(min(most, LARGEST_RATIO * len(packed)) + 1)
