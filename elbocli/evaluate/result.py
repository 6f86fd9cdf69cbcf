"""The result of `elbo eval`: numbers of one set of samples or of several repeats, and all that must stand beside them."""

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
"""Added to a number's name for its standard deviation over repeats."""
Pairs = dict[str, Annotated[list[Any], Meta(min_length=2, max_length=2)]]
"""Facts that are others than they should be, each with what it should be."""
Bounded = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
"""A number whose square a float holds."""
ENOUGH = 10_000
"""Images below which a score is said to be of few."""
KEYS = ("n_samples", "extractor")
"""Keys by which a result is told from other JSON."""
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
"""Facts that must be the same where both sides know them, or their numbers don't compare."""


class Facts(Record, frozen=True, kw_only=True):
    """Facts that stand beside the numbers of one set of samples, as the JSON names it. None is not known.

    n_ref_images: images of the reference, where its statistics are of others too. classes: how many there are, and how
    many images the smallest and the largest has. made: how the samples were drawn, as their file says. options: how
    the metrics were asked for. mismatch: how the samples and the reference were made, where that differs. protocol: by
    which they were scored. deviates: facts that aren't the protocol's, and the protocol's. held_out: the file of held-out
    images, n_held_out: how many.
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
    """The numbers of one set of samples. values: by the keys of the metrics' numbers. network: None where these
    have their published names.
    """

    network: str | None
    values: dict[str, Value]
    facts: Facts


@dataclass(frozen=True)
class Score:
    """A number: of one set of samples, or the mean over repeats with their standard deviation, sd."""

    number: Number
    value: Value
    sd: float | None = None


@stored("result of elbo eval (JSON)")
class EvalResult(Record, frozen=True):
    """The result of one set of samples, or of several repeats of one experiment."""

    repeats: list[Scores]

    @property
    def network(self) -> str | None:
        """The network that the numbers are named by; None where they have their published names."""
        return self.repeats[0].network

    @property
    def scores(self) -> list[Score]:
        """The numbers; of repeats the mean of each and its standard deviation, never the best of them."""
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
        """The number of that role that belongs to another, where there is one."""
        found = (each for each in self.scores if each.number.role == role and each.number.of == score.number.key)
        return next(found, None)

    def interval(self, score: Score) -> Any:
        """The ends of the interval that was found with a number, which need not be symmetric."""
        within = self.about(score, Role.INTERVAL)
        return within and within.value

    def estimate(self, score: Score) -> Estimate:
        """A number with its standard error: of the mean of repeats, else that of its own interval, or its own."""
        if score.sd is not None:
            return Estimate.of_repeats([one.values[score.number.key] for one in self.repeats])  # type: ignore[misc]
        value: Any = score.value
        error: Any = self.about(score, Role.ERROR)
        if ends := self.interval(score):
            return Estimate(value, (ends[1] - ends[0]) / (2 * NORMAL_95))
        return Estimate(value, error and error.value)

    def named(self) -> dict[str, Value]:
        """All numbers by their names in the JSON."""
        found: dict[str, Value] = {}
        for score in self.scores:
            for end, value in {"": score.value, SD: score.sd}.items():
                if value is not None or not end:
                    found[score.number.name(self.network, end)] = value
                    if self.network is None and score.number.alias:
                        found[score.number.alias + end] = value
        return found

    def common(self) -> dict[str, Any]:
        """The facts that all repeats have in common, as the JSON names them, with every mismatch and deviation of any."""
        facts = [one.facts.json() for one in self.repeats]
        common = {**shared(facts), "made": shared([each["made"] for each in facts])}
        for name in ("mismatch", "deviates"):
            if pairs := {key: pair for each in facts for key, pair in each.get(name, {}).items()}:
                common[name] = pairs
        return common

    def alike(self) -> dict[str, Any]:
        """The known facts that must be the same for numbers to be comparable; of preprocessing each key by itself."""
        facts, found = self.common(), dict[str, Any]()
        options = [own.name for metric in METRICS.values() for own in metric.traits.options]
        for key in [*ALIKE, *options]:
            if isinstance(facts.get(key), dict):
                found |= {f"{key}.{part}": value for part, value in facts[key].items()}
            elif facts.get(key) is not None:
                found[key] = facts[key]
        found.setdefault("feature_precision", STRICT)  # of an elbo that had no other
        return found

    def json(self) -> dict[str, Any]:
        """One set: its numbers and facts. Several: each number's mean under its name and its standard deviation under
        NAME_sd (before any [NETWORK]), what they have in common, and each set by itself in `repeats`.
        """
        found = {**self.head(), **self.named(), **self.common()}
        if len(self.repeats) > 1:
            found["repeats"] = [EvalResult([one]).json() for one in self.repeats]
        return found

    @classmethod
    def of(cls, content: Any, where: object = "it") -> EvalResult:
        """Read what `json` wrote; numbers of metrics that are not known here are among the facts.

        Raises FormatError.
        """
        cls.check_head(content, where)
        found = convert(content, dict[str, Any], where)
        repeats = convert(found.get("repeats", [found]), list[dict[str, Any]], f"{where}: repeats")
        return cls([_scores(one, where) for one in repeats])


def shared(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts that all of several have in common."""
    return {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}


