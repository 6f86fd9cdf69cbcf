"""Results of `elbo eval`: scores and metadata of one set of samples, or of repeats: sets that differ in the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta

from elbocli.core.estimate import NORMAL_95, Estimate
from elbocli.errors import DataError, ElboError, FormatError
from elbocli.files.features import FeatureFacts
from elbocli.files.losslog import LARGEST
from elbocli.files.records import ExtraKeys, Record, convert, parse_json, plain, stored
from elbocli.runtime.table import Table
from elbocli.scoring.extractors import DEFAULT, EXTRACTORS, PUBLISHED_INCEPTION, STRICT
from elbocli.scoring.metrics import METRICS, Number, Role, Value

SD = "_sd"  # suffix of the names of standard deviations over repeats
# Key of metadata → [value, expected value], where they differ
Pairs = dict[str, Annotated[list[Any], Meta(min_length=2, max_length=2)]]
Bounded = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]  # a number whose square is within float64 range
ENOUGH = 10_000  # below this number of images, reports and warnings say that a score comes from few images
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

    n_samples: int | None
    n_ref: int | None
    n_ref_images: int | None = None
    samples: str | None
    samples_sha256: str | None
    ref_sha256: str | None
    extractor: Any
    extractor_sha256: Any
    feature_precision: str | None = None
    preprocessing: Any
    ref_preprocessing: Any
    classes: int | None = None
    fewest_of_a_class: int | None = None
    most_of_a_class: int | None = None
    made: dict[str, Any] = {}
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
class Scores:
    """Scores of one set of samples. network: extractor; None: the published Inception. values: by `Number.key`."""

    network: str | None
    values: dict[str, Value]
    facts: Facts


@dataclass(frozen=True)
class Score:
    """A score, or its mean over several sets of samples. number: its name and headings. sd: standard deviation over the sets."""

    number: Number
    value: Value
    sd: float | None = None


@stored("result of elbo eval (JSON)")
class EvalResult(Record):
    """Result of one set of samples, or of several sets (repeats) that differ in the seed."""

    repeats: list[Scores]

    @property
    def network(self) -> str | None:
        return self.repeats[0].network

    @property
    def scores(self) -> list[Score]:
        """Scores; for several sets of samples, means and standard deviations."""
        scores = []
        for key, value in self.repeats[0].values.items():
            number = numbers()[key]
            sd = None
            if len(self.repeats) > 1:
                if not isinstance(value, float):
                    continue
                values = np.array([repeat.values[key] for repeat in self.repeats], float)
                value = float(np.mean(values))
                sd = None if number.role == Role.ERROR else float(np.std(values, ddof=1))
            scores.append(Score(number, value, sd))
        return scores

    @property
    def numbers(self) -> list[Score]:
        """Scores with a value, without their statistics."""
        return [score for score in self.scores if score.number.role == Role.NUMBER and score.value is not None]

    def title(self, score: Score) -> str:
        """Return a score's name for people."""
        return score.number.stem(self.network).removesuffix("_mean").replace("_", " ")

    def about(self, score: Score, role: Role) -> Score | None:
        """Return a statistic of a score; None: none exists. role: which statistic, such as Role.ERROR."""
        return next((other for other in self.scores if other.number.role == role and other.number.of == score.number.key), None)

    def interval(self, score: Score) -> Any:
        """Return (low, high) of a score's 95 % interval, or None."""
        stated = self.about(score, Role.INTERVAL)
        return (stated and stated.value) or self.estimate(score).interval

    def estimate(self, score: Score) -> Estimate:
        # The standard error comes from repeats, else from the interval, else from the metric.
        if score.sd is not None:
            return Estimate.of_repeats([repeat.values[score.number.key] for repeat in self.repeats])  # type: ignore[misc]
        value: Any = score.value
        ends: Any = self.about(score, Role.INTERVAL)
        error: Any = self.about(score, Role.ERROR)
        if ends and ends.value:
            return Estimate(value, (ends.value[1] - ends.value[0]) / (2 * NORMAL_95))
        return Estimate(value, error and error.value)

    def named(self) -> dict[str, Value]:
        """Return all scores and their standard deviations, by their names in the JSON result."""
        values: dict[str, Value] = {}
        for score in self.scores:
            for end, value in {"": score.value, SD: score.sd}.items():
                if value is not None or not end:
                    values[score.number.name(self.network, end)] = value
                    if self.network is None and score.number.alias:
                        values[score.number.alias + end] = value
        return values

    def common(self) -> dict[str, Any]:
        """Return metadata equal for all sets of samples, with every set's `mismatch` and `deviates`."""
        facts = [repeat.facts.json() for repeat in self.repeats]
        common = {**shared(facts), "made": shared([repeat["made"] for repeat in facts])}
        for name in ("mismatch", "deviates"):
            if pairs := {key: pair for repeat in facts for key, pair in repeat.get(name, {}).items()}:
                common[name] = pairs
        return common

    def alike(self) -> dict[str, Any]:
        """Return the metadata that must be equal in comparable results."""
        facts = self.common()
        alike = dict[str, Any]()
        for key in [*ALIKE, *(option.name for metric in METRICS.values() for option in metric.traits.options)]:
            parts = facts.get(key)
            named = {f"{key}.{part}": value for part, value in parts.items()} if isinstance(parts, dict) else {key: parts}
            alike |= {name: value for name, value in named.items() if value is not None}
        return alike

    def table(self) -> Table:
        """Return scores with standard errors and intervals, and what limits their meaning."""
        facts = self.common()
        rows = list[list[Any]]()
        notes = list[str]()
        made = facts["made"]
        extractor = EXTRACTORS.get(str(facts.get("extractor")))
        for score in self.numbers:
            name = self.title(score)
            interval = self.interval(score)
            rows.append([name, (score.value, self.estimate(score).se), interval and [*interval]])
            if score.sd is None and (parts := self.about(score, Role.PARTS)):
                told = score.number.told.format_map(facts)
                notes.append(f"The standard deviation of the {name} {told} is {parts.value:.2g}.")
        if len(self.repeats) > 1:
            notes.append(f"Means of {len(self.repeats)} sets of samples; the standard errors are of these means.")
        if (facts.get("n_samples") or 0) < ENOUGH:
            notes.append(f"Fewer than {ENOUGH} images: compare these scores only with scores of as many images.")
        for name, words in {"mismatch": "Samples and reference differ", "deviates": "This differs from the protocol"}.items():
            for key, (value, expected) in facts.get(name, {}).items():
                notes.append(f"{words}: {key} is {value}, not {expected}.")
        return Table(
            f"Scores of {facts.get('samples') or f'{len(self.repeats)} sets of samples'}, {facts.get('n_samples')} images",
            ["score", "value ± standard error", "95 % interval"],
            rows,
            {
                "run": made.get("run") and f"{made['run']}, step {made.get('step')}, weights {made.get('weights')}",
                "drawn with": made.get("sampler") and f"{made['sampler']}, {made.get('nfe')} network evaluations an image",
                "reference": facts.get("ref") and f"{facts['ref']}, {facts.get('n_ref') or 'unknown number of'} images",
                "extractor": extractor and f"{extractor.name}: {extractor.formula}; {extractor.source}",
                "protocol": facts.get("protocol"),
            },
            notes,
        )

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def json(self) -> dict[str, Any]:
        content = {**self.head(), **self.named(), **self.common()}
        if len(self.repeats) > 1:
            content["repeats"] = [EvalResult([repeat]).json() for repeat in self.repeats]
        return content

    @classmethod
    def of(cls, content: Any, where: object = "it") -> EvalResult:
        """Convert a parsed JSON result. where: file, for messages. Raises FormatError."""
        cls.check_head(content, where)
        content = convert(content, dict[str, Any], where)
        repeats = convert(content.get("repeats", [content]), list[dict[str, Any]], f"{where}: repeats")
        return cls([_scores(repeat, where) for repeat in repeats])


