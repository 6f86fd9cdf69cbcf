"""elbo info --verify: what is whole passes, a flipped bit is found wherever it lies."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from elbocli.errors import FormatError
from elbocli.files.dataset import ENCODED, ENCODINGS, IMAGES, BlockLayout, Dataset, DatasetWriter, encode
from elbocli.files.features import FeatureFacts, SavedFeatures, write_features
from elbocli.info.describe import verify

FLIP = Path(__file__).with_name("flip_bits.py")


def pack(path: Path, kind: str = "raw", count: int = 12) -> Path:
    rows = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), np.uint8)
    labels = np.arange(count) % 3
    about: dict[str, Any] = {"num_classes": 3, "image_size": 8, "elbo_version": "0.1.0", "command": "elbo prep x y"}
    if kind in ENCODINGS:
        layout, about = BlockLayout(ENCODED, (), 300), {**about, "store": kind, "channels": 3}
    else:
        layout = BlockLayout(IMAGES, (8, 8, 3))
    with DatasetWriter(path, layout, count, "test").held() as writer:
        writer.append([encode(row, kind) for row in rows] if kind in ENCODINGS else rows, count, {})
        writer.finish(
            {"labels": labels, "class_counts": np.bincount(labels)},
            {"class_names": ["ant", "bee", "cat"], "files": [f"{i}.png" for i in range(count)]},
            about,
        )
    return path


@pytest.mark.parametrize("kind", ["raw", "png", "webp"])
def test_what_is_whole_passes(kind: str, tmp_path: Path) -> None:
    facts = verify(pack(tmp_path / "a.h5", kind))
    assert facts["verified"] == ["contents_sha256", "payload_sha256"] and not facts["unverified"]
    assert facts["store"] == kind
    assert facts["bytes_per_image"] == 192 if kind == "raw" else facts["bytes_per_image"] > 100


@pytest.mark.parametrize(
    ("kind", "stride"),
    [
        ("raw", 31),
        pytest.param("webp", 37, marks=pytest.mark.slow),
    ],
)
def test_a_flipped_bit_is_found_or_changes_nothing(kind: str, stride: int, tmp_path: Path) -> None:
    path = pack(tmp_path / "a.h5", kind)
    done = subprocess.run([sys.executable, FLIP, path, str(stride)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["missed"] == 0 and result["found"] >= 100, result
    assert result["dead"] <= 8, result  # the library itself crashes; HDF5 1.14.2 oftener than later ones


def change(path: Path, name: str, value: Any, seal: bool = True) -> Path:
    with h5py.File(path, "r+") as file:
        if name in file:
            del file[name]
            file[name] = value
        elif value is None:
            del file.attrs[name]
        else:
            file.attrs[name] = value
    if seal:
        digest = Dataset(path).contents_digest()
        with h5py.File(path, "r+") as file:
            file.attrs["contents_sha256"] = digest
    return path


def test_an_older_file_is_verified_by_what_it_has(elbo: Callable[..., Any], tmp_path: Path) -> None:
    path = change(change(pack(tmp_path / "a.h5"), "digests", None, False), "contents_sha256", None, False)
    result = elbo("info", path, "--verify", "--json")
    facts = json.loads(result.stdout)
    assert result.returncode == 0 and "payload_sha256" in facts["verified"]
    assert facts["unverified"] == ["contents_sha256"]


def test_runs_checkpoints_and_other_files(elbo: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    facts = verify(trained)
    count = len(list((trained / "checkpoints").iterdir()))
    assert facts["verified"] == [f"sha256 of {3 * count} files"]
    assert verify(trained / "losslog.jsonl")["verified"] == []
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8, 3), np.uint8))
    assert verify(tmp_path / "x.npy")["verified"] == []
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-1])
    with pytest.raises(FormatError, match=r"x\.npy"):
        verify(tmp_path / "x.npy")
    newest = max((trained / "checkpoints").iterdir())
    for name in ("state.pt", "model.safetensors"):
        copy = tmp_path / name / newest.name
        copy.mkdir(parents=True)
        for file in newest.iterdir():
            (copy / file.name).write_bytes(file.read_bytes())
        content = bytearray((copy / name).read_bytes())
        content[len(content) // 2] ^= 16
        (copy / name).write_bytes(content)
        result = elbo("info", copy, "--verify")
        assert result.returncode == 1 and f"{name}: damaged".encode() in result.stderr and result.stdout == b""


def test_features_are_read_whole(elbo: Callable[..., Any], tmp_path: Path) -> None:
    write_features(tmp_path / "f.safetensors", SavedFeatures(torch.ones(5, 3), about=FeatureFacts(n=5)))
    result = elbo("info", "--verify", "--json", tmp_path / "f.safetensors")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["is"] == "features of images"
    content = (tmp_path / "f.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-4])
    assert elbo("info", "--verify", tmp_path / "cut.safetensors").returncode == 1


def test_a_dataset_is_told_and_verified_without_torch(digits: Path) -> None:
    """To import torch takes five times as long as all else does at a million images."""
    code = f"import sys; from elbocli.main import run; sys.exit(run(['info', '--verify', {str(digits)!r}]) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize("flags", [(), ("--verify",)])
def test_an_npy_that_was_cut_short_is_told(flags: tuple[str, ...], elbo: Callable[..., Any], tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros((100, 8, 8, 3), np.uint8))
    assert elbo("info", *flags, tmp_path / "s.npy").returncode == 0
    os.truncate(tmp_path / "s.npy", 5000)
    result = elbo("info", *flags, tmp_path / "s.npy")
    assert result.returncode == 1 and b"s.npy" in result.stderr
