import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.errors import FormatError
from elbocli.files import strict_json
from elbocli.files.reading import LARGEST_TEXT

NUMBERS = st.integers(-(10**380), 10**380) | st.floats(allow_nan=False, allow_infinity=False)
TREES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=12,
)


@given(TREES, st.booleans())
def test_what_json_writes_reads_back(value, ascii_only):
    text = json.dumps(value, ensure_ascii=ascii_only)
    try:
        content = text.encode()
    except UnicodeEncodeError:  # a half of a letter, by itself
        return
    assert strict_json.parse(content) == value == strict_json.parse(text)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "Expecting value"),
        ("{", "Expecting"),
        ('{"a": 1} 2', "Extra data"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' is given twice"),
        ('[{"x": {"a": 1, "a": 1}}]', "'a' is given twice"),
        ("[NaN]", "NaN is not a number"),
        ("[-Infinity]", "-Infinity is not a number"),
        ("[1e999]", "is no number that a computer has"),
        ("[1e+00309]", "is no number"),
        (f"[{'9' * 400}.5]", "is no number"),
        (f"[{'9' * 401}]", "a number of 401 digits"),
        ("[-" + "1" * 100_000 + "]", "a number of 100001 digits"),
        ("[" * 65 + "]" * 65, "deeper than 64"),
        ('{"a":' * 65 + "1" + "}" * 65, "deeper than 64"),
        ("[" * 100_000, "deeper than 64"),
        (b'"\xff"', "can't decode|invalid start byte"),
        ("[" + "{}," * (LARGEST_TEXT // 4) + "0]", "too much memory"),
        (b" " * LARGEST_TEXT + b"1", "more than"),
    ],
    ids=range(18),
)
def test_what_is_out_of_bounds_is_refused_at_once(text, what):
    start = time.process_time()
    with pytest.raises(FormatError, match=f"^results: not usable JSON: .*({what})"):
        strict_json.load(text, "results")
    assert time.process_time() - start < 3


def test_a_long_run_of_digits_in_a_text_is_a_text():
    value = {"0" * 5000: ["1" * 5000, "1e999", "[" * 100, "NaN"], "number": 12}
    assert strict_json.parse(json.dumps(value)) == value


def test_numbers_at_the_bounds_are_read():
    largest = 1.7976931348623157e308
    assert strict_json.parse(f"[{largest!r}, {'9' * 400}, 1e-999, 0e999]") == [largest, 10**400 - 1, 0.0, 0.0]
    assert math.copysign(1, strict_json.parse("-0.0")) == -1


def test_no_value_takes_more_memory_than_was_reckoned(python):
    """Texts of small pieces become many times as large: whatever is read at all stays within the bound."""
    code = """
import resource, sys
from elbocli.files import strict_json
piece, close = sys.argv[1], sys.argv[2]
each = sum(size * piece.encode().count(mark) for mark, size in strict_json.MEMORY.items()) + 9 * len(piece.encode())
count = (48 << 20) // each
text = "[" + piece * count + close + "]"
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = strict_json.parse(text, 1 << 30)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 <= count * each)
"""
    for piece, close in (("[],", "0"), ('{"ab":{}},', "0"), ('"ab",', "0"), ("1.5,", "0")):
        assert python(code, piece, close).strip() == "True", piece


def test_a_file_is_read_within_bounds(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"a": [1, "λ"]}', "utf-8")
    assert strict_json.read(path) == {"a": [1, "λ"]}
    with pytest.raises(FormatError, match=r"a\.json: 16 bytes is too large"):
        strict_json.read(path, 15)
    with pytest.raises(FormatError, match="No such file"):
        strict_json.read(tmp_path / "b.json")
