"""Results of `elbo eval`: scores and metadata of one set of samples, or of repeats: sets that differ in the seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from msgspec import Meta

from elbocli.core.estimate import Estimate
from elbocli.errors import DataError, ElboError
from elbocli.files.features import FeatureFacts
from elbocli.files.losslog import LARGEST
from elbocli.files.records import JSON, Count, ExtraKeys, Record, convert, stored
from elbocli.runtime.table import Table
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT
from elbocli.scoring.metrics import metric_options

# Key of metadata → [value, expected value], where they differ
Pairs = dict[str, Annotated[list[JSON], Meta(min_length=2, max_length=2)]]
Bounded = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]  # a number whose square is within float64 range
ENOUGH = 10_000  # below this number of images, reports and warnings say that a score comes from few images
# Names of scores by the published Inception network.
PUBLISHED_NAMES = {
    "frechet_distance": "frechet_inception_distance",
    "spatial_frechet_distance": "spatial_frechet_inception_distance",
    "kernel_distance": "kernel_inception_distance",
    "kernel_distance_std_over_subsets": "kernel_inception_distance_std_over_subsets",
}
ALIKE = (  # metadata that must be equal in comparable results, except keys that a result lacks
    "n_samples",
    "n_ref",
    "n_ref_images",
    "ref_sha256",
    "extractor",
    "extractor_sha256",
    "feature_precision",
    "preprocessing",
    "ref_preprocessing",
    "protocol",
)


class Score(Record, kw_only=True):
    """A score, or its mean over several sets of samples.

    se: standard error; None: unknown. interval: 95 % interval (low, high); None: unknown.
    n: number of images, or of sets that the mean is over. sd: standard deviation over the sets; None: only one set.
    """

    value: Bounded
    se: Bounded | None = None
    interval: tuple[Bounded, Bounded] | None = None
    n: Count = 0
    sd: Bounded | None = None

    @classmethod
    def of_estimate(cls, estimate: Estimate, sd: float | None = None) -> Score:
        """Return a metric's estimate as a score."""
        return cls(value=estimate.value, se=estimate.se, interval=estimate.interval, n=estimate.n, sd=sd)

    @property
    def estimate(self) -> Estimate:
        """The score of one set of samples as an estimate."""
        return Estimate(self.value, self.se, self.interval, self.n)


class Facts(Record, kw_only=True):
    """Metadata on the scores of one set of samples; None: unknown.

    samples, ref: names of the sets of images, such as paths.
    n_ref, n_ref_images: numbers of images in the reference's statistics, and of images stored beside the statistics.
    fewest_of_a_class, most_of_a_class: sizes of the smallest and of the largest class.
    made: run, sampler and other settings by which the samples were drawn.
    options: of the metrics. seed: of random classes.
    mismatch: key of metadata → [the samples' value, the reference's value], where these differ.
    protocol: name in PROTOCOLS. deviates: setting → [value, the protocol's value], where these differ.
    """

    n_samples: Count
    n_ref: Count | None
    n_ref_images: Count | None = None
    samples: str | None
    samples_sha256: str | None
    ref_sha256: str | None
    extractor: str | None
    extractor_sha256: str | None
    feature_precision: str | None = None
    preprocessing: dict[str, JSON] | None
    ref_preprocessing: dict[str, JSON] | None
    classes: Count | None = None
    fewest_of_a_class: Count | None = None
    most_of_a_class: Count | None = None
    made: dict[str, JSON] = {}
    options: ExtraKeys = {}
    elbo_version: str | None
    torch_fidelity_version: str | None
    torch_version: str | None
    ref: str | None
    command: str | None
    seed: int | None = None
    mismatch: Pairs | None = None
    protocol: str | None = None
    deviates: Pairs | None = None


@dataclass(frozen=True)
class SetScores:
    """Scores of one set of samples, by name."""

    scores: Mapping[str, Score]
    facts: Facts

    def json(self) -> dict[str, JSON]:
        """Return a JSON object."""
        return {"scores": {name: score.json() for name, score in self.scores.items()}, **self.facts.json()}

    @classmethod
    def of(cls, content: dict[str, JSON], where: object) -> SetScores:
        """Convert a parsed JSON object. where: file, for messages. Raises FormatError."""
        facts = {key: value for key, value in content.items() if key not in ("format", "version", "scores", "repeats")}
        scores = convert(content.get("scores"), dict[str, Score], f"{where}: scores")
        return cls(scores, Facts.of(facts, where))


