"""The settings of `elbo eval`, and protocols: published ways to score that set them by one word. torch is imported nowhere here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from elbocli.core.metrics import METRICS, MetricOptions, Need, asked
from elbocli.core.registry import Declaration, Registry
from elbocli.nn.extractors import DEFAULT, STRICT


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


Metrics = dict[str, dict[str, Any]]
"""Metrics by name, each with those of its options that the protocol sets."""


class ProtocolTraits(NamedTuple):
    """Everything that a protocol sets besides its metrics.

    extractor: the only one that it is defined for; it holds the preprocessing, too. n: samples. tables: papers whose
    tables have numbers of this kind. reference: the file that its authors compare with. ref_images: how many images must
    stand beside the statistics in that file; 0 where any reference will do. classes, per_class: how many classes there
    are, and how many samples each has; 0 where any will do.
    """

    extractor: str
    n: int
    tables: str
    reference: str
    ref_images: int = 0
    classes: int = 0
    per_class: int = 0


PROTOCOLS: Registry[ProtocolTraits] = Registry("protocol")
OF_50K = 50_000
IN_REFERENCE = 10_000
"""Images in ADM's reference batches."""


def protocol(name: str, *, formula: str, source: str, **traits: Any) -> Callable[..., Any]:
    """Declare () → Metrics. traits: as of ProtocolTraits."""
    return PROTOCOLS.declare(name, formula=formula, source=source, traits=ProtocolTraits(**traits))


@protocol(
    "adm",
    formula="50000 samples against ADM's reference batch of that size",
    source="Dhariwal & Nichol 2021, evaluator.py",
    extractor=DEFAULT,
    n=OF_50K,
    tables="ADM, DiT, SiT, REPA, LightningDiT",
    reference="VIRTUAL_imagenet64_labeled.npz and its kind: statistics of all training images, and 10000 images",
    ref_images=IN_REFERENCE,
)
def adm() -> Metrics:
    """Inception's four scores. Each part of the Inception score is of samples that follow each other in the file."""
    return {
        "fid": {},
        "sfid": {},
        "is": {"splits": 10, "is_order": "given"},
        "prc": {"prc_protocol": "adm"},
    }


@protocol(
    "edm",
    formula="FID of 50000 samples, by Inception",
    source="Karras et al. 2022, fid.py",
    extractor=DEFAULT,
    n=OF_50K,
    tables="EDM; the FID of EDM2",
    reference="an npz with mu and sigma of all training images",
)
def edm() -> Metrics:
    """The Fréchet distance alone."""
    return {"fid": {}}


@protocol(
    "edm2",
    formula="FD-DINOv2 of 50000 samples",
    source="Karras et al. 2024, calculate_metrics.py",
    extractor="dinov2-vitl14",
    n=OF_50K,
    tables="the FD-DINOv2 of EDM2",
    reference="an npz with mu and sigma of DINOv2's features of all training images",
)
def edm2() -> Metrics:
    """The Fréchet distance alone; the FID of the same tables is `edm`'s."""
    return {"fid": {}}


@protocol(
    "rae-50-a-class",
    formula="adm, with exactly 50 samples of each of ImageNet's 1000 classes",
    source="Zheng et al. 2025, arXiv:2510.11690",
    extractor=DEFAULT,
    n=OF_50K,
    tables="RAE",
    reference="VIRTUAL_imagenet256_labeled.npz",
    ref_images=IN_REFERENCE,
    classes=1000,
    per_class=50,
)
def rae_50_a_class() -> Metrics:
    """The metrics of `adm`: only the labels differ, and FID is about .1 lower than with random ones."""
    return adm()


def settings_of(name: str, given: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Fields of EvalSettings as a protocol sets them, but for what is `given`: metrics, extractor and metrics' options.

    What is given may deviate; `unlike` says whether it does. Raises UsageError for a name that isn't there.
    """
    declared = PROTOCOLS.find(name)
    metrics: Metrics = declared()
    options = {key: value for own in metrics.values() for key, value in own.items()}
    chosen = given.get("metrics", tuple(metrics))
    return {
        "protocol": declared.name,
        "metrics": asked(chosen, seed, **{**options, **given}),
        "extractor": given.get("extractor", declared.traits.extractor),
    }


def unlike(declared: Declaration[ProtocolTraits], metrics: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The metrics and options that deviate from a protocol: what was asked for, and the protocol's.

    metrics: by name with their options, as `asked` makes them. Some of the protocol's own are no deviation.
    """
    own: Metrics = declared()
    found: dict[str, list[Any]] = {}
    if others := [name for name in metrics if name not in own]:
        found["metrics"] = [", ".join(others), ", ".join(own)]
    usual = asked(own, **{key: value for each in own.values() for key, value in each.items()})
    for name, options in metrics.items():
        for each in options.own() if name in own else []:
            mine, theirs = getattr(options, each.name), getattr(usual[name], each.name)
            if mine != theirs and not isinstance(mine, bool):  # a flag adds numbers, and changes none
                found[each.name] = [mine, theirs]
    return found