def mismatches(mine: dict[str, Any], other: dict[str, Any]) -> Pairs:
    """Keys that both sets of facts have and that differ, with both values."""
    return {key: [mine[key], other[key]] for key in mine if key in other and mine[key] != other[key]}


def refuse(
    mine: dict[str, Any],
    theirs: dict[str, Any],
    where: object,
    other: object,
    then: str,
    kind: type[ElboError] = DataError,
) -> None:
    """Raise an error that names the facts that `where` has otherwise than `other`, and what to do; none without any."""
    if pairs := mismatches(mine, theirs):
        told = "; ".join(f"{key} is {one}, that of {other} {another}" for key, (one, another) in pairs.items())
        raise kind(f"{where}: {told}: {then}")


def numbers() -> dict[str, Number]:
    """All numbers that metrics find, by key."""
    return {number.key: number for metric in METRICS.values() for number in metric.traits.numbers}


def result_of(content: bytes, where: str) -> EvalResult:
    """The result in a file. Raises FormatError when it holds none."""
    result = EvalResult.of(parse_json(content, where), where)
    if any(one.facts.n_samples is None or not one.values for one in result.repeats):
        raise FormatError(f"{where}: {NONE}")
    return result


def _scores(content: dict[str, Any], where: object) -> Scores:
    """One set of samples, from its object in the JSON. Raises FormatError."""
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
    """The result and everything that must be published with it, as a page of Markdown. Unknown facts are marked."""
    facts = result.common()
    shown = {key: said(value) for key, value in facts.items()}
    values = {"result": result, "facts": facts, "shown": shown, "protocols": PROTOCOLS, "Role": Role}
    return fill_template(Path(__file__).with_name("card.md"), {"code": code, "said": said}, values)


def fill_template(path: Path, filters: dict[str, Any], values: dict[str, Any]) -> str:
    """The text of a template of Jinja's with these filters and values; in HTML, text in them is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    how: Any = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True, "undefined": StrictUndefined}
    environment = Environment(loader=FileSystemLoader(path.parent), autoescape=path.suffix == ".html", **how)
    environment.filters.update(filters)
    return environment.get_template(path.name).render(**values)


def code(value: Any) -> str:
    """Any text as a code span, in which Markdown and HTML have no meaning, on one line."""
    text = visible(" ".join(str(value).split()))
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{pad}{text}{pad}{fence}" if text else UNKNOWN


def said(value: Any) -> str:
    """A fact: numbers as they are, text as code, what is missing as such."""
    if value is None or value == "" or value == {}:
        return UNKNOWN
    if isinstance(value, dict):
        return ", ".join(f"{code(key)} {said(each)}" for key, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    if isinstance(value, float):
        return f"{value:.5g}"
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else code(value)
