"""The reader of other people's checkpoints: it reads what torch wrote, and nothing in a file is ever run."""

from __future__ import annotations

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from elbocli.errors import FormatError
from elbocli.files.pickles import Foreign, class_name, module_tensors, read_torch_file

TREE = {
    "model": OrderedDict(a=torch.randn(2, 3), b=torch.randn(4, 2, 5)[1:, :, ::2], c=torch.tensor(3)),
    "half": [torch.randn(3).half(), torch.randn(3).bfloat16(), torch.randn(0, 2), torch.randn(2, 2).bool()],
    "step": 7,
    "lr": 0.5,
    "name": "naïve",
    "parameter": torch.nn.Parameter(torch.randn(3, 2).T),
    "shape": torch.Size([2, 3]),
    "dtype": torch.float16,
}
WRITERS: dict[str, Callable[[Any, Path], None]] = {
    "zip": torch.save,
    "legacy": lambda tree, path: torch.save(tree, path, _use_new_zipfile_serialization=False),
    "pickle": lambda tree, path: path.write_bytes(pickle.dumps(tree, 4)),
    "pickle of protocol 2": lambda tree, path: path.write_bytes(pickle.dumps(tree, 2)),
}

MIXED = {name: write for name, write in WRITERS.items() if name != "legacy"}
"""Formats of which elbo also reads files that hold more than tensors."""


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_trees_come_back_as_torch_wrote_them(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write(TREE, tmp_path / "x.pt")
    found = read_torch_file(tmp_path / "x.pt")
    assert same(TREE, found)


def test_safetensors_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 2), "b": torch.randn(2).half()}
    save_file(tensors, tmp_path / "x")
    assert same(tensors, dict(sorted(read_torch_file(tmp_path / "x").items())))


@pytest.mark.parametrize("write", MIXED.values(), ids=MIXED)
def test_objects_are_named_and_not_made(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    write({"args": argparse.Namespace(model="DiT-XL/2"), "w": torch.ones(2)}, tmp_path / "x")
    found = read_torch_file(tmp_path / "x")
    args = found["args"]
    assert isinstance(args, Foreign) and args.state == {"model": "DiT-XL/2"}
    assert torch.equal(found["w"], torch.ones(2))


@pytest.mark.parametrize("write", MIXED.values(), ids=MIXED)
def test_nothing_is_ever_run(write: Callable[[Any, Path], None], bomb: Any, tmp_path: Path) -> None:
    write({"w": torch.ones(2), "more": [bomb]}, tmp_path / "x")
    found = read_torch_file(tmp_path / "x")
    assert not bomb.went_off and torch.equal(found["w"], torch.ones(2))


@pytest.mark.parametrize("write", list(WRITERS.values())[2:], ids=list(WRITERS)[2:])
def test_a_pickled_module_has_the_tensors_of_its_state_dict(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    module = torch.nn.Sequential(
        torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3), torch.nn.ModuleList([torch.nn.Linear(2, 2)])
    )
    write({"ema": module}, tmp_path / "x.pkl")
    tree = read_torch_file(tmp_path / "x.pkl")
    assert class_name(tree["ema"]) == "Sequential" and same(dict(module.state_dict()), module_tensors(tree["ema"]))
    with pytest.raises(FormatError, match="no pickled network"):
        module_tensors(tree)


def test_a_legacy_file_with_more_than_tensors_is_refused_and_not_run(bomb: Any, tmp_path: Path) -> None:
    WRITERS["legacy"]({"w": torch.ones(2), "more": [bomb]}, tmp_path / "x")
    with pytest.raises(FormatError, match="it holds more than tensors"):
        read_torch_file(tmp_path / "x")
    assert not bomb.went_off


def archive(tmp_path: Path, data: bytes, compressed: bool = False) -> Path:
    path = tmp_path / "crafted.pt"
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", bytes(4000))
    return path


def tensor_pickle(count: int = 1000, key: str = "0", **replaced: Any) -> bytes:
    """The pickle of a tensor of `count` values in a storage of 1000, or of another offset, size, stride."""
    said = {"offset": 0, "size": (count,), "stride": (1,)} | replaced

    class Persistent(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return ("storage", torch.FloatStorage, key, "cpu", 1000) if value == "here" else None

    class Rebuilt:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (
                "here",
                said["offset"],
                said["size"],
                said["stride"],
                False,
                OrderedDict(),
            )

    buffer = io.BytesIO()
    Persistent(buffer, 2).dump({"w": Rebuilt()})
    return buffer.getvalue()


def test_a_crafted_archive_is_one_of_torchs(tmp_path: Path) -> None:
    assert torch.equal(read_torch_file(archive(tmp_path, tensor_pickle()))["w"], torch.zeros(1000))


@pytest.mark.parametrize(
    "data",
    [
        tensor_pickle(1001),
        tensor_pickle(offset=1),
        tensor_pickle(offset=-1),
        tensor_pickle(size=(2, 2)),
        tensor_pickle(size=(2,), stride=(1000,)),
        tensor_pickle(size=(2.0,)),
        tensor_pickle(key="1"),
        tensor_pickle(key="../data.pkl"),
        b"\x80\2K\1K\2\x85R.",
        b"\x80\2K\1Q.",
        b"",
    ],
    ids=range(11),
)
def test_what_does_not_fit_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"crafted.pt: not usable as a checkpoint"):
        read_torch_file(archive(tmp_path, data))


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_a_truncated_or_changed_file_gives_a_tree_or_an_error(
    write: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    write({"a": torch.arange(12.0).reshape(3, 4), "b": {"c": [1, "x"]}}, tmp_path / "x")
    whole, random = (tmp_path / "x").read_bytes(), np.random.default_rng(0)
    for end in random.integers(0, len(whole), 60):
        (tmp_path / "y").write_bytes(whole[:end])
        with pytest.raises(FormatError, match="y: not usable"):
            read_torch_file(tmp_path / "y")
    for _ in range(300):
        content = bytearray(whole)
        for place in random.integers(0, len(content), random.integers(1, 4)):
            content[place] = random.integers(256)
        (tmp_path / "y").write_bytes(content)
        try:
            read_torch_file(tmp_path / "y")
        except FormatError:
            continue


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
def test_what_was_read_stays_when_the_file_is_cut_short(write: Callable[[Any, Path], None], tmp_path: Path) -> None:
    tensors = {"a": torch.randn(5000), "b": torch.arange(3000)}
    write(tensors, tmp_path / "x")
    found = read_torch_file(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"")
    assert same(tensors, found)


def test_tensors_that_share_values_still_do_and_take_memory_once(tmp_path: Path) -> None:
    base = torch.randn(1000)
    torch.save({"whole": base, "part": base[10:20]}, tmp_path / "x")
    found = read_torch_file(tmp_path / "x")
    assert found["part"].data_ptr() == found["whole"].data_ptr() + 40 and torch.equal(found["whole"], base)


def nested(depth: int = 60) -> list[Any]:
    """A list of two lists that are one, and so on: written out it would have 2^60 parts."""
    found: list[Any] = []
    for _ in range(depth):
        found = [found, found]
    return found


class Calls:
    """Pickles as a call of a function."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call