def shared(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the entries that are equal in all dicts."""
    return {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}


def mismatches(first: dict[str, Any], second: dict[str, Any]) -> Pairs:
    """Return values that differ: key in both dicts → [value in `first`, value in `second`]."""
    return {key: [value, second[key]] for key, value in first.items() if key in second and value != second[key]}


def refuse(pairs: Pairs, where: object, other: object, then: str, kind: type[ElboError] = DataError) -> None:
    """Raise an error if the metadata of two files differ.

    pairs: key → [value of the file `where`, value of the file `other`], where they differ. then: end of the message: what to do.
    """
    if pairs:
        differences = "; ".join(f"{key} is {value}, but {expected} for {other}" for key, (value, expected) in pairs.items())
        raise kind(f"{where}: {differences}: {then}")


def naming_network(about: FeatureFacts) -> str | None:
    """Return the extractor's name, for names of scores; None for the published Inception in fp32, whose scores omit it."""
    published = about.extractor == DEFAULT and str(about.weights_sha256).startswith(PUBLISHED_INCEPTION)
    return None if published and about.feature_precision in (None, STRICT) else str(about.extractor)


def numbers() -> dict[str, Number]:
    """Return the descriptions of all metrics' scores, by key."""
    return {number.key: number for metric in METRICS.values() for number in metric.traits.numbers}


def result_of(content: bytes, where: str) -> EvalResult:
    """Parse a result file. where: path, for messages. Raises FormatError."""
    result = EvalResult.of(parse_json(content, where), where)
    if any(repeat.facts.n_samples is None or not repeat.values for repeat in result.repeats):
        raise FormatError(
            f"{where}: not a result of 'elbo eval' (one JSON object); 'elbo eval SAMPLES --ref REF > FILE.json' makes one"
        )
    return result


def _scores(content: dict[str, Any], where: object) -> Scores:
    declared = numbers().values()
    published = any(number.by_network and number.key in content for number in declared)
    network = None if published else str(content.get("extractor"))
    named = {number.name(network): number for number in declared}
    values: dict[str, Value] = {}
    for name, value in content.items():
        if number := named.get(name):
            hint: Any = tuple[Bounded, Bounded] if number.role is Role.INTERVAL else Bounded
            values[number.key] = plain(convert(value, hint | None, f"{where}: {name}"))
    names = named.keys() | {number.alias for number in declared}
    facts = {name: value for name, value in content.items() if name not in names}
    return Scores(network, values, Facts.of(facts, where))
