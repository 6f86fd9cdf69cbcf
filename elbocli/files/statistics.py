"""Reference statistics: npz with `mu` [D] and `sigma` [D, D] float64, and how they were made. Reads ADM's and EDM's.

Those of spatial features, where there are any, are `mu_s` and `sigma_s`, as ADM has them.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from elbocli.errors import DataError, FormatError
from elbocli.files.atomic import new_file
from elbocli.files.feature_facts import LARGEST_FEATURE, FeatureFacts
from elbocli.files.reading import open_file, reading
from elbocli.files.records import parse_json

SYMMETRIC = 1e-5
"""The distance that a covariance may be from its transpose, relative to its largest entry: as single precision leaves it."""


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance (over n − 1) of features, and how they were made. spatial: those of spatial features."""

    mu: np.ndarray
    sigma: np.ndarray
    about: FeatureFacts = field(default_factory=FeatureFacts)
    spatial: Statistics | None = None


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Save as npz, without pickle: `about` is JSON text."""
    mu, sigma, spatial = statistics.mu, statistics.sigma, statistics.spatial
    about = np.array(json.dumps(statistics.about.json()))
    with new_file(path) as file:
        if spatial is None:
            np.savez(file, mu=mu, sigma=sigma, about=about)
        else:
            np.savez(file, mu=mu, sigma=sigma, about=about, mu_s=spatial.mu, sigma_s=spatial.sigma)


def is_statistics(path: Path) -> bool:
    """Whether an npz holds statistics rather than images."""
    with contextlib.suppress(Exception), open_file(path) as file, zipfile.ZipFile(file) as archive:
        return {"mu.npy", "sigma.npy"} <= set(archive.namelist())
    return False


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle, by its name or its first bytes. One is never opened, because that can run code.

    A safetensors file begins with the length of its header, which may be the same two bytes; zeros follow, no opcode.
    """
    with reading(path, kind=DataError), open_file(path) as file:
        head = file.read(8)
    begun = head[:2] in (b"\x80\2", b"\x80\3", b"\x80\4", b"\x80\5") and head[3:] != bytes(5)
    return path.suffix in (".pkl", ".pickle") or begun


def read_statistics(path: Path) -> Statistics:
    """Load without unpickling. Raises FormatError for anything but finite, matching means and covariances."""
    what, expected = f"{path}: not usable as reference statistics", "; expected an npz with mu and sigma"
    with reading(what, expected), open_file(path) as file, np.load(file, allow_pickle=False) as archive:
        arrays = {
            key: np.asarray(archive[key]) for key in ("mu", "sigma", "mu_s", "sigma_s", "about") if key in archive
        }
        whole = arrays["mu"], arrays["sigma"]
        spatial = (arrays["mu_s"], arrays["sigma_s"]) if {"mu_s", "sigma_s"} <= set(arrays) else None
        said = parse_json(str(arrays["about"]), path) if "about" in arrays else {}
        about = FeatureFacts.of(said, f"{what}: about")
    of_spatial = None if spatial is None else Statistics(*_checked(path, "mu_s", "sigma_s", *spatial), about)
    return Statistics(*_checked(path, "mu", "sigma", *whole), about, of_spatial)


def _checked(
    path: Path, mean: str, covariance: str, mu: np.ndarray, sigma: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """A mean and a covariance of these names in float64. Raises FormatError when they are none, or don't go together."""
    if mu.ndim != 1 or not len(mu) or sigma.shape != (len(mu),) * 2 or mu.dtype.kind != "f" or sigma.dtype.kind != "f":
        held = f"{mean} is {mu.dtype} {mu.shape} and {covariance} {sigma.dtype} {sigma.shape}"
        raise FormatError(f"{path}: {held}; expected floats (D,) and (D, D)")
    if not np.isfinite(mu).all() or not np.isfinite(sigma).all():
        raise FormatError(f"{path}: {mean} or {covariance} holds NaN or infinity")
    largest = max(float(sigma.max()), -float(sigma.min()))
    if float(np.abs(mu).max()) > LARGEST_FEATURE or largest > LARGEST_FEATURE**2:
        raise FormatError(f"{path}: mu or sigma is of features beyond {LARGEST_FEATURE:g}; make it again")
    turned = max(float(np.abs(row - column).max()) for row, column in zip(sigma, sigma.T, strict=True))
    if turned > SYMMETRIC * largest or float(sigma.diagonal().min()) < 0:
        raise FormatError(f"{path}: {covariance} is no covariance: it is not symmetric, or a variance is negative")
    return mu.astype(np.float64, copy=False), sigma.astype(np.float64, copy=False)
