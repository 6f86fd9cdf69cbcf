"""The result of `elbo eval`: numbers of one set of samples or of several repeats, and all that must stand beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from msgspec import Meta

from elbocli.core.estimate import NORMAL_95, Estimate
from elbocli.core.metrics import METRICS, Number, Role, Value
from elbocli.errors import FormatError
from elbocli.files.losslog import LARGEST
from elbocli.files.records import Record, convert, parse_json, stored
from elbocli.nn.extractors import STRICT

SD = "_sd"
"""Added to a number's name for its standard deviation over repeats."""
Pair = Annotated[list[Any], Meta(min_length=2, max_length=2)]
"""A fact that is another than it should be, and what it should be."""
"""A number whose square a float holds."""
Bounded = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
Ends = Annotated[list[Bounded], Meta(min_length=2, max_length=2)]
ENOUGH = 10_000
"""Images below which a score is said to be of few."""
KEYS = ("n_samples", "extractor")
"""Keys by which a result is told from other JSON."""
NONE = (
    "not a result of 'elbo eval' (one JSON object), nor features; 'elbo eval SAMPLES --ref REF > FILE.json' makes one"
)
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
EXPECTED_TO_DIFFER = {"seed", "command"}
"""Facts that each repeat has of its own."""


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
    mismatch: dict[str, Pair] | None = None
    protocol: str | None = None
    deviates: dict[str, Pair] | None = None
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
        known = numbers()
        if len(self.repeats) == 1:
            return [Score(known[key], value) for key, value in self.repeats[0].values.items()]
        found = []
        for key, first in self.repeats[0].values.items():
            if isinstance(first, float):
                column: Any = [one.values[key] for one in self.repeats]
                sd = None if known[key].role == Role.ERROR else float(np.std(column, ddof=1))
                found.append(Score(known[key], float(np.mean(column)), sd))
        return found

    def about(self, score: Score, role: Role) -> Score | None:
        """The number of that role that belongs to another, where there is one."""
        found = (each for each in self.scores if each.number.role == role and each.number.of == score.number.key)
        return next(found, None)

    def estimate(self, score: Score) -> Estimate:
        """A number with its standard error: of the mean of repeats, else that of its own interval, or its own."""
        value = convert(score.value, float, score.number.key)
        if score.sd is not None:
            return Estimate.of_repeats(
                [convert(one.values[score.number.key], float, score.number.key) for one in self.repeats]
            )
        within, error = self.about(score, Role.INTERVAL), self.about(score, Role.ERROR)
        if within is not None and isinstance(within.value, list):
            return Estimate(value, (within.value[1] - within.value[0]) / (2 * NORMAL_95))
        if error is not None and isinstance(error.value, float):
            return Estimate(value, error.value)
        return Estimate(value)

    def named(self) -> dict[str, Value]:
        """All numbers by their names in the JSON."""
        ends: list[tuple[Number, str, Value]] = []
        for score in self.scores:
            ends.append((score.number, "", score.value))
            if score.sd is not None:
                ends.append((score.number, SD, score.sd))
        found = {number.name(self.network, end): value for number, end, value in ends}
        if self.network is None:
            found |= {number.alias + end: value for number, end, value in ends if number.alias}
        return found

    def common(self) -> dict[str, Any]:
        """The facts that all repeats have in common, as the JSON names them, with every mismatch and deviation of any."""
        facts = [one.facts.json() for one in self.repeats]
        found = shared(facts)
        for name in ("mismatch", "deviates"):
            found.pop(name, None)  # they stand last, whether all repeats have them or one
            if pairs := {key: pair for each in facts for key, pair in each.get(name, {}).items()}:
                found[name] = pairs
        found["made"] = shared([each["made"] for each in facts])
        return found

    def alike(self) -> dict[str, Any]:
        """The known facts that must be the same for numbers to be comparable; of preprocessing each key by itself."""
        facts, found = self.common(), dict[str, Any]()
        options = [own.name for metric in METRICS.values() for own in metric.traits.options.own()]
        for key in [*ALIKE, *sorted(options)]:
            if isinstance(facts.get(key), dict):
                found |= {f"{key}.{part}": value for part, value in facts[key].items()}
            elif facts.get(key) is not None:
                found[key] = facts[key]
        found.setdefault("feature_precision", STRICT)  # of an elbo that had no other
        return found

    def json(self) -> dict[str, Any]:
        """One set: its numbers and facts. Several: each number's mean under its name and its standard deviation under
        NAME_sd (before any [NETWORK]), what they have in common, and each by itself in `repeats`.
        """
        if len(self.repeats) == 1:
            return {**self.head(), **self.named(), **self.repeats[0].facts.json()}
        common, repeats = self.common(), []
        for one in self.repeats:
            facts = {key: value for key, value in one.facts.json().items() if key not in common or key == "made"}
            facts["made"] = {key: value for key, value in facts["made"].items() if key not in common["made"]}
            repeats.append({**EvalResult([one]).named(), **facts})
        return {**self.head(), **self.named(), **common, "repeats": repeats}

    @classmethod
    def of(cls, content: Any, where: object = "it") -> EvalResult:
        """Read what `json` wrote; numbers of metrics that are not known here are among the facts.

        Raises FormatError.
        """
        cls.check_head(content, where)
        common = convert(content, dict[str, Any], where)
        read = []
        for own in convert(common.pop("repeats", [{}]), list[dict[str, Any]], f"{where}: repeats"):
            made = [convert(each.get("made", {}), dict[str, Any], f"{where}: made") for each in (common, own)]
            read.append(_scores({**common, **own, "made": {**made[0], **made[1]}}, where))
        return cls(read)

    def unlike(self) -> list[str]:
        """Facts that differ between repeats, and should not."""
        made = [one.facts.made for one in self.repeats]
        return sorted({key for one in made for key in one} - shared(made).keys() - EXPECTED_TO_DIFFER)


