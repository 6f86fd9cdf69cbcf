"""Features of images, so that no network need see them twice: safetensors with how they were made.

`features` float32 (N, D), `logits` float32 (N, K), `spatial` float32 (N, S) and `labels` int64 (N) where there are any;
metadata `about`, JSON.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from elbocli.errors import FormatError
from elbocli.files import tensor_files
from elbocli.files.atomic import new_file
from elbocli.files.feature_facts import LARGEST_FEATURE, FeatureFacts
from elbocli.files.reading import check_format, reading
from elbocli.files.records import parse_json

FORMAT, VERSION = "elbo-features", 1
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class SavedFeatures:
    """Tensors as in the file, and how they were made."""

    features: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None
    about: FeatureFacts = field(default_factory=FeatureFacts)
    spatial: Tensor | None = None


def write_features(path: Path, saved: SavedFeatures) -> None:
    """Write a file of features. Raises DataError when the disk is full."""
    tensors = {
        "features": saved.features,
        "logits": saved.logits,
        "labels": saved.labels,
        "spatial": saved.spatial,
    }
    held = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    meta = {"format": FORMAT, "version": str(VERSION), "about": json.dumps(saved.about.json(), allow_nan=False)}
    with new_file(path) as file:
        file.write(save(held, meta))


def is_features(path: Path) -> bool:
    """Whether a file of safetensors says that it holds features."""
    with contextlib.suppress(FormatError):
        return tensor_files.TensorFile(path).metadata.get("format") == FORMAT
    return False


def read_features(path: Path) -> SavedFeatures:
    """Read a file of features. Raises FormatError for anything but finite tensors that go together."""
    with reading(f"{path}: not usable as features"):
        file = tensor_files.TensorFile(path)
        meta = file.metadata
        check_format(path, meta, FORMAT, VERSION, "; make it with 'elbo eval --save-features'")
        held = {key: file.read(key) for key in file.layout}
        about = FeatureFacts.of(parse_json(meta["about"], f"{path}: about"), f"{path}: about")
        saved = SavedFeatures(held["features"], held.get("logits"), held.get("labels"), about, held.get("spatial"))
    _check(path, saved)
    return saved


def _check(path: Path, saved: SavedFeatures) -> None:
    """Raise FormatError when shapes or types don't go together, or a number is not finite."""
    floats = [tensor for tensor in (saved.features, saved.logits, saved.spatial) if tensor is not None]
    n = len(saved.features) if saved.features.dim() else 0
    if any(tensor.dtype != torch.float32 or tensor.dim() != 2 or len(tensor) != n for tensor in floats) or not n:
        shapes = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in floats)
        raise FormatError(f"{path}: holds {shapes}, expected float32 features (N, D), perhaps with logits (N, K)")
    if saved.labels is not None and (saved.labels.dtype != torch.int64 or saved.labels.shape != (n,)):
        raise FormatError(f"{path}: labels are {saved.labels.dtype} {tuple(saved.labels.shape)}, expected int64 ({n},)")
    if not all(bool((tensor.abs() <= LARGEST_FEATURE).all()) for tensor in floats):
        raise FormatError(f"{path}: features or logits are NaN, or beyond {LARGEST_FEATURE:g}; extract them again")
