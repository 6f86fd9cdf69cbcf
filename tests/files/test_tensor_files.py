import json
import math
import os
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from elbocli.errors import FormatError, Vanished
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import (
    DTYPES,
    LARGEST_HEADER,
    MOST_SIDES,
    TensorFile,
    load,
    metadata,
)


def test_tensors_and_metadata_read_back(tmp_path):
    path = tmp_path / "a\udcff.safetensors"
    save_file({"x": torch.arange(3.0), "y": torch.zeros(0, 2)}, tmp_path / "a", {"format": "λ"})
    (tmp_path / "a").rename(path)
    assert load(path)["x"].tolist() == [0, 1, 2] and load(path)["y"].shape == (0, 2)
    assert metadata(path) == {"format": "λ"} and begins_like_tensors(path)
    assert TensorFile(path).layout == {"x": ("F32", (3,)), "y": ("F32", (0, 2))}


def file_of(header, payload=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + payload


ONE = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
BAD = {
    "nothing": b"",
    "a longer header than file": struct.pack("<Q", 1000) + b"{}",
    "a header of 17 MB": file_of(b" " * (LARGEST_HEADER + 1)),
    "a header that becomes gigabytes": file_of(b'{"a":' + b"[" * 10 + b"{}," * (5 << 20) + b"0}"),
    "a list": file_of([]),
    "a tensor that is a number": file_of({"x": 1}),
    "a tensor given twice": file_of(
        b'{"x":' + json.dumps(ONE).encode() + b',"x":' + json.dumps(ONE).encode() + b"}", b"1"
    ),
    "a side of 100,000 digits": file_of(
        b'{"x":{"dtype":"U8","shape":[' + b"1" * 100_000 + b'],"data_offsets":[0,1]}}', b"1"
    ),
    "metadata that is a number": file_of({"__metadata__": {"format": 1}}),
    "a tensor beyond the end": file_of({"x": {**ONE, "shape": [9], "data_offsets": [0, 9]}}, b"1"),
    "a gap": file_of({"x": {**ONE, "data_offsets": [1, 2]}}, b"12"),
    "tensors that overlap": file_of({"x": ONE, "y": ONE}, b"1"),
    "more than its tensors": file_of({"x": ONE}, b"12"),
    "a type that is none": file_of({"x": {**ONE, "dtype": "U7"}}, b"1"),
    "many sides": file_of({"x": {**ONE, "shape": [1] * (MOST_SIDES + 1)}}, b"1"),
    "depth": file_of(b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_out_of_bounds_is_refused(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (load, metadata, TensorFile):
        with pytest.raises(FormatError, match=r"a\.safetensors: not usable as weights: "):
            read(path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 0), (2, 3)])
def test_every_type_reads_as_the_library_reads_it(dtype, shape, tmp_path):
    size = math.prod(shape) * DTYPES[dtype].itemsize
    header = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}
    (tmp_path / "a.safetensors").write_bytes(file_of(header, bytes(range(size)) if dtype != "BOOL" else bytes(size)))
    found, theirs = (read(tmp_path / "a.safetensors")["x"] for read in (load, load_file))
    assert (found.dtype, found.shape) == (theirs.dtype, theirs.shape)
    assert found.reshape(-1).view(torch.uint8).tolist() == theirs.reshape(-1).view(torch.uint8).tolist()


def two(path):
    save_file({"x": torch.ones(4096), "y": torch.zeros(4096)}, path)
    return TensorFile(path)


def test_tensors_that_were_read_stay_when_the_file_is_cut(tmp_path):
    file = two(tmp_path / "a")
    found = file.read("x")
    os.truncate(file.path, 100)
    assert bool((found == 1).all())
    with pytest.raises(FormatError, match="a: has changed while it was read"):
        file.read("y")


@pytest.mark.parametrize("change", [Path.unlink, two])
def test_a_file_that_is_gone_or_another_is_told_from_a_damaged_one(change, tmp_path):
    file = two(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    if change is two:
        two(tmp_path / "a")
    with pytest.raises(Vanished):
        file.read("x")


def test_a_file_with_holes_takes_no_more_memory_than_it_has_bytes(tmp_path):
    size = 1 << 40
    header = {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    (tmp_path / "a").write_bytes(file_of(header))
    os.truncate(tmp_path / "a", (tmp_path / "a").stat().st_size + size)
    with pytest.raises(FormatError, match="a: not usable as weights"):
        load(tmp_path / "a")
