"""The settings of `elbo eval`, and protocols: published ways to score that set them by one word. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from elbocli.core.metrics import METRICS, Need, asked
from elbocli.nn.extractors import DEFAULT, STRICT


@dataclass(frozen=True)
class EvalSettings:
    """The scores to compute. metrics: by name, with their options. extractor '': that of saved features, else Inception.

    classes: a stream's labels, seed: of random ones. allow_mismatch: score although the reference was made in another
    way, and say so. command: for the record. save_stats, save_features: files to write of the samples. held_out: images
    like the reference's that no network was trained on. neighbours: a picture to write of samples beside the closest
    images of the reference. protocol '': none. precision: of the features.
    """

    metrics: Mapping[str, Any] = field(default_factory=lambda: asked(("fid", "is")))
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

    def needing(self, need: Need) -> list[str]:
        """The metrics that have that need."""
        return [name for name in self.metrics if need in METRICS[name].traits.needs]


class Protocol(NamedTuple):
    """A published way to score.

    tables: papers whose tables have numbers of this kind. extractor: the only one that it is defined for; it holds the
    preprocessing, too. options: those of the metrics that it sets. n: samples. ref_images: how
    many images must stand beside the statistics in the reference; 0 where any reference will do. classes, per_class: how many
    classes there are, and how many samples each has; 0 where any will do.
    """

    formula: str
    source: str
    tables: str
    extractor: str
    metrics: Sequence[str]
    options: Mapping[str, Any] = {}
    n: int = 50_000
    ref_images: int = 0
    classes: int = 0
    per_class: int = 0


# Each part of ADM's Inception score is of samples that follow each other in the file.
ADM = Protocol(
    formula="50000 samples against ADM's reference batch of that size",
    source="Dhariwal & Nichol 2021, evaluator.py",
    tables="ADM, DiT, SiT, REPA, LightningDiT",
    extractor=DEFAULT,
    metrics=("fid", "sfid", "is", "prc"),
    options={"splits": 10, "is_order": "given", "prc_protocol": "adm"},
    ref_images=10_000,
)
PROTOCOLS = {
    "adm": ADM,
    "edm": Protocol(
        formula="FID of 50000 samples, by Inception",
        source="Karras et al. 2022, fid.py",
        tables="EDM; the FID of EDM2",
        extractor=DEFAULT,
        metrics=("fid",),
    ),
    "edm2": Protocol(
        formula="FD-DINOv2 of 50000 samples",
        source="Karras et al. 2024, calculate_metrics.py",
        tables="the FD-DINOv2 of EDM2",
        extractor="dinov2-vitl14",
        metrics=("fid",),
    ),
    # Only the labels differ from adm; FID is about .1 lower than with random ones.
    "rae-50-a-class": ADM._replace(
        formula="adm, with exactly 50 samples of each of ImageNet's 1000 classes",
        source="Zheng et al. 2025, arXiv:2510.11690",
        tables="RAE",
        classes=1000,
        per_class=50,
    ),
}
USUAL = Protocol("", "", "", extractor="", metrics=("fid", "is"))
"""The metrics and the extractor without a protocol."""


def settings_of(name: str, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Fields of EvalSettings: those `given` (metrics, extractor, options of metrics), then the protocol's, then defaults."""
    protocol = PROTOCOLS.get(name, USUAL)
    return {
        "protocol": name,
        "metrics": asked(given.get("metrics", protocol.metrics), seed, **{**protocol.options, **given}),
        "extractor": given.get("extractor", protocol.extractor),
    }
