"""Tensors, features, statistics and other people's checkpoints read back to the bit, and nothing in a file is ever run."""

import argparse
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from elbocli.errors import ElboError, FormatError
from elbocli.files.features import (
    FeatureFacts,
    SavedFeatures,
    Statistics,
    read_features,
    read_statistics,
    write_features,
    write_statistics,
)
from elbocli.files.pickles import OpaqueObject, class_name, module_tensors, read_torch_file
from elbocli.files.recognise import arrays_in
from elbocli.files.tensor_files import AVERAGE, AverageFacts, TensorFile, check_tensors, load, read_average_facts, write_tensors

# Safetensors, and averages of weights

ABOUT = {"spec": "power:std=0.1", "step": 30, "images": 480, "run_id": "1f", "note": f'"payload_sha256":"{0:064}"'}
TENSORS = {
    "half": torch.arange(5, dtype=torch.float16),
    "brain": torch.arange(3, dtype=torch.bfloat16),
    "flag": torch.tensor([True, False, True]),
    "weight": torch.randn(4, 3).T,
    "count": torch.tensor(7),
    "none": torch.zeros(0, 3),
}


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_an_average_is_read_by_safetensors_and_by_elbo_and_tells_its_origin(tmp_path):
    path = tmp_path / "a.safetensors"
    write_tensors(path, TENSORS, AVERAGE, AverageFacts.of(ABOUT))
    for read in (load_file, load, read_torch_file):
        found = read(path)
        assert same({key: found[key] for key in TENSORS}, TENSORS) and len(found) == len(TENSORS)
    assert TensorFile(path).layout["none"] == ("F32", (0, 3))
    assert read_average_facts(path)[0] == AverageFacts.of(ABOUT)
    check_tensors(path)
    content = path.read_bytes()
    for place in range(8 + int.from_bytes(content[:8], "little"), len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        with pytest.raises(FormatError, match=r"a\.safetensors: damaged"):
            check_tensors(path)


def test_tensors_are_read_also_when_the_file_is_gone_and_stay_when_it_is_cut(tmp_path):
    for name in ("a", "b"):
        save_file({"x": torch.ones(4096)}, tmp_path / name)
    file = TensorFile(tmp_path / "a")
    found = load(tmp_path / "b")
    (tmp_path / "a").unlink()
    os.truncate(tmp_path / "b", 100)
    assert bool((file.read("x") == 1).all()) and bool((found["x"] == 1).all())


OUT_OF_BOUNDS = """
[]
{"x": 1}
{"__metadata__": {"format": 1}}
{"x": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}
{"x": {"dtype": "U8", "shape": [1], "data_offsets": [1, 2]}}
{"x": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
{"x": {"dtype": "U7", "shape": [2], "data_offsets": [0, 2]}}
{"x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}, "y": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}
"""


@pytest.mark.parametrize("header", [*OUT_OF_BOUNDS.strip().splitlines(), '{"x": ' + "[" * 1000])
@pytest.mark.parametrize("more", [0, 1000])
def test_tensors_out_of_bounds_are_refused(header, more, tmp_path):
    content = struct.pack("<Q", len(header) + more) + header.encode() + b"12"
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(FormatError, match=r"a\.safetensors"):
        load(tmp_path / "a.safetensors")


NO_AVERAGES = """
{}
{"format": "pt"}
{"format": "elbo-ema", "version": "0"}
{"format": "elbo-ema", "version": "1"}
{"format": "elbo-ema", "version": "1", "about": "[]"}
{"format": "elbo-ema", "version": "1", "about": "{\\"spec\\": \\"0.9\\", \\"step\\": \\"x\\"}"}
"""


@pytest.mark.parametrize("meta", NO_AVERAGES.strip().splitlines())
def test_other_weights_are_no_average(tmp_path, meta):
    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", json.loads(meta))
    with pytest.raises(FormatError, match=r"a\.safetensors"):
        read_average_facts(tmp_path / "a.safetensors")


# Other people's checkpoints

TREE = {
    "model": OrderedDict(a=torch.randn(2, 3), b=torch.randn(4, 2, 5)[1:, :, ::2], c=torch.tensor(3)),
    "half": [torch.randn(3).half(), torch.randn(3).bfloat16(), torch.randn(0, 2), torch.randn(2, 2).bool()],
    "step": 7,
    "name": "naïve",
    "parameter": torch.nn.Parameter(torch.randn(3, 2).T),
    "shape": torch.Size([2, 3]),
    "dtype": torch.float16,
}
WRITERS = {
    "zip": torch.save,
    "legacy": lambda tree, path: torch.save(tree, path, _use_new_zipfile_serialization=False),
    "pickle": lambda tree, path: path.write_bytes(pickle.dumps(tree, 4)),
    "pickle of protocol 2": lambda tree, path: path.write_bytes(pickle.dumps(tree, 2)),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_trees_come_back_as_torch_wrote_them_and_objects_are_named_and_not_made(kind, bomb, tmp_path):
    path = tmp_path / "x.pt"
    WRITERS[kind](TREE, path)
    found = read_torch_file(path)
    path.write_bytes(b"")  # what was read stays
    assert same(TREE, found)
    WRITERS[kind]({"args": argparse.Namespace(model="DiT-XL/2"), "w": torch.ones(2), "more": [bomb]}, path)
    if kind == "legacy":
        with pytest.raises(FormatError, match="more than tensors"):
            read_torch_file(path)
    else:
        found = read_torch_file(path)
        assert isinstance(found["args"], OpaqueObject) and found["args"].state == {"model": "DiT-XL/2"}
        assert torch.equal(found["w"], torch.ones(2))
    assert not bomb.went_off


@pytest.mark.parametrize("kind", ["pickle", "pickle of protocol 2"])
def test_a_pickled_module_has_the_tensors_of_its_state_dict(kind, tmp_path):
    nn = torch.nn
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.ModuleList([nn.Linear(2, 2)]), nn.Identity())
    WRITERS[kind]({"ema": module}, tmp_path / "x.pkl")
    tree = read_torch_file(tmp_path / "x.pkl")
    assert class_name(tree["ema"]) == "Sequential" and same(dict(module.state_dict()), module_tensors(tree["ema"]))
    assert module_tensors(tree) == {}


def test_tensors_that_share_values_still_do_and_take_memory_once(tmp_path):
    base = torch.randn(1000)
    torch.save({"whole": base, "part": base[10:20]}, tmp_path / "x")
    found = read_torch_file(tmp_path / "x")
    assert found["part"].data_ptr() == found["whole"].data_ptr() + 40 and torch.equal(found["whole"], base)


def tensor_pickle(size=(1000,), stride=(1,), offset=0, key="0"):
    """The pickle of a tensor in a storage of 1000 numbers."""

    class Persistent(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, key, "cpu", 1000) if value == "here" else None

    class Rebuilt:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, ("here", offset, size, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Persistent(buffer, 2).dump({"w": Rebuilt()})
    return buffer.getvalue()


CRAFTED = [
    tensor_pickle((1001,)),
    tensor_pickle(offset=-1),
    tensor_pickle((2,), (1000,)),
    tensor_pickle((2.0,)),
    tensor_pickle(key="1"),
    tensor_pickle(key="../data.pkl"),
    b"\x80\2K\1K\2\x85R.",
    b"\x80\2K\1Q.",
    b"",
]


@pytest.mark.parametrize("data", [tensor_pickle(), *CRAFTED], ids=range(10))
def test_a_tensor_that_does_not_fit_its_storage_is_refused(data, tmp_path):
    path = tmp_path / "crafted.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", bytes(4000))
    if data == tensor_pickle():
        assert torch.equal(read_torch_file(path)["w"], torch.zeros(1000))
        path.write_bytes(data)
        with pytest.raises(FormatError, match="lacks a tensor"):
            read_torch_file(path)
    else:
        with pytest.raises(FormatError, match=r"crafted.pt"):
            read_torch_file(path)


def test_a_damaged_archive_and_a_lack_of_memory_are_not_called_an_incomplete_pickle(monkeypatch, tmp_path):
    path = tmp_path / "x.pt"
    content = np.arange(1000, dtype=np.float32)
    torch.save({"w": torch.from_numpy(content)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(content[:9].tobytes(), bytes(36)))
    with pytest.raises(FormatError, match="data/0"):
        read_torch_file(path)
    path.write_bytes(whole)
    monkeypatch.setattr(torch, "frombuffer", lambda *_, **__: bytearray(1 << 62))
    with pytest.raises(FormatError, match="memory"):
        read_torch_file(path)


# Features and statistics

FACTS = {"n": 3, "extractor": "elbo-tiny", "preprocessing": {"image_size": 8}}
META = {"format": "elbo-features", "version": "1", "about": json.dumps(FACTS)}
FEATURES = torch.arange(12.0).reshape(3, 4)
MORE = {"logits": torch.randn(3, 2), "labels": torch.arange(3), "spatial": torch.randn(3, 5)}


@pytest.mark.parametrize("more", [{}, MORE], ids=["alone", "all"])
def test_features_read_back(tmp_path, more):
    path = tmp_path / "f.safetensors"
    write_features(path, SavedFeatures(FEATURES, about=FeatureFacts(**FACTS), **more))
    found = read_features(path)
    assert found.about == FeatureFacts(**FACTS) and torch.equal(found.features, FEATURES)
    for name in MORE:
        assert torch.equal(getattr(found, name), MORE[name]) if more else getattr(found, name) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": "pt"},
        {"about": "[1]"},
        {"features": None, "logits": FEATURES},
        {"features": FEATURES[0]},
        {"features": FEATURES / 0},
        {"features": FEATURES + 1e25},
        {"logits": FEATURES[:2]},
        {"labels": torch.arange(2)},
        {"spatial": FEATURES[:2]},
    ],
)
def test_features_that_cannot_be_used_are_refused(tmp_path, change):
    content = {**META, "features": FEATURES, **change}
    tensors = {name: value.clone() for name, value in content.items() if isinstance(value, torch.Tensor)}
    save_file(tensors, tmp_path / "f.safetensors", {name: content[name] for name in META})
    with pytest.raises(FormatError, match=r"f\.safetensors"):
        read_features(tmp_path / "f.safetensors")


