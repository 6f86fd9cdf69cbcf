"""Tables for people: numbers have two digits of their error, columns fit the width, and text can't control the terminal."""

import math
import re

import pytest

from elbocli.runtime.table import Table, aligned, cell, rounded


@pytest.mark.parametrize(
    ("value", "se", "text"),
    [
        (6.590462, 0.0408813, "6.590 ± 0.041"),
        (20.947, 1.2595, "20.9 ± 1.3"),
        (0.5, 0.0996, "0.50 ± 0.10"),
        (12345.6, 123.4, "12350 ± 120"),
        (-0.0001, 0.05, "0.000 ± 0.050"),
        (2.3477e-05, 1.298e-07, "2.35e-05 ± 1.3e-07"),
        (1 / 3, None, "0.33333"),
        (1 / 3, 0.0, "0.33333"),
        (1 / 3, math.inf, "0.33333"),
    ],
)
def test_a_number_has_two_digits_of_its_standard_error(value, se, text):
    assert rounded(value, se) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        ("", "-"),
        (True, "yes"),
        (1234567, "1,234,567"),
        ((None, None), "-"),
        ([0.12345, 0.23461], "0.123 to 0.235"),
        ("a\x1b[31m\nb", r"a\x1b[31m\nb"),
    ],
)
def test_each_kind_of_value_has_a_text(value, text):
    assert cell(value) == text


@pytest.mark.parametrize("width", [20, 30, 80])
def test_columns_beyond_the_width_follow_below_with_the_names_of_the_rows(width):
    rows = [["run", "state", "step", "loss"], ["first", "done", "1000 of 1000", "0.25"], ["second", "running", "7 of 1000", "1"]]
    lines = [*aligned(rows, width)]
    assert all(len(line) <= width for line in lines)
    cells = [re.split(r"\s{2,}", line) for line in lines if line]
    for row in rows:
        assert [word for words in cells if words[0] == row[0] for word in words[1:]] == row[1:]


def test_a_table_keeps_to_the_width_and_html_has_the_same_words():
    words = "a sentence that is longer than the width of the table, " * 3
    table = Table("title & more", ["", "value"], [["x", (1.0, 0.1)]], {"run": words, "absent": None}, [words + "<b>"])
    text = table.text(50)
    page = table._repr_html_()
    assert max(map(len, text.splitlines())) <= 50 and "absent" not in text
    for part in ("title &amp; more", "1.00 ± 0.10", words.strip(), "&lt;b&gt;"):
        assert part in page
