"""Results of `elbo eval` compared: the difference of each score to that of the first file, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from elbocli.core.estimate import Estimate
from elbocli.core.metrics import Role
from elbocli.errors import DataError
from elbocli.evaluate.result import EvalResult, differing, mismatches
from elbocli.files.records import Record, stored


class Difference(Record, frozen=True, kw_only=True):
    """A number of two files. difference: the other's less the first's, with its standard error and 95 % interval. apart:
    whether 0 lies outside that; None where no standard error is known. how: what the error is of.
    """

    score: str
    first: float
    other: float
    difference: float
    se: float | None
    interval: list[float] | None
    apart: bool | None
    how: str

    @classmethod
    def found(cls, score: str, first: float, other: float, difference: Estimate, how: str) -> Difference:
        """An estimated difference, with its interval."""
        interval = difference.interval
        return cls(
            score=score,
            first=first,
            other=other,
            difference=difference.value,
            se=difference.se,
            interval=None if interval is None else [*interval],
            apart=None if interval is None else not interval[0] <= 0 <= interval[1],
            how=how if interval else "no standard error: score several seeds of each",
        )


class Compared(Record, frozen=True, kw_only=True):
    """A file beside the first."""

    file: str
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


def refuse_unlike(first: tuple[str, dict[str, Any]], other: tuple[str, dict[str, Any]]) -> None:
    """Raise DataError when two sets of facts, each with the name of its file, have a key that both know and that differs."""
    (name, mine), (beside, theirs) = first, other
    if found := mismatches(mine, theirs):
        raise DataError(f"{beside}: {differing(found, name)}: such numbers don't compare; score both alike")


def compare_results(found: Sequence[tuple[str, EvalResult]]) -> list[Compared]:
    """Each of the results after the first beside it. Raises DataError for what can't be compared."""
    (name, first), compared = found[0], []
    seeds = _by_seed(first)
    for beside, other in found[1:]:
        refuse_unlike((name, first.alike()), (beside, other.alike()))
        theirs, their_seeds, scores = {score.number.key: score for score in other.scores}, _by_seed(other), []
        for mine in first.scores:
            key, number = mine.number.key, mine.number
            its = theirs.get(key)
            if number.role not in (Role.NUMBER, Role.LIMIT) or its is None or None in (mine.value, its.value):
                continue
            before, after = first.estimate(mine), other.estimate(its)
            difference, how = after.minus(before), "unpaired"
            if seeds and set(seeds) == set(their_seeds):
                difference = Estimate.of_repeats([their_seeds[seed][key] - seeds[seed][key] for seed in seeds])
                how = f"paired by {len(seeds)} seeds"
            scores.append(Difference.found(number.name(first.network), before.value, after.value, difference, how))
        if not scores:
            raise DataError(f"{beside}: has no score that {name} has, too; score both with the same --metrics")
        compared.append(Compared(file=beside, scores=scores))
    return compared


def _by_seed(result: EvalResult) -> dict[str, dict[str, Any]]:
    """The numbers of each repeat by its seed; none unless there are several, each with a seed of its own."""
    seeds = [one.facts.made.get("seed") for one in result.repeats]
    if len(seeds) < 2 or None in seeds or len(set(map(str, seeds))) < len(seeds):
        return {}
    return {str(seed): one.values for seed, one in zip(seeds, result.repeats, strict=True)}
