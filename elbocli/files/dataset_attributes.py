"""Attributes of an elbo-dataset: what it holds, how it was made, and its digests."""

from __future__ import annotations

from typing import Any, ClassVar

from elbocli.files.records import Count, Record, stored


@stored("attributes of a dataset (HDF5)", "elbo-dataset", remedy="; make one with 'elbo prep'")
class DatasetAttributes(Record, frozen=True, kw_only=True):
    """All are optional but format and version, as other programs write datasets too.

    store: an encoding of images. digests: names of those that the file holds. changed: JSON of counts, images that were changed
    while decoding, by how. samples: JSON of SamplesAbout. shard: I/N, of a prep with the identity shard_of. more: the space of
    latents, and what else prep was asked for.
    """

    REST: ClassVar[str] = "more"

    count: Count | None = None
    num_classes: Count | None = None
    image_size: Count | None = None
    channels: Count | None = None
    store: str | None = None
    crop: str | None = None
    filter: str | None = None
    digests: str | None = None
    payload_sha256: str | None = None
    contents_sha256: str | None = None
    source_sha256: str | None = None
    skipped: Count | None = None
    changed: str | None = None
    samples: str | None = None
    shard: str | None = None
    shard_of: str | None = None
    elbo_version: str | None = None
    pillow_version: str | None = None
    command: str | None = None
    more: dict[str, Any] = {}