@stored(
    "result of elbo eval (JSON)",
    "elbo-scores",
    remedy="; 'elbo eval SAMPLES --ref REF > FILE.json' makes a result",
)
class EvalResult(Record):
    """Result of one set of samples, or of several sets (repeats) that differ in the seed."""

    repeats: list[SetScores]

    @property
    def scores(self) -> dict[str, Score]:
        """Scores by name; for several sets of samples, means and standard deviations."""
        first = self.repeats[0].scores
        if len(self.repeats) == 1:
            return dict(first)
        scores = {}
        for name in first:
            values = [repeat.scores[name].value for repeat in self.repeats]
            scores[name] = Score.of_estimate(Estimate.of_repeats(values), float(np.std(values, ddof=1)))
        return scores

    @property
    def made(self) -> dict[str, JSON]:
        """Run, sampler and other settings by which all sets of samples were drawn."""
        return shared([repeat.facts.made for repeat in self.repeats])

    def common(self) -> dict[str, JSON]:
        """Return metadata equal for all sets of samples, with every set's `mismatch` and `deviates`."""
        facts = [repeat.facts for repeat in self.repeats]
        common = {**shared([repeat.json() for repeat in facts]), "made": self.made}
        every = {
            "mismatch": [repeat.mismatch or {} for repeat in facts],
            "deviates": [repeat.deviates or {} for repeat in facts],
        }
        for name, of_sets in every.items():
            if any(of_sets):
                common[name] = {key: pair for pairs in of_sets for key, pair in pairs.items()}
        return common

    def alike(self) -> dict[str, JSON]:
        """Return the metadata that must be equal in comparable results."""
        facts = self.common()
        alike = dict[str, JSON]()
        for key in [*ALIKE, *(option.name for option in metric_options())]:
            parts = facts.get(key)
            named = {f"{key}.{part}": value for part, value in parts.items()} if isinstance(parts, dict) else {key: parts}
            alike |= {name: value for name, value in named.items() if value is not None}
        return alike

    def table(self) -> Table:
        """Return scores with standard errors and intervals, and what limits their meaning."""
        facts = Facts.of(self.common())
        notes = list[str]()
        made = facts.made
        extractor = EXTRACTORS.get(str(facts.extractor))
        rows = [
            [title(name), (score.value, score.se), score.interval and [*score.interval]] for name, score in self.scores.items()
        ]
        if len(self.repeats) > 1:
            notes.append(f"Means of {len(self.repeats)} sets of samples; the standard errors are of these means.")
        if facts.n_samples < ENOUGH:
            notes.append(f"Fewer than {ENOUGH} images: compare these scores only with scores of as many images.")
        for words, pairs in {
            "Samples and reference differ": facts.mismatch,
            "This differs from the protocol": facts.deviates,
        }.items():
            notes += [f"{words}: {key} is {value}, not {expected}." for key, (value, expected) in (pairs or {}).items()]
        return Table(
            f"Scores of {facts.samples or f'{len(self.repeats)} sets of samples'}, {facts.n_samples} images",
            ["score", "value ± standard error", "95 % interval"],
            rows,
            {
                "run": made.get("run") and f"{made['run']}, step {made.get('step')}, weights {made.get('weights')}",
                "drawn with": made.get("sampler") and f"{made['sampler']}, {made.get('nfe')} network evaluations an image",
                "reference": facts.ref and f"{facts.ref}, {facts.n_ref or 'unknown number of'} images",
                "extractor": extractor and f"{extractor.name}: {extractor.formula}; {extractor.source}",
                "protocol": facts.protocol,
            },
            notes,
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def json(self) -> dict[str, JSON]:
        scores = {name: score.json() for name, score in self.scores.items()}
        content = {**self.head(), "scores": scores, **self.common()}
        if len(self.repeats) > 1:
            content["repeats"] = [repeat.json() for repeat in self.repeats]
        return content

    @classmethod
    def of(cls, content: object, where: object = "it") -> EvalResult:
        """Convert a parsed JSON result. where: file, for messages. Raises FormatError."""
        cls.check_head(content, where)
        whole = convert(content, dict[str, JSON], where)
        repeats = convert(whole.get("repeats", [whole]), list[dict[str, JSON]], f"{where}: repeats")
        return cls([SetScores.of(repeat, where) for repeat in repeats])


def title(name: str) -> str:
    """Return a score's name for people, without the extractor."""
    return name.partition("[")[0].replace("_", " ")


def name_of(score: str, about: FeatureFacts, comparable: bool = True) -> str:
    """Return a score's name in results, by features of the extractor `about`.

    comparable: whether samples and reference were made alike. Only then has a score by the published Inception, in fp32, its
    published name; the names of others end in [EXTRACTOR].
    """
    inception = about.extractor == DEFAULT and str(about.weights_sha256).startswith(PUBLISHED_INCEPTION)
    if inception and comparable and about.feature_precision in (None, STRICT):
        return PUBLISHED_NAMES.get(score, score)
    return f"{score}[{about.extractor or 'unknown'}]"


def shared(facts: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    """Return the entries that are equal in all dicts."""
    return {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}


def mismatches(first: dict[str, JSON], second: dict[str, JSON]) -> Pairs:
    """Return values that differ: key in both dicts → [value in `first`, value in `second`]."""
    return {key: [value, second[key]] for key, value in first.items() if key in second and value != second[key]}


def refuse(pairs: Pairs, where: object, other: object, then: str, kind: type[ElboError] = DataError) -> None:
    """Raise an error if the metadata of two files differ.

    pairs: key → [value of the file `where`, value of the file `other`], where they differ. then: end of the message: what to do.
    """
    if pairs:
        differences = "; ".join(f"{key} is {value}, but {expected} for {other}" for key, (value, expected) in pairs.items())
        raise kind(f"{where}: {differences}: {then}")
