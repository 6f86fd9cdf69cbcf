"""Names of classes as they are drawn: within their strip, cut where they are too long."""

import numpy as np
import pytest

from elbocli.files.lettering import LETTER, MOST_LETTERS, PAPER, Lettering, shown_name

MARKS = "e" + "\u0301" * 150
"""A letter with so many accents that it reaches over many rows."""


@pytest.mark.parametrize("row", [1, 8, 28, 84, 256, 1024])
@pytest.mark.parametrize("name", ["cat", "x" * 10_000, MARKS, "Ångström 猫", ""])
def test_a_name_stays_within_its_strip(row: int, name: str) -> None:
    letters = Lettering(row)
    width = letters.width([shown_name(name)])
    assert 0 < width <= (MOST_LETTERS + 1) * letters.size + 2
    strip = letters.strip(shown_name(name), width, row)
    assert strip.size == (width, row)
    edge = np.asarray(strip)[:, -(letters.size // 4) or width :]
    assert (edge == PAPER).all(), "the last letter is whole, with a margin after it"


def test_a_long_name_is_cut_and_says_so() -> None:
    letters = Lettering(84)
    long, cut = (np.asarray(letters.strip(name, 300, 84)) for name in ("ab" * 100, "ab" * 90))
    assert np.array_equal(long, cut) and letters.width(["ab" * 100]) == letters.width(["ab" * 90])
    assert not np.array_equal(long, np.asarray(letters.strip("ab" * 5, 300, 84)))


def test_letters_grow_with_rows_that_are_very_high_and_fit_into_low_ones() -> None:
    assert [Lettering(row).size for row in (1, 8, 28, 84, 512)] == [1, 8, LETTER, LETTER, 64]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("cat", "cat"),
        (" a b ", "a b"),
        ("\x1b[31mred\x07", "[31mred"),
        ("\u202eevil\u2066", "evil"),
        ("\ud800", ""),
        ("<b>&", "<b>&"),
        ("Ж猫é", "Ж猫é"),
    ],
)
def test_nothing_is_shown_that_can_not_be_seen(name: str, shown: str) -> None:
    assert shown_name(name) == shown
