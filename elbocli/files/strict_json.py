"""JSON from anyone, within bounds: of bytes, of the memory that it becomes, of depth and of digits; no key twice, no NaN.

Nothing else in elbo parses JSON.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from elbocli.errors import FormatError
from elbocli.files.reading import LARGEST_TEXT, one_line, read_limited

DEEPEST = 64
"""Lists and objects inside each other."""
TOO_DEEP = f"deeper than {DEEPEST} lists and objects inside each other"
LONGEST_NUMBER = 400
"""Digits: those of the largest float are 309. To make an integer takes time by the square of them."""
LARGEST_PARSED = 400 << 20
"""Bytes of memory, by MEMORY."""
MEMORY = {b"{": 240, b"[": 80, b":": 200, b",": 70}
"""Bytes of memory, at most, that each of these brings along, as measured with Python 3.11."""
ALIKE = bytes.maketrans(b"123456789E", b"000000000e")
ODD = (b"0" * (LONGEST_NUMBER // 2), b"e000", b"e+000")
"""Numbers, with all digits alike, that may be too long or too large."""


def parse(content: bytes | str, largest: int = LARGEST_TEXT) -> Any:
    """The value that a JSON text holds. Raises ValueError, for `reading.refusing` to name the file."""
    text = content.encode() if isinstance(content, str) else content
    if len(text) > largest:
        raise ValueError(f"{len(text)} bytes, more than {largest}")
    each = 3 if text.isascii() and b"\\u" not in text else 9  # bytes, text of them, and the texts in it
    if each * len(text) + sum(size * text.count(mark) for mark, size in MEMORY.items()) > LARGEST_PARSED:
        raise ValueError("it would take too much memory")
    try:
        alike = text.translate(ALIKE)
        decoder = CAREFUL if any(mark in alike for mark in ODD) else PLAIN
        value = decoder.decode(text.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    _refuse_deep(value, text)
    return value


def load(content: bytes | str, where: object, largest: int = LARGEST_TEXT) -> Any:
    """The value that a JSON text holds. where: the file, for messages. Raises FormatError."""
    try:
        return parse(content, largest)
    except ValueError as error:
        raise FormatError(f"{where}: not usable JSON: {one_line(error)}") from error


def read(path: Path, largest: int = LARGEST_TEXT) -> Any:
    """The value in a JSON file. Raises FormatError."""
    return load(read_limited(path, "JSON", largest), path, largest)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FormatError."""
    found = read(path)
    if not isinstance(found, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"key {twice[:40]!r} is given twice")
    return found


def _whole(text: str) -> int:
    if len(text) > LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    if len(text) > LONGEST_NUMBER or not math.isfinite(value := float(text)):
        raise ValueError(f"{text[:20]}… is no number that a computer has")
    return value


def _no_such_number(text: str) -> float:
    raise ValueError(f"{text} is not a number")


def _refuse_deep(value: Any, text: bytes) -> None:
    if text.count(b"[") + text.count(b"{") <= DEEPEST:
        return
    level = [value]
    for _ in range(DEEPEST):
        inner = (each.values() if type(each) is dict else each for each in level if type(each) in (dict, list))
        level = [each for some in inner for each in some]
        if not level:
            return
    raise ValueError(TOO_DEEP)


PLAIN = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_such_number)
CAREFUL = json.JSONDecoder(
    object_pairs_hook=_once, parse_constant=_no_such_number, parse_int=_whole, parse_float=_finite
)
"""The same for numbers that may be beyond bounds, at three times the time."""
