"""Facts on how features, or the statistics of features, were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from elbocli.files.schema import REST, Count, Digest, Record, Word

LARGEST_FEATURE = 1e20
"""Bound of what a network says of an image: metrics compute sixth powers of it, which float64 has up to here."""


@dataclass(frozen=True, kw_only=True)
class FeatureFacts(
    Record,
    file="`about` of features (safetensors) and statistics (npz)",
    reader="elbocli.files.features.read_features, elbocli.files.statistics.read_statistics",
):
    """The images: how many, of which size and crop, how they were drawn (made), their digest; and the network that saw them.

    feature_precision: in which it computed them. images: beside statistics of others. sha256: of a file of statistics.
    """

    n: Count | None = None
    preprocessing: dict[str, Any] | None = None
    made: dict[str, Any] | None = None
    extractor: Word | None = None
    weights_sha256: Digest | None = None
    feature_precision: Word | None = None
    images_sha256: Digest | None = None
    sha256: Digest | None = None
    images: Count | None = None
    more: dict[str, Any] = field(default_factory=dict, metadata=REST)
