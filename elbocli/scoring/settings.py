"""Settings of `elbo eval`, and of published evaluations. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple, TypedDict

from elbocli.files.settings import LARGEST_SEED, Settings, device_setting, setting
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, STRICT
from elbocli.scoring.metrics import Metric, Need, parse_metrics

Option = str | float | None  # value of an option of a metric
SCORES = "Scores"
EXTRACTOR = "Extractor"


@dataclass(frozen=True, kw_only=True)
class EvalSettings(Settings):
    """Settings of `elbo eval`. A protocol sets metrics and extractor; `settings_of` returns these fields.

    metrics: by name.
    extractor: name, or file of a program; '': the extractor of saved features, or Inception for images.
    extractor_weights: None: the published weights.
    neighbours: file for a picture of samples beside the closest reference images.
    classes: classes of a stream of samples: 'balanced', 'random', a list, or a file of labels; '': not given.
    protocol: name in PROTOCOLS; '': no protocol. command: elbo's command line, for the result.
    """

    metrics: Mapping[str, Metric]
    extractor: str = ""
    protocol: str = ""
    command: str = ""
    allow_mismatch: bool = setting(
        False,
        "Accept a reference made in another way, and deviations from --protocol; the result names them.",
        group=SCORES,
    )
    extractor_weights: Path | None = setting(
        None,
        "Weights of the extractor.",
        shown=f"those of {DEFAULT} are fetched once into the user's cache",
        group=EXTRACTOR,
    )
    save_stats: Path | None = setting(
        None, "Also save the samples' statistics, for use as --ref.", group="Outputs", replaces=("statistics",)
    )
    save_features: Path | None = setting(
        None,
        "Also save the features, for SAMPLES or --ref.",
        replaces=("features",),
        suffixes=(".safetensors",),
        metavar="FILE.safetensors",
    )
    neighbours: Path | None = setting(
        None,
        "Also draw the samples that are closest to images of --ref.",
        replaces=("images",),
        metavar="FILE.png",
    )
    classes: str = setting(
        "",
        "Classes that a stream was drawn with, for accuracy; as in 'elbo sample'.",
        more="They may be names if --ref is a dataset that has them.",
        group="A stream's draw",
        metavar="balanced|random|LIST|FILE",
    )
    seed: int = setting(0, "Seed of --classes random.", le=LARGEST_SEED)
    batch_size: int = setting(64, "Images per process at a time; results equal up to rounding.", group="Speed and memory", ge=1)
    device: str = device_setting()
    precision: Literal["fp32", "bf16"] = setting(
        STRICT,
        "Precision of the extractor; bf16 is faster, but changes FID.",
        more="fp32 is strict; published tables use it.",
    )

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
