"""Results of `elbo eval` compared: the difference of each score to that of the first file, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from elbocli.core.estimate import Estimate
from elbocli.core.metrics import Role
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.evaluate.result import EXPECTED_TO_DIFFER, EvalResult, result_of
from elbocli.files.reading import naming
from elbocli.files.records import Record, stored
from elbocli.images.image_refs import read_bytes


class Difference(Record, frozen=True, kw_only=True):
    """A number of two files. difference: the other's less the first's, with its standard error and 95 % interval. apart:
    whether 0 lies outside that; None where no standard error is known. how: what the error is of. says: it in a sentence.
    """

    score: str
    first: float
    other: float
    difference: float
    se: float | None
    interval: list[float] | None
    apart: bool | None
    how: str
    says: str

    @classmethod
    def told(
        cls, score: str, names: tuple[str, str], values: tuple[float, float], found: Estimate, how: str
    ) -> Difference:
        """Put an estimated difference in words. names, values: of the first file and the other."""
        interval, (first, other) = found.interval, names
        apart = None if interval is None else not interval[0] <= 0 <= interval[1]
        if interval is None:
            said = f"{other} less {first} is {found.value:+.4g}; no standard error says whether that is chance"
            how = "no standard error: score several seeds of each"
        elif apart:
            word = "higher" if found.value > 0 else "lower"
            low, high = sorted(map(abs, interval))
            said = f"{other} is {word} than {first} by {abs(found.value):.4g} (95 % interval {low:.4g} to {high:.4g})"
        else:
            said = f"{first} and {other} can't be told apart: {found.value:+.4g}, 95 % interval {interval[0]:+.4g} to {interval[1]:+.4g}"
        return cls(
            score=score,
            first=values[0],
            other=values[1],
            difference=found.value,
            se=found.se,
            interval=None if interval is None else [*interval],
            apart=apart,
            how=how,
            says=f"{score}: {said}",
        )


class Compared(Record, frozen=True, kw_only=True):
    """A file beside the first. differ: how the samples of both were drawn, where that differs."""

    file: str
    differ: dict[str, list[Any]]
    scores: list[Difference]


@stored("result of elbo compare (JSON)")
class Comparison(Record, frozen=True, kw_only=True):
    """All files beside the first. alike: facts that all have in common, as `elbo eval` names them."""

    REST: ClassVar[str] = "alike"

    first: str
    others: list[Compared]
    alike: dict[str, Any] = {}
    elbo_version: str | None
    command: str | None


def found_in(path: Path) -> tuple[str, EvalResult]:
    """The result in a file, or in the only file of a run's folder that holds one, and that file's name.

    Raises DataError for a file that can't be read, FormatError for one without, UsageError for a folder with several.
    """

    def read(file: Path) -> EvalResult:
        with naming(file):
            content = read_bytes(file)
        return result_of(content, str(file))

    if not path.is_dir():
        return str(path), read(path)
    held = []
    for file in sorted(path.glob("*.json")):
        try:
            held.append((str(file), read(file)))
        except FormatError:  # its status, a result of another command
            continue
    if not held:
        raise FormatError(
            f"{path}: no result of 'elbo eval' in it; 'elbo eval SAMPLES --ref REF > {path}/fid.json' makes one"
        )
    if len(held) > 1:
        raise UsageError(f"{path}: several results of 'elbo eval': {', '.join(name for name, _ in held)}; name one")
    return held[0]


def refuse_unlike(first: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    """Raise DataError when two sets of facts, each with the name of its file, have a key that both know and that differs."""
    (name, mine), (beside, theirs) = first, other
    differ = [key for key in mine if key in theirs and theirs[key] != mine[key]]
    if differ:
        said = "; ".join(f"{key} is {theirs[key]}, that of {name} {mine[key]}" for key in differ)
        raise DataError(f"{beside}: {said}: such numbers don't compare; score both alike")


def drawn_differently(mine: dict[str, Any], theirs: dict[str, Any]) -> dict[str, list[Any]]:
    """Facts on how samples were drawn in which two differ, or which one alone has."""
    keys = [key for key in {**mine, **theirs} if key not in EXPECTED_TO_DIFFER]
    return {key: [mine.get(key), theirs.get(key)] for key in keys if mine.get(key) != theirs.get(key)}


def compare_results(found: Sequence[tuple[str, EvalResult]]) -> list[Compared]:
    """Each of the results after the first beside it. Raises DataError for what can't be compared."""
    name, first = found[0]
    compared = []
    for beside, other in found[1:]:
        refuse_unlike((name, first.alike()), (beside, other.alike()))
        scores = _differences((name, beside), first, other)
        if not scores:
            raise DataError(f"{beside}: has no score that {name} has, too; score both with the same --metrics")
        differ = drawn_differently(first.common()["made"], other.common()["made"])
        compared.append(Compared(file=beside, differ=differ, scores=scores))
    return compared


def _differences(names: tuple[str, str], first: EvalResult, other: EvalResult) -> list[Difference]:
    """Every number that both have."""
    theirs = {score.number.key: score for score in other.scores}
    seeds = [_by_seed(result) for result in (first, other)]
    paired = bool(seeds[0]) and set(seeds[0]) == set(seeds[1])
    found = []
    for score in first.scores:
        key, beside = score.number.key, theirs.get(score.number.key)
        if score.number.role not in (Role.NUMBER, Role.LIMIT) or beside is None or None in (score.value, beside.value):
            continue
        mine, its = first.estimate(score), other.estimate(beside)
        difference, how = its.minus(mine), "unpaired"
        if paired:
            difference = Estimate.of_repeats([seeds[1][seed][key] - seeds[0][seed][key] for seed in seeds[0]])
            how = f"paired by {len(seeds[0])} seeds"
        title = score.number.name(first.network)
        found.append(Difference.told(title, names, (mine.value, its.value), difference, how))
    return found


def _by_seed(result: EvalResult) -> dict[str, dict[str, Any]]:
    """The numbers of each repeat by its seed; none unless there are several, each with a seed of its own."""
    seeds = [one.facts.made.get("seed") for one in result.repeats]
    if len(seeds) < 2 or None in seeds or len(set(map(str, seeds))) < len(seeds):
        return {}
    return {str(seed): one.values for seed, one in zip(seeds, result.repeats, strict=True)}
