"""The types of options: what they take, and what they say of what they don't."""

import click
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.cli.types import Duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("3h50m", 3 * 3600 + 50 * 60),
        ("3h 50min", 3 * 3600 + 50 * 60),
        ("1.5h", 5400),
        ("2d", 2 * 86400),
        ("1D12H", 1.5 * 86400),
        ("90m", 5400),
        ("1:30:00", 5400),
        ("90:00", 5400),
        ("01:30", 90),
        ("1-00:10:00", 86400 + 600),
        ("0", 0),
        (13800.0, 13800),
        (90, 90),
    ],
)
def test_a_duration_is_read(text: object, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@settings(deadline=None)
@given(st.integers(0, 900), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_units_and_colons_say_the_same(days: int, hours: int, minutes: int, seconds: int) -> None:
    wanted = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert Duration().convert(f"{days}d{hours}h{minutes}m{seconds}s", None, None) == wanted
    assert Duration().convert(f"{days}-{hours}:{minutes:02}:{seconds:02}", None, None) == wanted


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("90", "90s are seconds, 90m minutes"),
        ("1.5", "of what"),
        ("", "expected one like 3h50m"),
        ("soon", "expected one like 3h50m"),
        ("50m3h", "expected one like 3h50m"),
        ("1:75:00", "expected one like 3h50m"),
        ("1-24:00:00", "expected one like 3h50m"),
        ("1:2", "expected one like 3h50m"),
        ("1.2.3h", "expected one like 3h50m"),
        ("-5m", "expected one like 3h50m"),
        ("1001d", "at most 1000 days"),
        (-1.0, "at least 0"),
        (float("nan"), "at least 0"),
        (True, "expected one like 3h50m"),
    ],
)
def test_what_is_no_duration_is_told(text: object, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said.replace("?", r"\?")):
        Duration().convert(text, None, None)
