"""The settings of `elbo eval`, and its protocols: settings of published evaluations. This module doesn't import torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from elbocli.core.metrics import METRICS, Need, asked
from elbocli.nn.extractors import DEFAULT, STRICT


@dataclass(frozen=True)
class EvalSettings:
    """Settings of `elbo eval`.

    metrics: options by name of metric. extractor: name; '' for the extractor that made saved features, else Inception.
    classes: classes that a stream was drawn with, as in `elbo sample`; seed: seed of random classes.
    allow_mismatch: score although samples and reference were made differently; the result names the differences.
    save_stats, save_features: files for the samples' statistics and features; None for no file.
    held_out: file of images like the reference's that the model was not trained on. protocol: name in PROTOCOLS; '' for none.
    neighbours: file for a picture of samples beside the closest images of the reference.
    """

    metrics: Mapping[str, Any] = field(default_factory=lambda: asked(("fid", "is")))
    seed: int = 0
    extractor: str = ""
    extractor_weights: Path | None = None
    batch_size: int = 64
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
        """Return the names of the chosen metrics that need an input. need: kind of input, such as a reference or labels."""
        return [name for name in self.metrics if need in METRICS[name].traits.needs]


class Protocol(NamedTuple):
    """A published evaluation protocol.

    formula: description for the help. tables: papers whose tables have scores by this protocol.
    extractor: the only extractor that is allowed; its preprocessing is part of it.
    options: options of metrics that the protocol sets.
    n: number of samples. ref_images: number of images that the reference must have besides its statistics; 0 for any reference.
    classes, per_class: number of classes, and of samples in each class; 0 for any.
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


# ADM's Inception score splits the samples into consecutive parts, in the order of the file.
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
    # Only the labels differ from adm: FID is about 0.1 lower than with random labels.
    "rae-50-a-class": ADM._replace(
        formula="adm, with exactly 50 samples of each of ImageNet's 1000 classes",
        source="Zheng et al. 2025, arXiv:2510.11690",
        tables="RAE",
        classes=1000,
        per_class=50,
    ),
}
USUAL = Protocol("", "", "", extractor="", metrics=("fid", "is"))
"""Default metrics and extractor, without a protocol."""


def settings_of(name: str, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Return protocol, metrics and extractor for EvalSettings: as the user has `given`, else of protocol `name`, else default."""
    protocol = PROTOCOLS.get(name, USUAL)
    return {
        "protocol": name,
        "metrics": asked(given.get("metrics", protocol.metrics), seed, **{**protocol.options, **given}),
        "extractor": given.get("extractor", protocol.extractor),
    }
