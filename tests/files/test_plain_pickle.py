"""The reader of plain pickles: it reads what Python wrote, and nothing can make it run or take what isn't plain data."""

import io
import pickle
import struct
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from published_sets import pickled, pickled_array

from elbocli.errors import FormatError
from elbocli.files.plain_pickle import PickledArray, read_plain


def read(content: bytes) -> Any:
    return read_plain(io.BytesIO(content))


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=30,
)


@given(plain, st.sampled_from([3, 4]))
def test_plain_data_come_back_as_python_wrote_them(value: object, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_arrays_of_bytes_come_back(protocol: int) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (3, 5), np.uint8)
    found = read(pickle.dumps({"a": rows, "b": np.asfortranarray(rows), "c": rows[0]}, protocol))
    assert all(isinstance(value, PickledArray) for value in found.values())
    assert np.array_equal(found["a"].pixels, rows) and np.array_equal(found["b"].pixels, rows)
    assert np.array_equal(found["c"].pixels, rows[0])


def test_python_2s_pickles_are_those_that_python_reads() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    content = pickled(data=rows, labels=[1, 2, 3], name="ant")
    theirs, ours = pickle.loads(content, encoding="latin-1"), read(content)
    assert np.array_equal(theirs["data"], rows) and np.array_equal(ours["data"].pixels, rows)
    assert {**theirs, "data": 0} == {**ours, "data": 0}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_nothing_is_ever_run(bomb, protocol: int) -> None:
    for value in (bomb, {"data": [bomb]}, (1, bomb)):
        with pytest.raises(FormatError):
            read(pickle.dumps(value, protocol))
        assert not bomb.went_off


class Sneaky:
    """An object that pickles as a call of a name that is allowed, with other arguments."""

    def __init__(self, function: object, *arguments: object):
        self.called = function, arguments

    def __reduce__(self) -> Any:
        return self.called


CALL = b"\x80\2c%b\n%b\n%b"


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(OrderedDict(a=1), 2),
        pickle.dumps({1, 2}, 4),
        pickle.dumps(1.5, 2),
        pickle.dumps(np.float64(1), 2),
        pickle.dumps(np.zeros(3), 2),
        pickle.dumps(np.array([{}], object), 2),
        pickle.dumps(Sneaky(np.dtype, "O"), 4),
        pickle.dumps(Sneaky(np.ndarray, (2, 2)), 4),
        CALL % (b"os", b"system", b"X\2\0\0\0ls\x85R."),
        CALL % (b"builtins", b"eval", b"X\1\0\0\0" + b"1\x85R."),
        CALL % (b"numpy", b"load", b"X\1\0\0\0x\x85R."),
        CALL % (b"_codecs", b"encode", b"X\1\0\0\0xX\5\0\0\0rot13\x86R."),
        CALL % (b"numpy.core.multiarray", b"_reconstruct", b"c__main__\nX\nK\0\x85U\1b\x87R."),
        CALL % (b"numpy", b"ndarray", b"(K\1tR."),
        CALL % (b"numpy", b"ndarray", b"}b."),
        b"\x80\2cos\nsystem\n.",
        b"\x80\2(cos\nsystem\nX\2\0\0\0lso.",
        b"\x80\2(X\2\0\0\0lsios\nsystem\n.",
        b"\x80\2X\2\0\0\0ab]\x81.",
        b"\x80\2K\1Q.",
        b"\x80\2Pid\n.",
        b"\x80\2\x82\1.",
    ],
)
def test_what_is_not_plain_data_is_refused(content: bytes) -> None:
    with pytest.raises(FormatError):
        read(content)


def test_the_name_that_is_refused_is_said() -> None:
    with pytest.raises(FormatError, match=r"it names 'os\.system', which isn't plain data"):
        read(b"\x80\2cos\nsystem\n.")


ARRAY = pickled_array(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"M\2\0M\3\0", b"M\2\0M\4\0"),
        (b"M\2\0M\3\0", b"M\0\0M\3\0"),
        (b"M\2\0M\3\0\x86", b"J\xff\xff\xff\xffJ\xfa\xff\xff\xff\x86"),
        (b"M\2\0M\3\0", b"\x88M\6\0"),
        (b"U\2u1", b"U\2O8"),
        (b"U\2u1", b"U\2u8"),
        (b"T\6\0\0\0", b"T\5\0\0\0"),
        (b"T\6\0\0\0", b"T\xff\xff\xff\x7f"),
        (b"\x89T", b"\x89N(lT"),
    ],
)
def test_an_array_whose_parts_do_not_fit_is_refused(old: bytes, new: bytes) -> None:
    assert read(b"\x80\2" + ARRAY + b".").pixels.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert old in ARRAY
    with pytest.raises(FormatError):
        read(b"\x80\2" + ARRAY.replace(old, new, 1) + b".")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\2",
        b"\x80\2.",
        b"\x80\2K\1K\2.",
        b"\x80\2e.",
        b"\x80\2h\7.",
        b"\x80\2K\1K\2s.",
        b"\x80\2}(K\1u.",
        b"\x80\2}](K\1tK\1s.",
        b"\x80\2a.",
        b"\x80\2\x8d" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\4\x8e" + struct.pack("<Q", 2**60) + b"x.",
        b"\x80\5\x96" + struct.pack("<Q", 2**33) + b"x.",
        b"\x80\2K\1r\xff\xff\xff\xff0.",
    ],
)
def test_a_damaged_one_is_refused_without_taking_memory(content: bytes, within) -> None:
    with within(1), pytest.raises(FormatError):
        read(content)


def test_a_key_that_is_nested_deeply_does_not_end_the_process() -> None:
    nested = b")" + b"\x85" * 1_000_000
    with pytest.raises(FormatError, match="keys that are no text"):
        read(b"\x80\2}" + nested + b"K\1s.")


def test_any_changed_bytes_give_plain_data_or_an_error(within) -> None:
    random = np.random.default_rng(0)
    whole = pickled(data=np.arange(12, dtype=np.uint8).reshape(3, 4), labels=[1, 2, 3], name="ant")
    with within(20):
        for _ in range(3000):
            content = bytearray(whole)
            for place in random.integers(2, len(content), random.integers(1, 4)):
                content[place] = random.integers(256)
            try:
                value = read(bytes(content))
            except FormatError:
                continue
            assert isinstance(value, (dict, list, tuple, str, bytes, int, PickledArray, type(None))) or value
