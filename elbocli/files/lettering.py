"""Names of classes as they are drawn beside images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

LARGEST = 200
"""Letters of a name that are looked at."""
LETTER = 14
"""Height of the letters in pixels, unless rows are lower, or much higher."""
MOST_LETTERS = 12
"""Width of a name at most, in heights of its letters."""
PAPER, INK = 255, 0


def shown_name(name: str) -> str:
    """A name that may be anything, without what can't be seen: control characters, and what turns the direction of text."""
    return "".join(letter for letter in name[:LARGEST] if letter.isprintable()).strip()


class Lettering:
    """Letters that fit rows of that height in pixels."""

    def __init__(self, row: int):
        self.size = max(1, min(row, max(LETTER, row // 8)))
        self._margin = -(-self.size // 2)

    @cached_property
    def _font(self) -> ImageFont.FreeTypeFont:
        """DejaVu Sans, which matplotlib brings, or else Pillow's own. Letters are set one by one, alike on every machine."""
        try:
            import matplotlib
        except ImportError:  # training must not fail for it
            return ImageFont.load_default(self.size)  # type: ignore[return-value]
        path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
        return ImageFont.truetype(path, self.size, layout_engine=ImageFont.Layout.BASIC)

    def _cut(self, name: str) -> str:
        """The name, or as much of it as there is room for."""
        most = MOST_LETTERS * self.size
        if self._font.getlength(name) <= most:
            return name
        while name and self._font.getlength(name + "…") > most:
            name = name[:-1]
        return name.rstrip() + "…"

    def width(self, names: Sequence[str]) -> int:
        """Pixels that the widest of the names takes, with a margin at both sides."""
        return math.ceil(max(self._font.getlength(self._cut(name)) for name in names)) + 2 * self._margin

    def strip(self, name: str, width: int, height: int) -> Image.Image:
        """A grey picture of that size with the name at its left, in the middle of its height."""
        found = Image.new("L", (width, height), PAPER)
        ImageDraw.Draw(found).text((self._margin, height // 2), self._cut(name), INK, self._font, anchor="lm")
        return found
