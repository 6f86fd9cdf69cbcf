import io
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.files.npy import LONGEST_HEADER, read_array, read_header


def saved(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def announcing(shape, descr="|u1", content=b"", version=(2, 0)):
    buffer = io.BytesIO()
    write = {(1, 0): np.lib.format.write_array_header_1_0, (2, 0): np.lib.format.write_array_header_2_0}[version]
    write(buffer, {"descr": descr, "fortran_order": False, "shape": shape})
    return io.BytesIO(buffer.getvalue() + content)


@pytest.mark.parametrize("kind", ["u1", "<i8", ">f4", "<f8", "<U3", "?", "<c16"])
@given(shape=st.lists(st.integers(0, 4), max_size=4), fortran=st.booleans())
def test_an_array_reads_back(kind, shape, fortran):
    array = np.random.default_rng(0).integers(0, 2, shape).astype(kind)
    array = np.asfortranarray(array) if fortran else array
    found = read_array(io.BytesIO(saved(array)), array.nbytes)
    assert found.dtype == array.dtype and np.array_equal(found, array)


def test_text_without_a_letter_reads_back():
    assert str(read_array(io.BytesIO(saved(np.array(""))), 100)) == ""


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (lambda: io.BytesIO(b""), "cut short"),
        (lambda: io.BytesIO(b"PK\3\4" + bytes(100)), "doesn't begin"),
        (lambda: io.BytesIO(b"\x93NUMPY\2\0" + struct.pack("<I", 3 << 30)), "a header of 3221225472 bytes"),
        (lambda: io.BytesIO(b"\x93NUMPY\2\0" + struct.pack("<I", LONGEST_HEADER) + b"(" * LONGEST_HEADER), ""),
        (lambda: io.BytesIO(b"\x93NUMPY\1\0" + struct.pack("<H", 9999) + b"1" * 9999), ""),
        (lambda: io.BytesIO(b"\x93NUMPY\7\0" + bytes(100)), ""),
        (lambda: announcing((2, -1)), "its shape"),
        (lambda: announcing((1 << 40,)), "has 1099511627776 bytes, more than 1000"),
        (lambda: announcing((), "<U500000000"), "more than 1000"),
        (lambda: announcing((1000,), content=bytes(999)), "cut short: 999 of 1000"),
        (lambda: io.BytesIO(saved(np.array([None]))), "pickled objects, which could run code"),
    ],
    ids=range(11),
)
def test_what_is_out_of_bounds_is_refused_before_it_takes_memory(file, what):
    with pytest.raises(ValueError, match=what):
        read_array(file(), 1000)


def test_a_header_is_read_and_no_more():
    file = announcing((3, 4), "<f4", b"rest")
    assert read_header(file) == ((3, 4), False, np.dtype("<f4")) and file.read() == b"rest"