def shared(facts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The facts that all of several have in common."""
    return {key: value for key, value in facts[0].items() if all(other.get(key) == value for other in facts)}


def mismatches(mine: dict[str, Any], other: dict[str, Any]) -> dict[str, list[Any]]:
    """Keys that both sets of facts have and that differ, with both values."""
    return {key: [mine[key], other[key]] for key in mine if key in other and mine[key] != other[key]}


def differing(found: dict[str, list[Any]], name: object) -> str:
    """Mismatches in words. name: of the file that the first value of each pair is of."""
    return "; ".join(f"{key} is {theirs}, that of {name} {mine}" for key, (mine, theirs) in found.items())


def numbers() -> dict[str, Number]:
    """All numbers that metrics find, by key."""
    return {number.key: number for metric in METRICS.values() for number in metric.traits.numbers}


def result_of(content: bytes, where: str) -> EvalResult:
    """The result in a file. Raises FormatError when it holds none."""
    try:
        result = EvalResult.of(parse_json(content, where), where)
    except FormatError as error:
        raise FormatError(f"{error}: {NONE}") from error
    if any(one.facts.n_samples is None or not one.values for one in result.repeats):
        raise FormatError(f"{where}: {NONE}")
    return result


def _scores(content: dict[str, Any], where: object) -> Scores:
    """One set of samples, from its object in the JSON. Raises FormatError."""
    network, known = str(content.get("extractor")), numbers().values()
    named = {number.name(by): number for by in (network, None) for number in known}
    values: dict[str, Value] = {}
    for name, value in content.items():
        if number := named.get(name):
            values[number.key] = convert(
                value, Ends | None if number.role is Role.INTERVAL else Bounded | None, f"{where}: {name}"
            )
    again = {number.name(by, SD) for by in (network, None) for number in known}
    again |= {number.alias + suffix for suffix in ("", SD) for number in known}
    facts = {name: value for name, value in content.items() if name not in again | named.keys()}
    published = any(number.by_network and number.key in content for number in known)
    return Scores(None if published else network, values, Facts.of(facts, where))
