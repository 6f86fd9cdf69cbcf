import io
import json
import os
import struct
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from elbocli.errors import FormatError
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import TensorFile, load, load_tensors, metadata


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
    "a list": file_of([]),
    "a tensor that is a number": file_of({"x": 1}),
    "a side of 100,000 digits": file_of(
        b'{"x":{"dtype":"U8","shape":[' + b"1" * 100_000 + b'],"data_offsets":[0,1]}}', b"1"
    ),
    "metadata that is a number": file_of({"__metadata__": {"format": 1}}),
    "a tensor beyond the end": file_of({"x": {**ONE, "shape": [9], "data_offsets": [0, 9]}}, b"1"),
    "a gap": file_of({"x": {**ONE, "data_offsets": [1, 2]}}, b"12"),
    "tensors that overlap": file_of({"x": ONE, "y": ONE}, b"1"),
    "more than its tensors": file_of({"x": ONE}, b"12"),
    "a type that is none": file_of({"x": {**ONE, "dtype": "U7"}}, b"1"),
    "depth": file_of(b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_out_of_bounds_is_refused(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (load, metadata, TensorFile):
        with pytest.raises(FormatError, match=r"a\.safetensors: not usable as weights: "):
            read(path)


def test_tensors_are_read_also_when_the_file_is_gone_and_stay_when_it_is_cut(tmp_path):
    save_file({"x": torch.ones(4096), "y": torch.zeros(4096)}, tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "b")
    save_file({"x": torch.ones(4096), "y": torch.zeros(4096)}, tmp_path / "a")
    file = TensorFile(tmp_path / "a")
    (tmp_path / "a").unlink()
    found = load(tmp_path / "b")
    os.truncate(tmp_path / "b", 100)
    assert bool((file.read("x") == 1).all()) and bool((found["x"] == 1).all())


def test_a_tensor_with_more_values_than_are_stored_is_refused(tmp_path):
    circle: list[Any] = [torch.zeros(2)]
    circle.append(circle)
    for tree in (torch.zeros(1).expand(10**12), {"a": [(torch.zeros(1).expand(2),)]}):
        torch.save(tree, tmp_path / "a.pt")
        with pytest.raises(FormatError, match="more values than are stored"):
            load_tensors(tmp_path / "a.pt")
    torch.save(circle, buffer := io.BytesIO())
    buffer.seek(0)
    assert load_tensors(buffer)[0].tolist() == [0, 0]
