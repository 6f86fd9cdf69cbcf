"""Settings of `elbo eval`, and of published evaluations. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypedDict

from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, STRICT
from elbocli.scoring.metrics import Metric, Need, parse_metrics

Option = str | float | None  # value of an option of a metric


@dataclass(frozen=True)
class EvalSettings:
    """Settings of `elbo eval`.

    metrics: by name.
    extractor: name, or file of a program; '': the extractor of saved features, or Inception for images.
    extractor_weights: None: the published weights.
    classes: classes of a stream of samples: 'balanced', 'random', a list, or a file of labels; '': not given.
    neighbours: file for a picture of samples beside the closest reference images.
    protocol: name in PROTOCOLS; '': no protocol. command: elbo's command line, for the result.
    """

    metrics: Mapping[str, Metric]
    seed: int = 0
    extractor: str = ""
    extractor_weights: Path | None = None
    batch_size: int = 64
    classes: str = ""
    allow_mismatch: bool = False
    command: str = ""
    save_stats: Path | None = None
    save_features: Path | None = None
    neighbours: Path | None = None
    protocol: str = ""
    precision: str = STRICT

    def needing(self, need: Need) -> list[str]:
        """Return the names of the metrics that need an input."""
        return [name for name, metric in self.metrics.items() if need in metric.needs]

    @property
    def classes_of_protocol(self) -> int:
        """Number of classes that the protocol requires; 0: any."""
        return PROTOCOLS.get(self.protocol, USUAL).classes


class Protocol(NamedTuple):
    """Settings of a published evaluation.

    formula: description for the help. options: of the metrics. tables: papers with scores by this protocol.
    extractors: those allowed; the first is the default. ref_images: number of images beside the reference's statistics; 0: any reference.
    classes, per_class: number of classes, and samples per class; 0: any number. n: number of samples.
    """

    formula: str
    source: str
    tables: str
    extractors: Sequence[str]
    metrics: str
    options: Mapping[str, Option] = {}
    n: int = 50_000
    ref_images: int = 0
    classes: int = 0
    per_class: int = 0


# ADM's Inception score splits the samples into consecutive parts, in the order of the file.
ADM = Protocol(
    formula="50000 samples against ADM's reference batch of their image size",
    source="Dhariwal & Nichol 2021, evaluator.py",
    tables="ADM, DiT, SiT, REPA, LightningDiT",
    extractors=[DEFAULT],
    metrics="fid,sfid,is,prc",
    options={"splits": 10, "is_order": "given", "prc_protocol": "adm"},
    ref_images=10_000,
)
PROTOCOLS = {
    "adm": ADM,
    "edm": Protocol(
        formula="FID of 50000 samples, by Inception",
        source="Karras et al. 2022, fid.py",
        tables="EDM; the FID of EDM2",
        extractors=[DEFAULT],
        metrics="fid",
    ),
    "edm2": Protocol(
        formula="FD-DINOv2 of 50000 samples",
        source="Karras et al. 2024, calculate_metrics.py",
        tables="the FD-DINOv2 of EDM2",
        extractors=["dinov2-vitl14"],
        metrics="fid",
    ),
    # This protocol differs from adm in the samples' labels alone: FID is about 0.1 lower than with random labels.
    "rae-50-a-class": ADM._replace(
        formula="adm, with exactly 50 samples of each of ImageNet's 1000 classes",
        source="Zheng et al. 2025, arXiv:2510.11690",
        tables="RAE",
        classes=1000,
        per_class=50,
    ),
}
USUAL = Protocol("", "", "", extractors=[""], metrics="fid,is")  # for evaluations without a protocol


class ProtocolSettings(TypedDict):
    """Fields of EvalSettings that a protocol sets."""

    protocol: str
    metrics: Mapping[str, Metric]
    extractor: str


def settings_of(
    name: str, options: Mapping[str, Option], metrics: str | None = None, extractor: str | None = None
) -> ProtocolSettings:
    """Return the fields of EvalSettings that a protocol sets.

    name: protocol; '': no protocol. options: of metrics, instead of the protocol's.
    metrics, extractor: instead of the protocol's; None: the protocol's.
    """
    protocol = PROTOCOLS.get(name, USUAL)
    extractor = protocol.extractors[0] if extractor is None else extractor
    usual = protocol.metrics
    named = EXTRACTORS.lookup(extractor or DEFAULT)
    if protocol is USUAL and not (named and named.name == DEFAULT):
        usual = "fid"  # other networks have no logits, or random ones, or classes of their own
    parsed = parse_metrics(usual if metrics is None else metrics, {**protocol.options, **options})
    return {"protocol": name, "metrics": parsed, "extractor": extractor}
