"""The types of options: what they take, and what they say of what they don't."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.errors import UsageError
from elbocli.run.train_settings import convert_settings, seconds


@pytest.mark.parametrize(
    ("text", "wanted"),
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
        (13800.0, 13800),
        (90, 90),
    ],
)
def test_a_duration_is_read(text: object, wanted: float) -> None:
    assert seconds(text) == wanted


@settings(deadline=None)
@given(st.integers(0, 900), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59))
def test_units_and_colons_say_the_same(days: int, hours: int, minutes: int, left: int) -> None:
    wanted = ((days * 24 + hours) * 60 + minutes) * 60 + left
    assert seconds(f"{days}d{hours}h{minutes}m{left}s") == wanted
    assert seconds(f"{days}-{hours}:{minutes:02}:{left:02}") == wanted


@pytest.mark.parametrize("text", ["90", "1.5", "", "soon", "50m3h", "1:2", "1.2.3h", "-5m", "1001d", "-1.0", "nan"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="time_limit"):
        convert_settings({"time_limit": text})
