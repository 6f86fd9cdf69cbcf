"""Facts on how features, or the statistics of features, were made."""

from __future__ import annotations

from typing import Any, ClassVar

from elbocli.files.records import Count, Record, stored

LARGEST_FEATURE = 1e20
"""Bound of what a network says of an image: metrics compute sixth powers of it, which float64 has up to here."""


@stored("`about` of features (safetensors) and statistics (npz)")
class FeatureFacts(Record, frozen=True, kw_only=True):
    """The images: how many, of which size and crop, how they were drawn (made), their digest; and the network that saw them.

    feature_precision: in which it computed them. images: beside statistics of others. sha256: of a file of statistics.
    """

    REST: ClassVar[str] = "more"

    n: Count | None = None
    preprocessing: dict[str, Any] | None = None
    made: dict[str, Any] | None = None
    extractor: str | None = None
    weights_sha256: str | None = None
    feature_precision: str | None = None
    images_sha256: str | None = None
    sha256: str | None = None
    images: Count | None = None
    more: dict[str, Any] = {}
