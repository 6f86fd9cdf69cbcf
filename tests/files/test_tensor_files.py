import json
import struct

import pytest
import torch
from safetensors.torch import save_file

from elbocli.errors import FormatError
from elbocli.files import tensor_files
from elbocli.files.tensor_files import LARGEST_HEADER, begins_like_tensors, load, metadata, open_tensors


def test_tensors_and_metadata_read_back(tmp_path):
    path = tmp_path / "a\udcff.safetensors"
    save_file({"x": torch.arange(3.0), "y": torch.zeros(0, 2)}, tmp_path / "a", {"format": "λ"})
    (tmp_path / "a").rename(path)
    assert load(path)["x"].tolist() == [0, 1, 2] and load(path)["y"].shape == (0, 2)
    assert metadata(path) == {"format": "λ"} and begins_like_tensors(path)
    with open_tensors(path) as file:
        assert list(file.keys()) == ["x", "y"]


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
    "depth": file_of(b'{"x":' + b"[" * 1000 + b"]" * 1000 + b"}"),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD)
def test_what_is_out_of_bounds_is_refused(content, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    for read in (load, metadata, open_tensors):
        with pytest.raises(FormatError, match=r"a\.safetensors: not usable as weights: "):
            read(path)


def test_the_library_sees_no_header_that_was_not_checked(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    path.write_bytes(BAD["a header of 17 MB"])
    monkeypatch.setattr(tensor_files, "safe_open", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(FormatError, match="a header of"):
        open_tensors(path)
