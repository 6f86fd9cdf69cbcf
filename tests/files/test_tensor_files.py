import json
import os
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elbocli.errors import DataError, FormatError
from elbocli.files import tensor_files
from elbocli.files.recognise import begins_like_tensors
from elbocli.files.tensor_files import AverageFacts, TensorFile, load


def test_tensors_and_metadata_read_back(tmp_path):
    path = tmp_path / "b.safetensors"
    save_file({"x": torch.arange(3.0), "y": torch.zeros(0, 2)}, tmp_path / "a", {"format": "λ"})
    (tmp_path / "a").rename(path)
    assert load(path)["x"].tolist() == [0, 1, 2] and load(path)["y"].shape == (0, 2)
    assert TensorFile(path).metadata == {"format": "λ"} and begins_like_tensors(path)
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
    for read in (load, TensorFile):
        with pytest.raises(FormatError, match=r"a\.safetensors: not usable"):
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


# Averages

ABOUT = {"spec": "power:std=0.1", "step": 30, "images": 480, "trained": {"lr": 0.002}, "note": "λ"}
TENSORS = {
    "half": torch.arange(5, dtype=torch.float16),
    "brain": torch.arange(3, dtype=torch.bfloat16),
    "flag": torch.tensor([True, False, True]),
    "weight": torch.randn(4, 3).T,
    "double": torch.randn(2, dtype=torch.float64),
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
}


def write(path, about=ABOUT, tensors=TENSORS):
    tensor_files.write_tensors(path, tensors, tensor_files.AVERAGE, AverageFacts.of(about))


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    for found in (load_file(path), tensor_files.load(path)):
        assert set(found) == set(TENSORS)
        for key, value in TENSORS.items():
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    assert tensor_files.read_about(path)[0] == AverageFacts.of(ABOUT)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_a_flipped_bit_in_any_byte_of_the_tensors_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    tensor_files.check_average(path)
    for place in range(start, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(FormatError, match=r"a\.safetensors: damaged"):
            tensor_files.check_average(path)


def test_a_full_disk_is_told_and_leaves_nothing(small_disk):
    with pytest.raises(DataError, match="could not write"):
        write(small_disk / "a.safetensors", tensors={"x": torch.zeros(1 << 18)})
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (None, "format is"),
        ({"format": "pt"}, "format is 'pt'"),
        ({"format": "elbo-ema", "version": "0"}, "version 0"),
        ({"format": "elbo-ema", "version": "1"}, "doesn't say how"),
        ({"format": "elbo-ema", "version": "1", "about": "[]"}, "doesn't say how"),
        ({"format": "elbo-ema", "version": "1", "about": "{"}, "doesn't say how"),
        ({"format": "elbo-ema", "version": "1", "about": '{"spec": "0.9", "step": "x"}'}, "doesn't say how"),
    ],
)
def test_other_weights_are_refused(tmp_path, meta, words):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", meta)
    with pytest.raises(FormatError, match=words):
        tensor_files.read_about(tmp_path / "a.safetensors")


def test_the_digest_in_the_header_is_that_of_the_tensors_even_if_a_name_looks_like_it(tmp_path):
    path = tmp_path / "a.safetensors"
    about = {**ABOUT, "note": f'"payload_sha256":"{"0" * 64}"'}
    write(path, about=about)
    tensor_files.check_average(path)
    assert tensor_files.read_about(path)[0].more["note"] == about["note"]
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(TENSORS)
