"""The result of `elbo eval`: scores of one set of samples or of several repeats, with facts on samples and scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta

from elbocli.cli.commands import visible
from elbocli.core.estimate import NORMAL_95, Estimate
from elbocli.core.metrics import METRICS, Number, Role, Value
from elbocli.errors import DataError, ElboError, FormatError
from elbocli.evaluate.settings import PROTOCOLS
from elbocli.files.losslog import LARGEST
from elbocli.files.records import Record, convert, parse_json, plain, stored
from elbocli.nn.extractors import STRICT

SD = "_sd"
"""Suffix that turns a score's name into the name of the score's standard deviation over repeats."""
Pairs = dict[str, Annotated[list[Any], Meta(min_length=2, max_length=2)]]
"""Key of a fact that isn't as expected → [value, expected value]."""
Bounded = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""A number whose square is within float64 range."""
ENOUGH = 10_000
"""Number of images below which reports and warnings say that a score is of few images."""
KEYS = ("n_samples", "extractor")
"""Keys by which a file is recognised as a result of `elbo eval`."""
NONE = "not a result of 'elbo eval' (one JSON object); 'elbo eval SAMPLES --ref REF > FILE.json' makes one"
ALIKE = (
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
"""Facts that must be equal for two results to be comparable; a fact that one result lacks is not compared."""


class Facts(Record, frozen=True, kw_only=True):
    """Facts about the scores of one set of samples, by their names in the JSON. None means unknown.

    n_ref: number of images that the reference's statistics are computed from.
    n_ref_images: number of images that the reference file has besides such statistics, if a metric used these images.
    classes: number of classes. fewest_of_a_class, most_of_a_class: number of images in the smallest and the largest class.
    made: how the samples were drawn, as recorded in their file. options: options of the metrics.
    mismatch: facts in which samples and reference differ. deviates: facts in which the evaluation differs from its protocol.
    held_out, n_held_out: file of held-out images, and their number.
    """

    REST: ClassVar[str] = "options"

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
    options: dict[str, Any] = {}
    elbo_version: str | None
    torch_fidelity_version: str | None
    torch_version: str | None
    ref: str | None
    command: str | None
    seed: int | None = None
    mismatch: Pairs | None = None
    protocol: str | None = None
    deviates: Pairs | None = None
    held_out: str | None = None
    held_out_sha256: str | None = None
    n_held_out: int | None = None


@dataclass(frozen=True)
class Scores:
    """Scores of one set of samples. values: scores by key. network: extractor in the scores' names; None: published Inception."""

    network: str | None
    values: dict[str, Value]
    facts: Facts


@dataclass(frozen=True)
class Score:
    """A score, or its mean over repeats. number: description of the score. sd: standard deviation over repeats, or None."""

    number: Number
    value: Value
    sd: float | None = None


@stored("result of elbo eval (JSON)")
class EvalResult(Record, frozen=True):
    """The result of one set of samples, or of several repeats (seeds) of one experiment."""

    repeats: list[Scores]

    @property
    def network(self) -> str | None:
        """Extractor that appears in score names; None for the published Inception, whose scores keep usual names."""
        return self.repeats[0].network

    @property
    def scores(self) -> list[Score]:
        """The scores; for repeats, the mean and standard deviation of each score, never the best repeat."""
        found = []
        for key, first in self.repeats[0].values.items():
            number, column = numbers()[key], [one.values[key] for one in self.repeats]
            if len(column) == 1:
                found.append(Score(number, first))
            elif isinstance(first, float):
                values = np.array(column, float)
                sd = None if number.role == Role.ERROR else float(np.std(values, ddof=1))
                found.append(Score(number, float(np.mean(values)), sd))
        return found

    def about(self, score: Score, role: Role) -> Score | None:
        """Return the number that has this role for a score, such as the standard error; None without such a number."""
        found = (each for each in self.scores if each.number.role == role and each.number.of == score.number.key)
        return next(found, None)

    def interval(self, score: Score) -> Any:
        """Return the ends of a score's 95 % interval, which need not be symmetric; None without an interval."""
        within = self.about(score, Role.INTERVAL)
        return within and within.value

    def estimate(self, score: Score) -> Estimate:
        """Return a score with its standard error: from the repeats, else from its interval, else as the metric computed it."""
        if score.sd is not None:
            return Estimate.of_repeats([one.values[score.number.key] for one in self.repeats])  # type: ignore[misc]
        value: Any = score.value
        error: Any = self.about(score, Role.ERROR)
        if ends := self.interval(score):
            return Estimate(value, (ends[1] - ends[0]) / (2 * NORMAL_95))
        return Estimate(value, error and error.value)

    def named(self) -> dict[str, Value]:
        """Return all scores and standard deviations by their names in the JSON."""
        found: dict[str, Value] = {}
        for score in self.scores:
            for end, value in {"": score.value, SD: score.sd}.items():
                if value is not None or not end:
                    found[score.number.name(self.network, end)] = value
                    if self.network is None and score.number.alias:
                        found[score.number.alias + end] = value
        return found

    def common(self) -> dict[str, Any]:
        """Return the facts that all repeats share, by their names in the JSON, and all mismatches and deviations."""
        facts = [one.facts.json() for one in self.repeats]
        common = {**shared(facts), "made": shared([each["made"] for each in facts])}
        for name in ("mismatch", "deviates"):
            if pairs := {key: pair for each in facts for key, pair in each.get(name, {}).items()}:
                common[name] = pairs
        return common

    def alike(self) -> dict[str, Any]:
        """Return the known facts that must be equal for comparable scores; preprocessing is split into its keys."""
        facts, found = self.common(), dict[str, Any]()
        options = [own.name for metric in METRICS.values() for own in metric.traits.options]
        for key in [*ALIKE, *options]:
            if isinstance(facts.get(key), dict):
                found |= {f"{key}.{part}": value for part, value in facts[key].items()}
            elif facts.get(key) is not None:
                found[key] = facts[key]
        found.setdefault("feature_precision", STRICT)  # earlier versions had no other precision
        return found

    def json(self) -> dict[str, Any]:
        """Return the JSON object: scores and facts of one set of samples; for repeats, means, standard deviations, shared facts.

        The standard deviation of NAME is NAME_sd; that of NAME[NETWORK] is NAME_sd[NETWORK]. `repeats` has each repeat's object.
        """
        found = {**self.head(), **self.named(), **self.common()}
        if len(self.repeats) > 1:
            found["repeats"] = [EvalResult([one]).json() for one in self.repeats]
        return found

    @classmethod
    def of(cls, content: Any, where: object = "it") -> EvalResult:
        """Read an object that `json` returned. where: file of the object, for messages. Raises FormatError.

        Keys that no metric of elbo writes are read as facts.
        """
        cls.check_head(content, where)
        found = convert(content, dict[str, Any], where)
        repeats = convert(found.get("repeats", [found]), list[dict[str, Any]], f"{where}: repeats")
        return cls([_scores(one, where) for one in repeats])


