"""Files of image features and of their statistics.

Features: safetensors with `features` float32 [N, D] and `about` (JSON) in the metadata.
Optional tensors: `logits` float32 [N, K], `spatial` float32 [N, S], `labels` int64 [N].
Statistics: npz with `mu` [D] and `sigma` [D, D], float64. Optional: `mu_s` and `sigma_s` of spatial features, `about` (JSON).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from elbocli.files.atomic import new_file
from elbocli.files.reading import check_format, open_file, reading
from elbocli.files.records import JSON, Count, ExtraKeys, Record, parse_json, stored

if TYPE_CHECKING:  # for types only, because packing images needs no torch
    from torch import Tensor

FORMAT = "elbo-features"
TENSORS = ("features", "logits", "labels", "spatial")
LARGEST_FEATURE = 1e20  # in absolute value; metrics compute sixth powers, which then fit into float64
SYMMETRIC = 1e-5  # largest accepted asymmetry of a covariance, relative to its largest entry: float32 rounds


@stored("`about` of features (safetensors) and statistics (npz)")
class FeatureFacts(Record, kw_only=True):
    """Images and extractor that features or statistics were made from.

    n: number of images used. preprocessing: how images were prepared. made: how samples were drawn.
    extractor: name. weights_sha256: digest of the extractor's weights. feature_precision: of the extractor's forward pass.
    images_sha256: digest of the images. sha256: digest of a statistics file.
    images: number of images in a file that holds images and statistics. more: further keys.
    """

    n: Count | None = None
    preprocessing: dict[str, JSON] | None = None
    made: dict[str, JSON] | None = None
    extractor: str | None = None
    weights_sha256: str | None = None
    feature_precision: str | None = None
    images_sha256: str | None = None
    sha256: str | None = None
    images: Count | None = None
    more: ExtraKeys = {}


class SavedFeatures(NamedTuple):
    """Content of a features file. Shapes: in the module's docstring."""

    features: Tensor
    logits: Tensor | None = None
    labels: Tensor | None = None
    about: FeatureFacts = FeatureFacts()
    spatial: Tensor | None = None


class Statistics(NamedTuple):
    """Mean [D] and covariance [D, D] of features, with divisor n − 1.

    spatial: statistics of spatial features; None: not computed.
    """

    mu: np.ndarray
    sigma: np.ndarray
    about: FeatureFacts = FeatureFacts()
    spatial: Statistics | None = None


def write_features(path: Path, saved: SavedFeatures) -> None:
    """Write features. Raises DataError if the disk is full."""
    from elbocli.files.tensor_files import write_tensors

    tensors = {name: tensor for name in TENSORS if (tensor := getattr(saved, name)) is not None}
    write_tensors(path, tensors, FORMAT, saved.about)


def read_features(path: Path) -> SavedFeatures:
    """Read a file of features. Raises FormatError."""
    import torch

    from elbocli.files import tensor_files

    with reading(f"{path}: not usable as features"):
        file = tensor_files.TensorFile(path)
        check_format(path, file.metadata, FORMAT, then="; make it with 'elbo eval --save-features'")
        tensor_files.check_tensors(path)
        about = FeatureFacts.of(parse_json(file.metadata["about"], path), f"{path}: about")
        tensors = {name: file.read(name) for name in TENSORS if name in file.layout}
        n = len(tensors["features"])
        for name, tensor in tensors.items():
            kind, rank = (torch.int64, 1) if name == "labels" else (torch.float32, 2)
            fits = tensor.dtype == kind and tensor.dim() == rank and len(tensor) == n > 0
            if not fits or not bool((tensor.abs() <= LARGEST_FEATURE).all() or rank == 1):
                raise ValueError(f"{name} {[*tensor.shape]} must be finite {rank}-d {kind}, 1 row per image; save features again")
    return SavedFeatures(**tensors, about=about)


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Write statistics as npz. Raises DataError if the disk is full."""
    spatial = statistics.spatial
    more: Any = {} if spatial is None else {"mu_s": spatial.mu, "sigma_s": spatial.sigma}
    with new_file(path) as file:
        np.savez(file, mu=statistics.mu, sigma=statistics.sigma, about=np.array(json.dumps(statistics.about.json())), **more)


def read_statistics(path: Path) -> Statistics:
    """Read statistics from npz. Raises FormatError."""
    what = f"{path}: not usable as reference statistics"
    with (
        reading(what, " (expected: an npz with mu and sigma, as from 'elbo eval --save-stats')"),
        open_file(path) as file,
        np.load(file, allow_pickle=False) as archive,
    ):
        about = FeatureFacts.of(parse_json(str(archive["about"]), what) if "about" in archive else {}, f"{what}: about")
        spatial = None
        if {"mu_s", "sigma_s"} <= set(archive):
            spatial = Statistics(*_moments(archive["mu_s"], archive["sigma_s"]), about)
        return Statistics(*_moments(archive["mu"], archive["sigma"]), about, spatial)


def _moments(mu: np.ndarray, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    square = len(mu) > 0 and sigma.shape == (*mu.shape, len(mu)) and {mu.dtype.kind, sigma.dtype.kind} == {"f"}
    largest = float(np.abs(sigma).max()) if square else np.inf
    if not (largest <= LARGEST_FEATURE**2 and float(np.abs(mu).max()) <= LARGEST_FEATURE):
        raise ValueError(f"mu {[*mu.shape]}, sigma {[*sigma.shape]} must be finite floats, [D] and [D, D]; make the file again")
    if np.abs(sigma - sigma.T).max() > SYMMETRIC * largest or sigma.diagonal().min() < 0:
        raise ValueError("sigma is asymmetric, or has a variance below 0; make the file again")
    return np.asarray(mu, np.float64), np.asarray(sigma, np.float64)