def moments(width=5, seed=0):
    random = np.random.default_rng(seed)
    root = random.normal(size=(width, width))
    return random.normal(size=width), root @ root.T


MU, SIGMA = moments()
NAN_MU = MU.copy()
INF_SIGMA = SIGMA.copy()
NAN_MU[1], INF_SIGMA[0, 3] = np.nan, np.inf


@given(st.integers(1, 8), st.integers(0, 99), st.booleans())
def test_statistics_read_back_to_the_last_bit_without_pickle(tmp_path_factory, width, seed, spatial):
    path = tmp_path_factory.mktemp("s") / "ref.npz"
    (mu, sigma) = moments(width, seed)
    more = Statistics(*moments(3)) if spatial else None
    write_statistics(path, Statistics(mu, sigma, FeatureFacts(**FACTS), more))
    found = read_statistics(path)
    assert np.array_equal(found.mu, mu) and np.array_equal(found.sigma, sigma) and {"mu", "sigma"} <= arrays_in(path)
    assert found.about == FeatureFacts(**FACTS) and (found.spatial is not None) == spatial
    assert not spatial or np.array_equal(found.spatial.sigma, more.sigma)
    with np.load(path, allow_pickle=False) as content:
        assert json.loads(str(content["about"])) == {"version": 1, **FACTS}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_adm_and_edm_are_read_and_damage_in_them_is_told(tmp_path, save, images):
    """mu and sigma alone, or the images' own statistics (mu_s, sigma_s) beside them."""
    path = tmp_path / "ref.npz"
    for more in ({}, {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}):
        save(path, mu=MU.astype("f4"), sigma=SIGMA, **more)
        found = read_statistics(path)
        assert np.array_equal(found.mu, MU.astype("f4")) and np.array_equal(found.sigma, SIGMA)
        assert found.mu.dtype == np.float64 and found.about == FeatureFacts()
    content = bytearray(path.read_bytes())
    at = content.index(b"sigma.npy") + 200
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(ElboError, match=r"ref\.npz"):
        read_statistics(path)
    save(path, images(2))
    assert [arrays_in(each) for each in (path, tmp_path, tmp_path / "gone.npz")] == [{"arr_0"}, set(), set()]


@pytest.mark.parametrize(
    "change",
    [
        {"mu": NAN_MU},
        {"mu": MU[:4]},
        {"mu": np.arange(5)},
        {"mu": MU + 1e30},
        {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        {"sigma": INF_SIGMA},
        {"sigma": SIGMA + np.triu(np.ones((5, 5)), 1)},
        {"sigma": SIGMA * 1e60},
        {"sigma": SIGMA - 99 * np.eye(5)},
        {"about": np.array("{")},
        {"mu_s": MU[:4], "sigma_s": SIGMA},
    ],
)
def test_statistics_that_cannot_be_used_are_refused(tmp_path, change):
    np.savez(tmp_path / "ref.npz", **{"mu": MU, "sigma": SIGMA, **change})
    with pytest.raises(FormatError, match=r"ref\.npz"):
        read_statistics(tmp_path / "ref.npz")


def test_a_missing_or_short_file_is_refused(tmp_path):
    for read in (read_statistics, read_features, read_torch_file):
        for content in (None, b"", b"PK\3\4", b"\x93NUMPY"):
            if content is not None:
                (tmp_path / "x").write_bytes(content)
            with pytest.raises(FormatError, match="/x: "):
                read(tmp_path / "x")
        (tmp_path / "x").unlink()
