"""Attributes of an elbo-dataset: what it holds, how it was made, and its digests."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from elbocli.files.schema import REST, Count, Digest, Record, Word


@dataclass(frozen=True, kw_only=True)
class DatasetAttributes(
    Record,
    format="elbo-dataset",
    file="attributes of a dataset (HDF5)",
    reader="elbocli.files.dataset_file.DatasetFile",
    remedy="; make one with 'elbo prep'",
):
    """All are optional but format and version, as other programs write datasets too.

    store: an encoding of images. digests: names of those that the file holds. changed: JSON of counts, images that were changed
    while decoding, by how. samples: JSON of SamplesAbout. shard: I/N, of a prep with the identity shard_of. more: the space of
    latents, and what else prep was asked for.
    """

    count: Count | None = None
    num_classes: Count | None = None
    image_size: Count | None = None
    channels: Count | None = None
    store: Word | None = None
    crop: Word | None = None
    filter: Word | None = None
    digests: Word | None = None
    payload_sha256: Digest | None = None
    contents_sha256: Digest | None = None
    source_sha256: Digest | None = None
    skipped: Count | None = None
    changed: str | None = None
    samples: str | None = None
    shard: Word | None = None
    shard_of: Word | None = None
    elbo_version: Word | None = None
    pillow_version: Word | None = None
    command: str | None = None
    more: dict[str, Any] = field(default_factory=dict, metadata=REST)