def shared(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the facts that are equal in all of several dicts."""
    return {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}


def mismatches(mine: dict[str, Any], other: dict[str, Any]) -> Pairs:
    """Return the facts that two dicts share with different values: key → [value in `mine`, value in `other`]."""
    return {key: [mine[key], other[key]] for key in mine if key in other and mine[key] != other[key]}


def refuse(
    mine: dict[str, Any],
    theirs: dict[str, Any],
    where: object,
    other: object,
    then: str,
    kind: type[ElboError] = DataError,
) -> None:
    """Raise an error of class `kind` if two files share facts with different values.

    mine, where: facts and name of one file. theirs, other: facts and name of the other file. then: end of the message, a remedy.
    """
    if pairs := mismatches(mine, theirs):
        told = "; ".join(f"{key} is {one}, that of {other} {another}" for key, (one, another) in pairs.items())
        raise kind(f"{where}: {told}: {then}")


def numbers() -> dict[str, Number]:
    """Return the descriptions of all numbers that metrics compute, by key."""
    return {number.key: number for metric in METRICS.values() for number in metric.traits.numbers}


def result_of(content: bytes, where: str) -> EvalResult:
    """Parse the content of a file with a result. where: path of the file, for messages. Raises FormatError for other content."""
    result = EvalResult.of(parse_json(content, where), where)
    if any(one.facts.n_samples is None or not one.values for one in result.repeats):
        raise FormatError(f"{where}: {NONE}")
    return result


def _scores(content: dict[str, Any], where: object) -> Scores:
    """Read the scores of one set of samples from its JSON object. Raises FormatError."""
    network, known = str(content.get("extractor")), numbers().values()
    named = {number.name(by): number for by in (network, None) for number in known}
    aliases = {number.alias for number in known}
    values: dict[str, Value] = {}
    for name, value in content.items():
        if number := named.get(name):
            hint: Any = tuple[Bounded, Bounded] if number.role is Role.INTERVAL else Bounded
            values[number.key] = plain(convert(value, hint | None, f"{where}: {name}"))
    facts = {name: value for name, value in content.items() if name not in aliases | named.keys()}
    published = any(number.by_network and number.key in content for number in known)
    return Scores(None if published else network, values, Facts.of(facts, where))


UNKNOWN = "*not known*"


def score_card(result: EvalResult) -> str:
    """Return a Markdown page with the result and all facts to publish with it; unknown facts are marked as such."""
    facts = result.common()
    shown = {key: said(value) for key, value in facts.items()}
    values = {"result": result, "facts": facts, "shown": shown, "protocols": PROTOCOLS, "Role": Role}
    return fill_template(Path(__file__).with_name("card.md"), {"code": code, "said": said}, values)


def fill_template(path: Path, filters: dict[str, Any], values: dict[str, Any]) -> str:
    """Render a Jinja template with filters and values; in .html templates, values are escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    how: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(path.parent), autoescape=path.suffix == ".html", **how)
    environment.filters.update(filters)
    return environment.get_template(path.name).render(**values)


def code(value: Any) -> str:
    """Return text as a Markdown code span on one line, in which Markdown and HTML have no effect."""
    text = visible(" ".join(str(value).split()))
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else UNKNOWN


def said(value: Any) -> str:
    """Format a fact for the score card: numbers as digits, text as code, missing values as unknown."""
    if value is None or value == "" or value == {}:
        return UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{code(key)} {said(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else code(value)
