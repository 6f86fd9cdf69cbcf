"""The settings of `elbo eval`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elbocli.core.metrics import METRICS, MetricOptions, Need, asked
from elbocli.nn.extractors import STRICT


@dataclass(frozen=True)
class EvalSettings:
    """The scores to compute. metrics: by name, with their options. extractor '': that of saved features, else Inception.

    classes: a stream's labels, seed: of random ones. allow_mismatch: score although the reference was made in another
    way, and say so. command: for the record. save_stats, save_features: files to write of the samples. held_out: images
    like the reference's that no network was trained on. neighbours: a picture to write of samples beside the closest images of the reference. protocol '': none. precision: of the features.
    """

    metrics: Mapping[str, MetricOptions] = field(default_factory=lambda: asked(("fid", "is")))
    seed: int = 0
    extractor: str = ""
    extractor_weights: Path | None = None
    batch: int = 64
    classes: str = ""
    allow_mismatch: bool = False
    command: str = ""
    save_stats: Path | None = None
    save_features: Path | None = None
    held_out: Path | None = None
    neighbours: Path | None = None
    protocol: str = ""
    precision: str = STRICT

    @property
    def needs_reference_features(self) -> bool:
        """Whether the features of the reference are needed, not just their moments."""
        return bool(self.needing(Need.REFERENCE_FEATURES)) or self.neighbours is not None

    @property
    def draws(self) -> bool:
        """Whether anything depends on the seed."""
        return self.classes == "random" or any(options.draws for options in self.metrics.values())

    def needing(self, what: Need) -> list[str]:
        """Its metrics that need that."""
        return [name for name in self.metrics if what in METRICS[name].traits.needs]

    def least(self, name: str) -> tuple[int, int, int]:
        """Number of images that one of its metrics needs, of the samples, of the reference and of the held-out ones."""
        own, other, *held_out = METRICS[name].traits.least(self.metrics[name])
        return own, other, held_out[0] if held_out else 0
