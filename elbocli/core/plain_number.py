"""Numbers as people write them: ASCII digits alone. Python also takes 1_000 and the digits of other scripts."""

from __future__ import annotations


def ascii_digits(text: str) -> str:
    """Return the text of a number as it is. Raises ValueError when it has digits that are not 0 to 9, or a _."""
    if "_" in text or not text.isascii():
        raise ValueError(f"{text!r} is not a number; write it with the digits 0 to 9 alone")
    return text


def plain_float(value: str | float) -> float:
    """Read a number from a text, or take one that is. Raises ValueError."""
    return float(ascii_digits(value) if isinstance(value, str) else value)


def plain_int(value: str | float) -> int:
    """Read a whole number from a text, or take one that is. Raises ValueError."""
    return int(ascii_digits(value) if isinstance(value, str) else value)
