import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from elbocli.errors import DataError, FormatError
from elbocli.files import average_file
from elbocli.files.average_file import AverageFacts

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
LAYOUT = {
    "half": ("F16", (5,)),
    "brain": ("BF16", (3,)),
    "flag": ("BOOL", (3,)),
    "weight": ("F32", (3, 4)),
    "double": ("F64", (2,)),
    "count": ("I64", ()),
    "none": ("F32", (0, 3)),
}


def write(path, layout=LAYOUT, about=ABOUT, tensor=TENSORS.__getitem__):
    return list(average_file.writing_average(path, layout, AverageFacts.of(about), tensor))


def test_what_is_written_is_what_safetensors_reads(tmp_path):
    path = tmp_path / "a.safetensors"
    assert write(path) == [1, 2, 3, 4, 5, 6, 7]
    for found in (load_file(path), average_file.load(path)):
        assert set(found) == set(TENSORS)
        for key, value in TENSORS.items():
            assert found[key].dtype == value.dtype and torch.equal(found[key], value), key
    assert average_file.read_about(path)[0] == AverageFacts.of(ABOUT)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_every_tensor_is_aligned_to_its_size(tmp_path):
    write(tmp_path / "a.safetensors")
    content = (tmp_path / "a.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    assert length % 8 == 0
    header = json.loads(content[8 : 8 + length])
    del header["__metadata__"]
    assert all(entry["data_offsets"][0] % average_file.SIZES[entry["dtype"]] == 0 for entry in header.values())
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - length


def test_a_flipped_bit_in_any_byte_of_the_tensors_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    write(path)
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    average_file.check(path)
    for place in range(start, len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(FormatError, match=r"a\.safetensors: damaged"):
            average_file.load(path)


def test_one_tensor_at_a_time(tmp_path):
    asked = []

    def tensor(key):
        asked.append(key)
        return TENSORS[key]

    writer = average_file.writing_average(tmp_path / "a.safetensors", LAYOUT, AverageFacts.of(ABOUT), tensor)
    for done in writer:
        assert len(asked) == done
    assert sorted(asked) == sorted(LAYOUT)


def test_a_writer_that_is_left_leaves_nothing(tmp_path):
    writer = average_file.writing_average(
        tmp_path / "a.safetensors", LAYOUT, AverageFacts.of(ABOUT), TENSORS.__getitem__
    )
    next(writer)
    del writer
    assert not list(tmp_path.iterdir())

    def broken(key):
        raise DataError("gone")

    with pytest.raises(DataError, match="gone"):
        write(tmp_path / "a.safetensors", tensor=broken)
    assert not list(tmp_path.iterdir())


def test_a_type_that_has_no_size_is_refused(tmp_path):
    with pytest.raises(FormatError, match="x is F8_E4M3"):
        write(tmp_path / "a.safetensors", {"x": ("F8_E4M3", (1,))})


def test_a_full_disk_is_told_and_leaves_nothing(small_disk):
    with pytest.raises(DataError, match="could not write"):
        write(small_disk / "a.safetensors", {"x": ("F32", (1 << 18,))}, tensor=lambda key: torch.zeros(1 << 18))
    assert not list(small_disk.iterdir())


@pytest.mark.parametrize(
    ("meta", "words"),
    [
        (None, "format is None"),
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
        average_file.read_about(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"hello", bytes(100), b"\xff" * 100])
def test_what_is_no_safetensors_file_is_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match="not usable as weights"):
        average_file.read_about(tmp_path / "a.safetensors")


def test_the_digest_in_the_header_is_that_of_the_tensors_even_if_a_name_looks_like_it(tmp_path):
    path = tmp_path / "a.safetensors"
    about = {**ABOUT, "note": f'"payload_sha256":"{"0" * 64}"'}
    write(path, about=about)
    average_file.check(path)
    assert average_file.read_about(path)[0].more["note"] == about["note"]
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == set(LAYOUT)
