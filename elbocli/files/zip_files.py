"""Zip archives from anyone, within bounds: of their lists of members, and of what a member becomes when it is unpacked.

Nothing else in elbo opens one to read.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import IO

from elbocli.files.opening import open_file
from elbocli.files.reading import one_line

MOST_MEMBERS = 1_500_000
"""Members of an archive: ImageNet has 1.3 million. Python takes half a kilobyte of memory for each."""
MOST_ARRAYS = 1000
"""Members of an archive of arrays, or of a program."""
MEMBER, END, END64 = b"PK\1\2", b"PK\5\6", b"PK\6\6"
"""Beginnings of a member's entry in the list, and of what comes after the list, also in large archives."""
LOCAL_HEADER_BYTES = 30
"""The least that stands before a member's content."""
LONGEST_COMMENT = 1 << 16
UNPACK_STEP = 4096
PIECE = 1 << 20


def open_zip(source: Path | IO[bytes], most: int = MOST_MEMBERS) -> zipfile.ZipFile:
    """Open an archive of at most so many members, none of which reaches into another.

    Raises OSError where it is no file, BadZipFile for anything else.
    """
    if isinstance(source, Path):
        with open_file(source) as file:
            _refuse_many(file, most)
    else:
        _refuse_many(source, most)
    try:
        archive = zipfile.ZipFile(source)
    except OSError:
        raise
    except Exception as error:  # zipfile raises of everything for damaged files
        raise zipfile.BadZipFile(one_line(error)) from error
    try:
        _refuse_overlaps(archive.infolist())
    except zipfile.BadZipFile:
        archive.close()
        raise
    return archive


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """Unpack a member of at most so many bytes. Raises ValueError, and what zipfile raises for damaged archives."""
    if info.file_size > most:
        raise ValueError(f"{info.filename[:60]} has {info.file_size} bytes, more than {most}")
    with archive.open(info) as member:
        # bzip2 and LZMA unpack all that they are given, and zipfile gives them as much as is asked for: small steps.
        if info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            content = member.read(info.file_size + 1)
        else:
            content = b"".join(iter(lambda: member.read(UNPACK_STEP), b""))
    if len(content) != info.file_size:
        raise ValueError(f"{len(content)} bytes where {info.file_size} were announced")
    return content


def _refuse_overlaps(members: list[zipfile.ZipInfo]) -> None:
    """Compare where each ends with where the next begins. Python's own check differs from one release to the next."""
    ordered = sorted(members, key=lambda info: info.header_offset)
    for info, after in pairwise(ordered):
        if info.header_offset + LOCAL_HEADER_BYTES + info.compress_size > after.header_offset:
            names = f"{info.filename[:60]!r} and {after.filename[:60]!r}"
            raise zipfile.BadZipFile(f"its members {names} overlap, as only a bomb's do")


def make_zip(members: Mapping[str, bytes]) -> io.BytesIO:
    """An archive of these members, not compressed, to be read from its beginning."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    buffer.seek(0)
    return buffer


def _refuse_many(file: IO[bytes], most: int) -> None:
    """Count the entries of the list, which lies between the last files and the end, without making anything of them."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - LONGEST_COMMENT - 22))
    begin, tail = file.tell(), file.read()
    end = tail.rfind(END)
    if end < 0 or len(tail) < end + 22:
        raise zipfile.BadZipFile("it has no end")
    length = int.from_bytes(tail[end + 12 : end + 16], "little")
    start64 = tail.rfind(END64, 0, end)
    if start64 >= 0 and len(tail) >= start64 + 48:
        length = max(length if length < 0xFFFFFFFF else 0, int.from_bytes(tail[start64 + 40 : start64 + 48], "little"))
    at = begin + end
    start = max(0, at - length - 200)
    file.seek(start)
    count, left, kept = 0, at - start, b""
    while left and (piece := file.read(min(PIECE, left))):
        count += (kept + piece).count(MEMBER)
        if count > most:
            raise zipfile.BadZipFile(f"it has more than {most} members")
        left, kept = left - len(piece), piece[-len(MEMBER) + 1 :]
