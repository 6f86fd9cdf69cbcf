"""Saved features read back to the last bit, and what is no such file is refused."""

import json

import pytest
import torch
from safetensors.torch import save_file

from elbocli.errors import DataError, FormatError
from elbocli.files.features import FeatureFacts, SavedFeatures, read_features, write_features

ABOUT = {"n": 3, "extractor": "elbo-tiny", "preprocessing": {"image_size": 8}}
META = {"format": "elbo-features", "version": "1", "about": json.dumps(ABOUT)}
ALL = {"logits": torch.randn(3, 2), "labels": torch.arange(3), "spatial": torch.randn(3, 5)}
FEATURES = torch.arange(12.0).reshape(3, 4)


@pytest.mark.parametrize("more", [{}, ALL], ids=["alone", "all"])
def test_what_is_written_is_read(tmp_path, more):
    write_features(tmp_path / "f.safetensors", SavedFeatures(FEATURES, about=FeatureFacts(**ABOUT), **more))
    found = read_features(tmp_path / "f.safetensors")
    assert found.about == FeatureFacts(**ABOUT) and torch.equal(found.features, FEATURES)
    for name in ALL:
        assert (getattr(found, name) is None) == (name not in more)
        assert name not in more or torch.equal(getattr(found, name), more[name])


@pytest.mark.parametrize(
    ("tensors", "meta"),
    [
        ({"features": FEATURES}, {"format": "pt"}),
        ({"features": FEATURES}, {**META, "version": "0"}),
        ({"features": FEATURES}, {**META, "about": "[1]"}),
        ({"features": FEATURES}, {**META, "about": "{"}),
        ({"logits": FEATURES}, META),
        ({"features": FEATURES.double()}, META),
        ({"features": FEATURES[0]}, META),
        ({"features": FEATURES[0, 0]}, META),
        ({"features": FEATURES, "logits": torch.tensor(1.0)}, META),
        ({"features": FEATURES[:0]}, META),
        ({"features": FEATURES, "logits": FEATURES[:2].clone()}, META),
        ({"features": FEATURES, "labels": torch.arange(2)}, META),
        ({"features": FEATURES, "spatial": FEATURES[:2].clone()}, META),
        ({"features": FEATURES / 0}, META),
        ({"features": FEATURES + 1e25}, META),
        ({"features": FEATURES, "logits": FEATURES * float("nan")}, META),
    ],
)
def test_what_cannot_be_used_is_refused(tmp_path, tensors, meta):
    save_file({key: value.contiguous() for key, value in tensors.items()}, tmp_path / "f.safetensors", meta)
    with pytest.raises(FormatError, match=r"f\.safetensors"):
        read_features(tmp_path / "f.safetensors")


def test_a_file_cut_short_or_missing_is_refused(tmp_path):
    path = tmp_path / "f.safetensors"
    with pytest.raises(FormatError, match=r"f\.safetensors"):
        read_features(path)
    write_features(path, SavedFeatures(FEATURES, about=FeatureFacts(**ABOUT)))
    whole = path.read_bytes()
    for size in (0, 5, 60, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(FormatError, match=r"f\.safetensors"):
            read_features(path)


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="could not write"):
        write_features(tmp_path / "gone" / "f.safetensors", SavedFeatures(FEATURES, about=FeatureFacts(**ABOUT)))
